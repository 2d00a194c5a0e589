"""Two processes that talk until one dies or hangs: `tests/core/test_parallel.py` starts them."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

from guyot.app.launch import processes
from guyot.core.errors import ParallelError


def main() -> None:
    """Count together; the second process dies or sleeps at step 20."""
    try:
        with processes("cpu", timeout=5, then="go on from the last checkpoint") as ranks:
            for step in range(10**6):
                if step == 20 and ranks.rank == 1:
                    if sys.argv[1] == "die":
                        os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(600)
                ranks.sum(torch.ones(3))
                time.sleep(0.01)
    except ParallelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
