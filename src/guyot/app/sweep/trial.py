"""One trial of a sweep, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.printable import printable
from guyot.app.running.folder import is_finished, result_of
from guyot.core.errors import GuyotWarning, MisconfiguredError
from guyot.core.storage import read_json


def run_trial(settings: dict[str, Any], place: str, parent: int) -> None:
    """Run a trial, or what is left of it.

    SIGTERM, or the death of the sweep, ends it after a step; Ctrl-C is for the sweep to answer.

    Args:
        settings: a `RunConfig` as plain data.
        place: the run folder.
        parent: number of the sweep's process.
    """
    asked: list[bool] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    folder = Path(place)
    log = folder.with_suffix(".log")

    def stop() -> bool:
        return bool(asked) or os.getppid() != parent

    try:
        if finished_result(folder) is not None:
            return
        log.unlink(missing_ok=True)
        with _noted(folder.name):
            _train(RunConfig.from_dict(settings), folder, stop)
    except Exception:  # noqa: BLE001 - it is written down, and the sweep tells
        log.write_text(traceback.format_exc(), encoding="utf-8")
        raise SystemExit(1) from None


@contextlib.contextmanager
def _noted(name: str) -> Generator[None]:
    """Tell each warning of a trial in a line that names the trial."""

    def note(message: object, *_: object, **__: object) -> None:
        sys.stderr.write(f"note: {name}: {printable(str(message))}\n")

    with warnings.catch_warnings():
        warnings.simplefilter("always", GuyotWarning)
        warnings.showwarning = note
        yield


def finished_result(folder: Path) -> dict[str, Any] | None:
    """Return what a finished trial came to; None if it has not finished."""
    with contextlib.suppress(OSError, ValueError):
        if is_finished(folder):
            return result_of(folder)
    return None


def error_of(folder: Path, code: int | None) -> str:
    """Return why a trial failed: the last line of its log, or how its process ended."""
    with contextlib.suppress(OSError):
        if lines := folder.with_suffix(".log").read_text(encoding="utf-8").strip().splitlines():
            return re.sub(r"^guyot\.[\w.]+: ", "", lines[-1])
    return f"its process ended with code {code}"


def _train(config: RunConfig, folder: Path, stop: Callable[[], bool]) -> None:
    """Continue a run if there is something to continue, else begin it.

    Another process may still write to the folder: that of a sweep that was killed, or of a trial
    that was queued again because its machine was too busy for signs of life. It is waited for.
    """
    if (folder / "config.json").exists() and config.keep:
        run = running.RunFolder(folder, None, resumed=True)
        while not (free := _is_free(run)) and not stop():
            time.sleep(0.5)
        if free and finished_result(folder) is None:
            there = RunConfig.from_dict(read_json(folder / "config.json"))
            running.resume(folder, stop=stop, trust=there.model == config.model)
        return
    shutil.rmtree(folder, ignore_errors=True)  # a beginning without a checkpoint
    running.train(config, folder, stop=stop)


def _is_free(run: running.RunFolder) -> bool:
    try:
        with run.locked():
            return True
    except MisconfiguredError:
        return False
