"""Who looks on while a run goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from guyot.app.config import RunConfig
from guyot.surgery.record import Removal


@dataclass(frozen=True)
class Progress:
    """Where a run is, after an epoch.

    Attributes:
        epoch: complete epochs.
        step: optimiser steps so far.
        loss: mean training loss.
        score: on the training batches; of sampled networks during discovery.
        validation_score: of the most probable network.
        macs: multiply-accumulates of one sample.
        params: trainable parameters.
        undecided: structures whose keep probability is neither 0 nor 1.
        expected_complexity: expected share of the full network's complexity.
        phase: "warm-up", "discovery", "fine-tune", or "dense" without discovery.
        lr: learning rate of the next step.
        seconds: wall-clock of the epoch with validation.
    """

    epoch: int
    step: int
    loss: float
    score: float
    validation_score: float
    macs: int
    params: int
    undecided: int
    expected_complexity: float
    phase: str
    lr: float
    seconds: float


class Watcher(Protocol):
    """Who wants to know how a run goes."""

    def started(self, config: RunConfig, steps: int, macs: int, params: int) -> None:
        """Training begins, `steps` per epoch, with a network of so many MACs and parameters."""

    def resumed(self, step: int) -> None:
        """The run continues after so many of all optimiser steps."""

    def stepped(self, step: int, loss: float) -> None:
        """One more optimiser step; counted from 1 in every epoch."""

    def removed(self, removal: Removal) -> None:
        """Structures went for good."""

    def branched(self, target: float) -> None:
        """The member of a family with a larger target begins here, and will be trained later."""

    def epoch_ended(self, progress: Progress) -> None:
        """One more epoch is complete."""

    def measuring(self) -> None:
        """Training is over; the score on test data and latency come next."""


class Silent(Watcher):
    """Wants to know nothing."""
