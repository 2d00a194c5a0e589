"""The memory of a sweep: an Optuna study."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import time
import warnings
from collections.abc import Generator
from datetime import datetime
from pathlib import Path
from typing import Any

from guyot.app.sweep.plan import Sweep, trial_name
from guyot.core.errors import MisconfiguredError, first_line
from guyot.core.packages import needed
from guyot.report import TRIALS

HEARTBEAT, GRACE = 10, 60
"""Seconds between two signs of life of a trial, and without one before it is queued again."""
_PATIENT = {"connect_args": {"timeout": 60.0}}
"""SQLite's wait for another writer, seconds: an error would end the signs of life of a trial."""
_ASKED = {"COMPLETE", "RUNNING", "WAITING"}
"""States of trials that need not be asked for again."""


def optuna_module() -> Any:
    """Import Optuna, or say how to get it."""
    with needed("a sweep needs", "sweep"):
        return importlib.import_module("optuna")


@contextlib.contextmanager
def experimental() -> Generator[None]:
    """Use Optuna's heartbeat, which it calls experimental, without being told so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna_module().exceptions.ExperimentalWarning)
        yield


def open_study(sweep: Sweep, folder: Path, storage: str | None) -> Any:
    """Open the sweep's study, or make it."""
    optuna = optuna_module()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(folder / 'sweep.db').absolute()}"
    study = _created(
        url,
        study_name="guyot" if storage is None else f"guyot-{folder.name}",
        directions=sweep.directions,
        sampler=optuna.samplers.TPESampler(seed=sweep.base.seed, constant_liar=True)
        if sweep.ranges
        else optuna.samplers.RandomSampler(),
    )
    identity = {"base": sweep.base.to_dict(), "objectives": list(sweep.objectives)}
    identity = json.loads(json.dumps(identity))
    known = study.user_attrs.get("sweep")
    if known is None:
        study.set_user_attr("sweep", identity)
    elif known != identity:
        differing = [
            name for name, value in identity["base"].items() if known["base"].get(name) != value
        ] or ["objective"]
        raise MisconfiguredError(
            f"out={str(folder)!r} holds a sweep with another {differing[0]}: give a new folder, or "
            "the settings of that sweep"
        )
    return study


def _created(url: str, **choices: Any) -> Any:
    """Open or make the study in a database; another machine may be making its tables just now.

    Raises:
        MisconfiguredError: the database cannot be used.
    """
    optuna = optuna_module()
    database_error = importlib.import_module("sqlalchemy.exc").SQLAlchemyError
    for patience in (0.5, 2.0, 0.0):
        try:
            with experimental():
                storage = optuna.storages.RDBStorage(
                    url,
                    engine_kwargs=_PATIENT if url.startswith("sqlite") else None,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                    heartbeat_stale_trial_callback=_retry(),
                )
            return optuna.create_study(storage=storage, load_if_exists=True, **choices)
        except (ImportError, ValueError, database_error) as error:
            if not (patience and isinstance(error, database_error)):
                raise MisconfiguredError(_unopened(url, error)) from error
            time.sleep(patience)
    raise AssertionError("not reached")


def _unopened(url: str, error: Exception) -> str:
    """Say why a database cannot be used, without the password in its address."""
    shown = re.sub(r"(?<=:)[^:/@]+(?=@)", "***", url)
    return (
        f"storage={shown!r} cannot be used ({first_line(error.__cause__ or error)}): give the URL "
        "of a database, such as postgresql+psycopg://user@host/name, install its driver, or leave "
        "storage out for SQLite in the folder"
    )


def _finished(study: Any) -> list[Any]:
    return [trial for trial in study.trials if trial.state.name == "COMPLETE"]


def _retry() -> Any:
    return optuna_module().storages.RetryHeartbeatStaleTrialCallback()


def is_left(study: Any, sweep: Sweep) -> bool:
    """Say whether a trial waits, or a search may make one more."""
    states = [trial.state.name for trial in study.trials]
    busy = states.count("COMPLETE") + states.count("RUNNING")
    return "WAITING" in states or (bool(sweep.ranges) and busy < sweep.trials)


def is_running(study: Any) -> bool:
    """Say whether any trial runs, on any machine; those whose sweep died are queued again."""
    optuna_module().storages.fail_stale_trials(study)
    running = [trial for trial in study.trials if trial.state.name == "RUNNING"]
    for trial in running:
        age = (datetime.now() - trial.datetime_start).total_seconds()
        if trial.user_attrs.get("begun") != trial.number and age > GRACE:
            queue_again(study, trial.number)  # its sweep died before the first heartbeat
            study.tell(trial.number, state=optuna_module().trial.TrialState.FAIL)
    return bool(running)


def queue_again(study: Any, number: int) -> None:
    """Queue a copy of a trial that will have no result."""
    with experimental():
        _retry()(study, study.trials[number])


def enqueue(study: Any, sweep: Sweep) -> None:
    """Queue what nobody has asked for."""
    known = {trial.user_attrs.get("name") for trial in study.trials if trial.state.name in _ASKED}
    for dials in sweep.configs():
        name = trial_name(sweep.config(dials))
        if name not in known:
            study.enqueue_trial(dials, user_attrs={"name": name, "dials": dials})


def taken(study: Any, sweep: Sweep, trial: Any) -> bool:
    """Say whether earlier trials leave nothing to do for one, say of machines that ask at once."""
    earlier = [
        other.user_attrs.get("name")
        for other in study.trials
        if other.number < trial.number and other.state.name in _ASKED
    ]
    full = bool(sweep.ranges) and len(earlier) >= sweep.trials
    return full or trial.user_attrs["name"] in earlier


def outcome(study: Any, sweep: Sweep, folder: Path) -> dict[str, Any]:
    """Return the finished trials as plain data, the winners marked."""
    best = {trial.number for trial in study.best_trials} if _finished(study) else set[int]()
    trials: dict[str, dict[str, Any]] = {}
    for trial in _finished(study):
        name = trial.user_attrs["name"]
        values = dict(zip(sweep.objectives, trial.values, strict=True))
        won = trial.number in best or trials.get(name, {}).get("pareto", False)
        trials[name] = {
            "name": name,
            "folder": str(folder / TRIALS / name),
            "dials": trial.user_attrs["dials"],
            **values,
            "pareto": won,
        }
    attributes = [trial.user_attrs for trial in study.trials]
    failed = {found["name"]: found["error"] for found in attributes if "error" in found}
    lost = {name: error for name, error in failed.items() if name not in trials}
    return {"objectives": list(sweep.objectives), "trials": list(trials.values()), "failed": lost}
