"""One training run: a `RunConfig` in, a run folder out."""

from guyot.running.deploy import Delivery, Evaluation, evaluate_run, export_run
from guyot.running.folder import RunFolder, load_run
from guyot.running.job import resume, train
from guyot.running.watcher import Progress, Silent, Watcher

__all__ = [
    "Delivery",
    "Evaluation",
    "Progress",
    "RunFolder",
    "Silent",
    "Watcher",
    "evaluate_run",
    "export_run",
    "load_run",
    "resume",
    "train",
]
