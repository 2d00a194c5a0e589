"""What the jobs of several runs share: how each run begins or continues, and who hears of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guyot.app.config import TIMEOUT, RunConfig
from guyot.app.running.start import resume, train
from guyot.app.running.watcher import Watcher
from guyot.report import Outcome


@dataclass(frozen=True)
class Several:
    """Begin or continue runs in the folders of a folder.

    Attributes:
        path: of the folder that holds them; to begin, it does not exist or is empty.
        watcher: told how it goes, one run after the other.
        stop: as for `train`.
        tensorboard: as for `train`, in the folder of every run.
        timeout: as for `train`.
        trust: as for `resume`.
    """

    path: Path
    watcher: Watcher | None = None
    stop: Callable[[], bool] = lambda: False
    tensorboard: bool = False
    timeout: float = TIMEOUT
    trust: bool = False

    def begin_run(self, config: RunConfig, folder: Path, **more: Any) -> Outcome:
        """Begin one run."""
        more |= {"tensorboard": self.tensorboard, "timeout": self.timeout}
        return train(config, folder, self.watcher, self.stop, **more)

    def resume_run(self, folder: Path, **more: Any) -> Outcome:
        """Continue one run."""
        more |= {"timeout": self.timeout, "trust": self.trust}
        return resume(folder, self.watcher, self.stop, **more)
