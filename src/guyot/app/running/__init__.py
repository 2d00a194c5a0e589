"""The jobs of the command line: a `RunConfig` in, a run folder out; a model in, a table out."""

from collections.abc import Mapping
from typing import Any

from guyot.app.running.compared import ComparedRuns
from guyot.app.running.deploy import Delivery, Evaluation, evaluate_run, export_run
from guyot.app.running.family import FamilyRuns, Summary
from guyot.app.running.folder import RunFolder, load_run, raw_config
from guyot.app.running.profiled import profile_lines, profile_model, profile_summary
from guyot.app.running.start import resume, train
from guyot.app.running.watcher import Progress, Silent, Watcher

__all__ = [
    "ComparedRuns",
    "Delivery",
    "Evaluation",
    "FamilyRuns",
    "Progress",
    "RunFolder",
    "Silent",
    "Summary",
    "Watcher",
    "evaluate_run",
    "export_run",
    "load_run",
    "profile_lines",
    "profile_model",
    "profile_summary",
    "raw_config",
    "resume",
    "several_of",
    "train",
]


def several_of(config: Mapping[str, Any]) -> type[ComparedRuns | FamilyRuns] | None:
    """Return what trains several runs, as a `config.json` asks for; None where it is one run."""
    if config.get("targets"):
        return FamilyRuns
    return ComparedRuns if config.get("baseline") or config.get("seeds", 1) != 1 else None
