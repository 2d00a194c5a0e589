"""Run the command line inside the test's process."""

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from guyot.app.cli.commands import app


def run(*arguments: str | Path) -> Any:
    environment = {"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(app, [str(a) for a in arguments])
