"""A run in several processes; rank 1 dies at a step: `tests/core/test_parallel.py` starts it."""

from __future__ import annotations

import os
import signal
import sys

from guyot import GuyotError
from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.launch import launched


class Deadly(running.Silent):
    """Kills its process at a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def stepped(self, step: int, loss: float) -> None:
        self.left -= 1
        if self.left == 0 and launched()[0] == 1:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train, or go on."""
    command, folder, *step = sys.argv[1:]
    watcher = Deadly(int(step[0])) if step else None
    try:
        if command == "train":
            config = RunConfig.of("digits", epochs=6, round_to=4)
            running.train(config, folder, watcher, timeout=60)
        else:
            running.resume(folder, watcher, timeout=60)
    except GuyotError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
