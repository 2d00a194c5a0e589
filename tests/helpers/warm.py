"""Programs in processes of their own that need not import torch and guyot first.

A server imports them once for each worker of the tests. Every process is a fork of it, so it shares
the seed of Python's hashes with the others: what must not depend on that starts by `subprocess`.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from unittest import mock

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "guyot.app.running", "sklearn.datasets"])


class Started:
    """A Python program that runs; what it prints goes to a file.

    Args:
        program: its file.
        arguments: what follows its name.
        environment: what differs from that of the tests.
    """

    def __init__(
        self, program: Path, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self._output = Path(tempfile.mkdtemp()) / "output.txt"
        job = str(program), arguments, os.environ | (environment or {}), str(self._output)
        self._process = FORKS.Process(target=_run, args=job)
        with mock.patch.dict(sys.modules, __main__=ModuleType("__main__")):  # or it is imported
            self._process.start()

    @property
    def runs(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        self._process.kill()

    def ended(self, timeout: float = 300) -> tuple[int, str]:
        """Wait for the end; the exit status, -9 for a kill, and what was printed."""
        self._process.join(timeout)
        said = self._output.read_text()
        if self._process.exitcode is None:
            self.kill()
            raise TimeoutError(f"{self._process.name} runs after {timeout} s: {said}")
        return self._process.exitcode, said


def _run(
    program: str, arguments: tuple[str, ...], environment: dict[str, str], output: str
) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    with Path(output).open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    torch.set_num_threads(1)
    sys.argv = [program, *arguments]
    sys.path.insert(0, os.path.dirname(program))
    runpy.run_path(program, run_name="__main__")
