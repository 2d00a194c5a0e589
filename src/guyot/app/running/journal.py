"""What a run writes to `metrics.jsonl`, and what its watcher is told."""

from __future__ import annotations

import dataclasses

from guyot.app.recording import Extent, Lines
from guyot.app.running.folder import RunFolder
from guyot.app.running.watcher import Progress, Watcher
from guyot.discovery.discovery import Discovery
from guyot.surgery.record import Removal


class Journal(Lines):
    """Writes down how a run goes, and tells the watcher.

    Args:
        folder: of the run.
        watcher: told of epochs, removals and branches.
        discovery: None without one.
        extent: of the run.
    """

    def __init__(
        self, folder: RunFolder, watcher: Watcher, discovery: Discovery | None, extent: Extent
    ) -> None:
        super().__init__(folder.metric, discovery, extent)
        self._folder, self._watcher = folder, watcher

    def removals(self) -> list[Removal]:
        """Write a line for every removal that has none, and tell of it."""
        found = super().removals()
        for removal in found:
            self._watcher.removed(removal)
        return found

    def heard(self, step: int, loss: float) -> None:
        """The loss of a step of this epoch is known, counted from 1."""
        self._watcher.stepped(step, loss)

    def progressed(self, progress: Progress) -> None:
        """Another epoch is complete."""
        self.epoch(dataclasses.asdict(progress))
        self._watcher.epoch_ended(progress)

    def branched(self, step: int, target: float) -> None:
        """The member of a family with this target begins here."""
        self._folder.metric("branch", {"step": step, "target": target})
        self._watcher.branched(target)
