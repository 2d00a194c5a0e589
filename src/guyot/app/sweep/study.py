"""The memory of a sweep: an Optuna study."""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guyot.app.sweep.plan import OBJECTIVES, Sweep, name_of
from guyot.core.errors import MisconfiguredError
from guyot.report import TRIALS

STALE = 600.0
"""Seconds without a sign of life after which a trial of another machine is queued again."""
_ASKED = {"COMPLETE", "RUNNING", "WAITING"}
"""States of trials that need not be asked for again."""


def optuna_module() -> Any:
    """The package, or an error that says how to get it."""
    try:
        return importlib.import_module("optuna")
    except ImportError as error:
        raise MisconfiguredError(
            f"a sweep needs the package {error.name!r}, which is not installed: "
            "pip install 'guyot[sweep]'"
        ) from error


def open_study(sweep: Sweep, folder: Path, storage: str | None) -> Any:
    """Open the sweep's study, or make it."""
    optuna = optuna_module()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(folder / 'sweep.db').absolute()}"
    study = _created(
        url,
        study_name="guyot" if storage is None else f"guyot-{folder.name}",
        directions=[OBJECTIVES[name] for name in sweep.objectives],
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
    """The study in that database; another machine may be making its tables at this moment.

    Raises:
        MisconfiguredError: the database cannot be used.
    """
    database_error = importlib.import_module("sqlalchemy.exc").SQLAlchemyError
    for patience in (0.5, 2.0, 0.0):
        try:
            return optuna_module().create_study(storage=url, load_if_exists=True, **choices)
        except (ImportError, ValueError, database_error) as error:
            if not (patience and isinstance(error, database_error)):
                raise MisconfiguredError(_unopened(url, error)) from error
            time.sleep(patience)
    raise AssertionError("not reached")


def _unopened(url: str, error: Exception) -> str:
    """Why a database cannot be used, without the password in its address."""
    shown = re.sub(r"(?<=:)[^:/@]+(?=@)", "***", url)
    cause = error.__cause__ or error
    reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
    return (
        f"storage={shown!r} cannot be used ({reason}): give the URL of a database, such "
        "as postgresql+psycopg2://user@host/name, install its driver, or leave storage out for "
        "SQLite in the folder"
    )


def _finished(study: Any) -> list[Any]:
    return [trial for trial in study.trials if trial.state.name == "COMPLETE"]


def requeue(study: Any) -> None:
    """Queue the trials again whose process is gone."""
    for trial in study.trials:
        if trial.state.name != "RUNNING" or _alive(trial.user_attrs):
            continue
        give_back(study, trial.number, trial.user_attrs)


def give_back(study: Any, number: int, attributes: Mapping[str, Any]) -> None:
    """End a trial without a result and queue it again."""
    study.tell(number, state=optuna_module().trial.TrialState.FAIL)
    if "name" in attributes:
        kept = {key: attributes[key] for key in ("name", "dials")}
        study.enqueue_trial(dict(kept["dials"]), user_attrs=kept)


def _alive(attributes: Mapping[str, Any]) -> bool:
    if attributes.get("host") != socket.gethostname():
        return time.time() - attributes.get("seen", 0.0) < STALE
    try:
        os.kill(attributes["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def enqueue(study: Any, sweep: Sweep) -> None:
    """Ask for what nobody has asked for."""
    known = {trial.user_attrs.get("name") for trial in study.trials if trial.state.name in _ASKED}
    for dials in sweep.configs():
        name = name_of(sweep.config(dials))
        if name not in known:
            study.enqueue_trial(dials, user_attrs={"name": name, "dials": dials})


def asked_before(study: Any, trial: Any) -> bool:
    """Whether an earlier trial is the same, say of a machine that asked at the same moment."""
    name = trial.user_attrs.get("name")
    return name is not None and any(
        other.user_attrs.get("name") == name
        for other in study.trials
        if other.number < trial.number and other.state.name in _ASKED
    )


def outcome(study: Any, sweep: Sweep, folder: Path) -> dict[str, Any]:
    """Finished trials as plain data, the winners marked."""
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
