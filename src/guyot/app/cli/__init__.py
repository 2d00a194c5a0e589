"""The command line, the program `guyot`."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Entry point of the program `guyot`."""
    if sys.argv[1:2] == ["train"] and "--help" not in sys.argv:
        from guyot.app.allocator import restart_with_fast_allocator

        # stacks of C++ would bury what is said when a process of several is lost
        quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"} if "WORLD_SIZE" in os.environ else {}
        restart_with_fast_allocator(**quiet)
    try:
        from guyot.app.cli.commands import app
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("rich", "typer"):
            raise
        sys.exit(
            f"guyot: the command line needs the package {error.name!r}, which is not installed: "
            "pip install 'guyot[cli]'"
        )
    app()
