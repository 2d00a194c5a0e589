"""What came out of a run: the full network and the smaller one, and what went."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from guyot.core.metric import ACCURACY, Metric, filed
from guyot.costs.timing import Latency
from guyot.report.describe import Width


@dataclass(frozen=True)
class Network:
    """The figures of one network.

    Attributes:
        macs: multiply-accumulates of one sample.
        params: trainable parameters.
        latency: forward pass by batch size; empty when not measured.
        test_score: by the metric of the run; None for a network that was not trained or tested.
    """

    macs: int
    params: int
    latency: Mapping[int, Latency] = field(default_factory=dict)
    test_score: float | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], metric: Metric) -> Network:
        """Read what `to_dict` wrote of a network."""
        latency = {int(batch): Latency(**found) for batch, found in values["latency"].items()}
        return cls(values["macs"], values["params"], latency, values[f"test_{metric.key}"])


@dataclass(frozen=True)
class Outcome:
    """A run that ended.

    Attributes:
        model: its name.
        data: name of the data set.
        image_shape: of the sample to which the MACs refer, (C, H, W) of an image.
        before: the full network; it was not trained, unless there was no discovery.
        after: the network of the run.
        validation_score: of the network after, on held-out training data.
        layers: names of all residual branches that could have gone.
        removed_layers: names of those that went.
        widths: of every unit group.
        epochs: complete ones.
        seconds: wall-clock of training with validation.
        device: where it ran.
        threads: of the CPU.
        interrupted: None, or the phase in which the run was stopped.
        test_images: how many samples the test scores count.
        metric: of the scores.
    """

    model: str
    data: str
    image_shape: tuple[int, ...]
    before: Network
    after: Network
    validation_score: float | None
    layers: tuple[str, ...]
    removed_layers: tuple[str, ...]
    widths: tuple[Width, ...]
    epochs: int
    seconds: float
    device: str
    threads: int
    interrupted: str | None = None
    test_images: int = 0
    metric: Metric = ACCURACY


def to_dict(outcome: Outcome) -> dict[str, Any]:
    """Return plain data for JSON, scores called by their metric."""
    metric, values = outcome.metric, dataclasses.asdict(outcome)
    networks = {name: filed(values[name], metric) for name in ("before", "after")}
    return {
        "status": "finished" if outcome.interrupted is None else "interrupted",
        **filed(values, metric),
        **networks,
        "metric": metric.key,
    }
