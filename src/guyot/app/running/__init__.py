"""The jobs of the command line: a `RunConfig` in, a run folder out; a model in, a table out."""

from guyot.app.running.compared import is_compared, resume_compared, train_compared
from guyot.app.running.deploy import Delivery, Evaluation, evaluate_run, export_run
from guyot.app.running.family import Summary, is_family, resume_family, train_family
from guyot.app.running.folder import RunFolder, load_run
from guyot.app.running.profiled import profile_lines, profile_model, profile_summary
from guyot.app.running.start import resume, train
from guyot.app.running.watcher import Progress, Silent, Watcher

__all__ = [
    "Delivery",
    "Evaluation",
    "Progress",
    "RunFolder",
    "Silent",
    "Summary",
    "Watcher",
    "evaluate_run",
    "export_run",
    "is_compared",
    "is_family",
    "load_run",
    "profile_lines",
    "profile_model",
    "profile_summary",
    "resume",
    "resume_compared",
    "resume_family",
    "train",
    "train_compared",
    "train_family",
]
