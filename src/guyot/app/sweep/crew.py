"""The work of a sweep: trials in processes of their own."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from guyot.app.sweep.plan import Sweep, objective, trial_name
from guyot.app.sweep.study import is_left, is_running, queue_again, taken
from guyot.app.sweep.trial import error_of, finished_result, run_trial
from guyot.report import TRIALS

_POLL = 1.0
"""Seconds between two looks at the trials that others run."""


class _UnfinishedError(Exception):
    """A trial has no result; why is known."""


class Crew:
    """Take trials from a study and run each in a process of its own.

    Args:
        sweep: what to try.
        study: the memory of the sweep.
        folder: of the sweep.
        told: gets a line for every trial that begins or ends.
    """

    def __init__(self, sweep: Sweep, study: Any, folder: Path, told: Callable[[str], None]) -> None:
        self._sweep, self._study, self._folder, self._told = sweep, study, folder, told
        self._processes: set[BaseProcess] = set()
        self._asking = threading.Lock()  # SQLite gives one trial to two threads that ask at once
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    def work(self) -> None:
        """Run trials until none is left; for as many threads as trials may run at a time."""
        while not self._stopping.is_set():
            if self._ran():
                continue
            if not is_running(self._study):
                break
            self._stopping.wait(_POLL)

    def _ran(self) -> bool:
        """Run a trial, if one is left."""
        with contextlib.ExitStack() as asking:
            asking.enter_context(self._asking)
            if not is_left(self._study, self._sweep):
                return False

            def values(trial: Any) -> list[float]:
                asking.close()
                return self._values(trial)

            # raised for a trial that missed its heartbeats and was queued again meanwhile
            with contextlib.suppress(AssertionError, ValueError):
                self._study.optimize(values, n_trials=1, catch=(Exception,))
        return True

    def stop(self) -> None:
        """End all trials after their step; those that have no result are queued again."""
        with self._lock:
            self._stopping.set()
            for process in self._processes:
                process.terminate()

    def _values(self, trial: Any) -> list[float]:
        """Run a trial and return the values of the objectives."""
        try:
            return self._finished(trial)
        except _UnfinishedError:
            raise
        except Exception as error:
            self._failed(trial, f"{type(error).__name__}: {error}")
            raise

    def _finished(self, trial: Any) -> list[float]:
        trial.set_user_attr("begun", trial.number)
        dials = dict(trial.user_attrs.get("dials", {}))
        for name, (low, high) in self._sweep.ranges.items():
            log = name == "nu" and low > 0
            dials[name] = trial.suggest_float(name, low, high, log=log)
        if not dials:  # another machine was faster and the queue is empty
            raise _UnfinishedError
        config = self._sweep.config(dials)
        name = trial_name(config)
        trial.set_user_attr("name", name)
        trial.set_user_attr("dials", dials)
        if taken(self._study, self._sweep, trial):
            raise _UnfinishedError
        place = self._folder / TRIALS / name
        process = self._started(trial, name, dials, (config.to_dict(), str(place), os.getpid()))
        process.join()
        with self._lock:
            self._processes.remove(process)
        result = finished_result(place)
        if result is None:
            if self._stopping.is_set():
                queue_again(self._study, trial.number)
            else:
                self._failed(trial, error_of(place, process.exitcode))
            raise _UnfinishedError
        values = {name: objective(result, name) for name in self._sweep.objectives}
        self._told(f"{name} ends: {_text(values)}")
        return list(values.values())

    def _started(self, trial: Any, name: str, dials: Mapping[str, float], job: Any) -> BaseProcess:
        with self._lock:
            if self._stopping.is_set():
                queue_again(self._study, trial.number)
                raise _UnfinishedError
            self._told(f"{name} begins: {_text(dials)}")
            process = multiprocessing.get_context("spawn").Process(target=run_trial, args=job)
            process.start()
            self._processes.add(process)
        return process

    def _failed(self, trial: Any, error: str) -> None:
        trial.set_user_attr("error", error)
        self._told(f"{trial.user_attrs.get('name', 'a trial')} failed: {error}")


def _text(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
