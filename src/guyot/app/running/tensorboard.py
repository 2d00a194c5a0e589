"""What a run writes down, for TensorBoard as well."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from guyot.core.packages import needed

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_SCALARS: dict[str, dict[str, str]] = {
    "steps": {
        "loss": "loss/training",
        "macs": "cost/macs",
        "params": "cost/params",
        "expected_complexity": "cost/expected complexity",
        "seconds": "seconds/step",
    },
    "epoch": {
        "undecided": "gates/undecided",
        "seconds": "seconds/epoch",
        "lr": "learning rate/lr",
    },
    "gates": {"nu": "gates/nu"},
}
"""Event -> value -> tag."""


class Board:
    """Turns the lines of `metrics.jsonl` into TensorBoard's scalars and histograms.

    The horizontal axis is optimiser steps. A histogram per unit group holds the keep probabilities
    of the units that are left.

    Args:
        folder: of the event file; made with the first line.

    Raises:
        MisconfiguredError: tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        with needed("tensorboard=True needs", "tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        self._open = partial(SummaryWriter, str(folder))
        self._groups: list[str] = []
        self._scores: dict[str, str] = {}

    @cached_property
    def _writer(self) -> SummaryWriter:
        return self._open()

    def metric(self, event: str, values: Mapping[str, Any]) -> None:
        """Write what has a picture; ignore everything else."""
        if event == "network":
            self._groups = [group["name"] for group in values.get("groups", ())]
            key = values["metric"]
            self._scores = {key: f"{key}/training", f"validation_{key}": f"{key}/validation"}
        scores = self._scores if event == "epoch" else {}
        for name, tag in (_SCALARS.get(event, {}) | scores).items():
            if values[name] is not None:
                self._writer.add_scalar(tag, values[name], values["step"])
        if event == "gates":
            for group, theta in zip(self._groups, values["theta"], strict=True):
                left = torch.tensor([value / 100 for value in theta if value >= 0])
                if len(left):
                    self._writer.add_histogram(f"keep probability/{group}", left, values["step"])

    def close(self) -> None:
        """Write what is still in memory."""
        self._writer.close()
