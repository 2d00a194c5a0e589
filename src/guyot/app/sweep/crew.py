"""The work of a sweep: trials in processes of their own."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.sweep.plan import Sweep, name_of, objective
from guyot.app.sweep.study import STALE, asked_before, give_back, optuna_module
from guyot.core.errors import MisconfiguredError
from guyot.report import TRIALS

_PATIENCE = 120.0


@dataclass
class _Job:
    """A trial that runs."""

    trial: Any
    name: str
    process: BaseProcess


class Crew:
    """Takes trials from the study and runs each in a process of its own."""

    def __init__(self, sweep: Sweep, study: Any, folder: Path, told: Callable[[str], None]) -> None:
        self._sweep, self._study, self._folder, self._told = sweep, study, folder, told
        self._jobs: list[_Job] = []
        self._seen = 0.0

    def fill(self, workers: int) -> bool:
        """Start what there is room for; whether anything runs."""
        while len(self._jobs) < workers and self._left():
            self._start()
        return bool(self._jobs)

    def _left(self) -> bool:
        states = [trial.state.name for trial in self._study.trials]
        if "WAITING" in states:
            return True
        busy = states.count("COMPLETE") + states.count("RUNNING")
        return bool(self._sweep.ranges) and busy < self._sweep.trials

    def _start(self) -> None:
        trial = self._study.ask()
        if not self._sweep.ranges and "dials" not in trial.user_attrs:
            self._drop(trial)
            return
        dials = dict(trial.user_attrs.get("dials", {}))
        for name, (low, high) in self._sweep.ranges.items():
            log = name == "nu" and low > 0
            dials[name] = trial.suggest_float(name, low, high, log=log)
        config = self._sweep.config(dials)
        name = name_of(config)
        for key, value in (
            ("name", name),
            ("dials", dials),
            ("host", socket.gethostname()),
            ("pid", os.getpid()),
            ("seen", time.time()),
        ):
            trial.set_user_attr(key, value)
        if asked_before(self._study, trial):
            self._drop(trial)
            return
        self._told(f"{name} begins: {_text(dials)}")
        process = multiprocessing.get_context("spawn").Process(
            target=_work, args=(config.to_dict(), str(self._folder / TRIALS / name), os.getpid())
        )
        process.start()
        self._jobs.append(_Job(trial, name, process))

    def _drop(self, trial: Any) -> None:
        """Somebody was faster, or the sampler of a search that goes on begins as it did before."""
        self._study.tell(trial, state=optuna_module().trial.TrialState.FAIL)

    def collect(self) -> None:
        """Take in what has ended; show the others that we are alive."""
        for job in [job for job in self._jobs if not job.process.is_alive()]:
            self._jobs.remove(job)
            self._end(job)
        if time.time() - self._seen > STALE / 10:
            self._seen = time.time()
            for job in self._jobs:
                job.trial.set_user_attr("seen", self._seen)

    def _end(self, job: _Job) -> None:
        result = _result(self._folder / TRIALS / job.name)
        if result is None:
            error = _error(self._folder / TRIALS / f"{job.name}.log", job.process.exitcode)
            job.trial.set_user_attr("error", error)
            self._study.tell(job.trial, state=optuna_module().trial.TrialState.FAIL)
            self._told(f"{job.name} failed: {error}")
            return
        values = [objective(result, name) for name in self._sweep.objectives]
        self._study.tell(job.trial, values)
        pairs = zip(self._sweep.objectives, values, strict=True)
        self._told(f"{job.name} ends: {_text(dict(pairs))}")

    def stop(self) -> None:
        """End all trials after their step and queue them again."""
        for job in self._jobs:
            job.process.terminate()
        for job in self._jobs:
            job.process.join()
            if _result(self._folder / TRIALS / job.name) is not None:
                self._end(job)
            else:
                attributes = job.trial.user_attrs
                give_back(self._study, job.trial.number, attributes)
        self._jobs.clear()


def _text(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _result(folder: Path) -> dict[str, Any] | None:
    """What a finished trial came to; None if it has not finished."""
    with contextlib.suppress(OSError, ValueError):
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if result.get("status") == "finished":
            return result
    return None


def _error(log: Path, code: int | None) -> str:
    with contextlib.suppress(OSError):
        if lines := log.read_text(encoding="utf-8").strip().splitlines():
            return re.sub(r"^guyot\.errors\.\w+: ", "", lines[-1])
    return f"its process ended with code {code}"


def _work(settings: dict[str, Any], place: str, parent: int) -> None:
    """In a process of its own: run a trial, or go on with it.

    SIGTERM, or the death of the sweep, ends it after a step; Ctrl-C is for the sweep to answer.
    """
    asked: list[bool] = []
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    folder = Path(place)
    log = folder.with_suffix(".log")

    def stop() -> bool:
        return bool(asked) or os.getppid() != parent

    try:
        if _result(folder) is not None:
            return
        log.unlink(missing_ok=True)
        _train(RunConfig.from_dict(settings), folder, stop)
    except Exception:  # noqa: BLE001 - it is written down, and the sweep tells
        log.write_text(traceback.format_exc(), encoding="utf-8")
        raise SystemExit(1) from None


def _train(config: RunConfig, folder: Path, stop: Callable[[], bool]) -> None:
    """Go on with a run if there is something to go on with, else begin it.

    The process of a sweep that was killed may still write its last checkpoint: it is waited for.
    """
    if folder.exists():
        with contextlib.suppress(OSError):
            _wait(folder)
    if (folder / "config.json").exists() and config.keep:
        running.resume(folder, stop=stop)
        return
    shutil.rmtree(folder, ignore_errors=True)  # a beginning without a checkpoint
    running.train(config, folder, stop=stop)


def _wait(folder: Path) -> None:
    """Until nobody writes to a run folder, or two minutes have passed."""
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        try:
            with running.RunFolder(folder, None, resumed=True).locked():
                return
        except MisconfiguredError:
            time.sleep(0.5)
