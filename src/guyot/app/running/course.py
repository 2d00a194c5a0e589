"""The course of a run: where it is, when it is saved, how it continues, when it has gone wrong."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guyot.app.config import RunConfig, interval_of
from guyot.app.data import Batches
from guyot.app.recording import environment
from guyot.app.running.folder import RunFolder
from guyot.app.running.journal import Journal
from guyot.app.running.late import Late
from guyot.app.training import Tally
from guyot.core.contents import POSITION
from guyot.core.errors import DivergedError, MisconfiguredError, StorageError
from guyot.core.parallel import Ranks
from guyot.core.schema import misfit
from guyot.core.trees import difference
from guyot.core.warning import warn
from guyot.discovery.checkpoint import Checkpointer
from guyot.discovery.family import Family

_MAY_CHANGE = {
    *("baseline", "checkpoint_every", "data_workers", "keep"),
    *("latency_table", "max_nan_steps", "on_corrupt", "seeds"),
}
"""Settings that do not change what comes out, or whose effect is checked: what a latency table
holds, by the discovery; which images there are, by their fingerprint."""


class Course:
    """Where a run is, and its checkpoints: one after every epoch, more in between.

    A network with a weight that is not finite is never saved, so that what is kept is good.

    Args:
        config: says how often, and how many steps without a finite loss are too many.
        batches: of the training images.
        checkpoints: holds the parts of the run.
        model: the network that trains.
        folder: of the run.
        journal: of the run.
        ranks: that train together; rank 0 says when there is something to save.
        family: of the run whose target is the smallest; None: it keeps no branches.

    Attributes:
        epoch: complete epochs.
        tally: of the present epoch.
    """

    def __init__(
        self,
        config: RunConfig,
        batches: Batches,
        checkpoints: Checkpointer,
        model: nn.Module,
        folder: RunFolder,
        journal: Journal,
        ranks: Ranks,
        family: Family | None = None,
    ) -> None:
        self._config, self._batches, self._checkpoints = config, batches, checkpoints
        self._model, self._folder, self._journal = model, folder, journal
        self._ranks, self._family = ranks, family
        self._steps, self._seconds = interval_of(config.checkpoint_every)
        self._data = batches.split.fingerprint()
        self._before, self._started = 0.0, time.perf_counter()
        self._saved = 0, time.monotonic()
        self._losses = Late()
        self._bad = 0
        self.epoch = 0
        self.tally = Tally(batches.task, config.device)

    @property
    def step(self) -> int:
        """Optimiser steps so far."""
        return self.epoch * len(self._batches) + self.tally.steps

    @property
    def seconds(self) -> float:
        """Wall-clock of the run so far, without what was lost when it was killed."""
        return self._before + time.perf_counter() - self._started

    @property
    def overdue(self) -> bool:
        """Say whether the last checkpoint is older than it should be, by the clock of this rank."""
        return time.monotonic() - self._saved[1] >= self._seconds

    def stepped(self, loss: Tensor, overdue: bool) -> None:
        """An optimiser step is over; its loss is read one step later.

        Args:
            loss: of all ranks, a scalar on the device.
            overdue: whether a rank is.

        Raises:
            DivergedError: the losses of the steps before were NaN or inf.
        """
        self._hear(self._losses.give(loss.reshape(1)), self.tally.steps - 1)
        if self._family is not None and self._family.passed(self._checkpoints):
            self._branch(self._family)
        if overdue or self.step - self._saved[0] >= self._steps:
            self.save()

    def settle(self) -> None:
        """Wait for the loss of the last step.

        Raises:
            DivergedError: it and those of the steps before were NaN or inf.
        """
        self._hear(self._losses.take(), self.tally.steps)

    def _hear(self, losses: list[float] | None, step: int) -> None:
        """Take in the loss of a step of this epoch, if there is one."""
        for loss in losses or ():
            self._journal.heard(step, loss)
            self._bad = 0 if math.isfinite(loss) else self._bad + 1
            if self._bad >= self._config.max_nan_steps:
                raise DivergedError(
                    f"the loss was NaN or inf in {self._bad} steps in a row, the last of them step "
                    f"{self.epoch * len(self._batches) + step}: choose a smaller learning rate "
                    f"than lr={self._config.lr:g}; "
                    f"{self._good}"
                )

    def _branch(self, family: Family) -> None:
        """Let members of the family begin here, unless the network is not sound."""
        self.settle()
        if self._bad:
            return

        def position(target: float) -> dict[str, Any]:
            return self._position(dataclasses.replace(self._config, target=target))

        for target in family.keep(self._checkpoints, self.step, position):
            self._journal.branched(self.step, target)

    def next_epoch(self) -> None:
        """An epoch is complete, with its lines in the journal."""
        self.epoch += 1
        self.tally = Tally(self._batches.task, self._config.device)
        self.save()

    def save(self) -> None:
        """Write a checkpoint, unless the network is not sound or there is one of this step.

        Warns:
            GuyotWarning: it cannot be written; the run continues with the one before.
        """
        self.settle()
        if not self._config.keep or self._bad:
            return
        missing = self.step > self._saved[0] or not self._checkpoints.checkpoints
        if self._ranks.told(missing and _finite(self._model)):
            try:
                self._checkpoints.save(self.step, self._position(self._config))
            except StorageError as error:
                warn(
                    f"no checkpoint at step {self.step}: {error}; {self._good}",
                )
        self._saved = self.step, time.monotonic()

    @property
    def _good(self) -> str:
        there = self._checkpoints.checkpoints
        return f"the last good checkpoint is {there[-1]}" if there else "there is no checkpoint"

    def _position(self, config: RunConfig) -> dict[str, Any]:
        return {
            "config": _deciding(config.to_dict()),
            "data": self._data,
            "epoch": self.epoch,
            "tally": self.tally.state_dict(),
            "journal": self._journal.state_dict(),
            "lines": self._folder.lines,
            "seconds": self.seconds,
        }

    def resume(self, checkpoint: Path | None) -> None:
        """Continue from a checkpoint, the latest if it is None, or from the start without any.

        Raises:
            MisconfiguredError: it does not fit the run.
        """
        position = self._checkpoints.resume(checkpoint)
        if position is None:
            self._folder.restart(0, environment())
        else:
            self._continue(position, checkpoint)
        if self._family is not None:
            self._family.resume(self._checkpoints, self.step)

    def _continue(self, position: Mapping[str, Any], checkpoint: Path | None) -> None:
        path = checkpoint or self._checkpoints.checkpoints[-1]
        config = _deciding(self._config.to_dict())
        if found := difference(config, position.get("config"), values=True):
            raise MisconfiguredError(
                f"{path}: it was written with another configuration: {found}; restore config.json"
            )
        if position.get("data") != self._data:
            raise MisconfiguredError(
                f"{path}: the training images of data={self._config.data!r} are not those of the "
                "run: restore them, or start a new run"
            )
        if wrong := misfit(position, POSITION):
            raise MisconfiguredError(f"{path}: its position is not that of a run: {wrong}")
        self.epoch, self._before = position["epoch"], float(position["seconds"])
        try:
            self.tally.load_state_dict(position["tally"])
            self._journal.load_state_dict(position["journal"])
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise MisconfiguredError(
                f"{path}: its position is not that of a run ({type(error).__name__}: {error})"
            ) from error
        self._folder.restart(position["lines"], environment())
        self._saved = self.step, time.monotonic()


def _deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in _MAY_CHANGE}


def _finite(model: nn.Module) -> bool:
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
