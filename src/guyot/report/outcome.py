"""What came out of a run: the networks before and after, and what went."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guyot.costs.timing import Latency
from guyot.report.describe import Width


@dataclass(frozen=True)
class Network:
    """The figures of one network.

    Attributes:
        macs: multiply-accumulates of one image.
        params: trainable parameters.
        latency: forward pass by batch size; empty when not measured.
        test_accuracy: in [0, 1]; None for a network that was not trained or not tested.
    """

    macs: int
    params: int
    latency: Mapping[int, Latency] = field(default_factory=dict)
    test_accuracy: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Network:
        """Read what `to_dict` wrote of a network."""
        latency = {int(batch): Latency(**found) for batch, found in values["latency"].items()}
        return cls(values["macs"], values["params"], latency, values["test_accuracy"])


@dataclass(frozen=True)
class Outcome:
    """A run that ended.

    Attributes:
        model: its name.
        data: name of the data set.
        image_shape: (C, H, W) to which the MACs refer.
        before: the full network; it was not trained, unless there was no discovery.
        after: the network of the run.
        validation_accuracy: of the network after, on held-out training images.
        layers: names of all residual branches that could have gone.
        removed_layers: names of those that went.
        widths: of every unit group.
        epochs: complete ones.
        seconds: wall-clock of training with validation.
        device: where it ran.
        threads: of the CPU.
        interrupted: None, or the phase in which the run was stopped.
        test_images: how many the test accuracies count.
    """

    model: str
    data: str
    image_shape: tuple[int, ...]
    before: Network
    after: Network
    validation_accuracy: float | None
    layers: tuple[str, ...]
    removed_layers: tuple[str, ...]
    widths: tuple[Width, ...]
    epochs: int
    seconds: float
    device: str
    threads: int
    interrupted: str | None = None
    test_images: int = 0


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """Return plain data for JSON."""
    return {
        "status": "finished" if outcome.interrupted is None else "interrupted",
        **dataclasses.asdict(outcome),
    }
