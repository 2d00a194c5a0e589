"""One training run: a `RunConfig` in, a run folder out."""

from guyot.running.folder import RunFolder, finite, load_run
from guyot.running.job import train
from guyot.running.watcher import Progress, Silent, Watcher

__all__ = [
    "Progress",
    "RunFolder",
    "Silent",
    "Watcher",
    "finite",
    "load_run",
    "train",
]
