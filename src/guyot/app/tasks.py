"""What is learnt from samples: a class, a number, or the next character."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from guyot.core.metric import ACCURACY, BITS, R2, Metric


class Task(Protocol):
    """How outputs and targets become a loss and a score.

    The score of many batches is made from sums over their samples, so that it does not depend on
    how samples are divided into batches and processes.
    """

    metric: Metric
    sums: int
    """How many sums there are."""

    def aligned(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return one row of outputs per target."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        ...

    def count(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sums over a batch, float64."""
        ...

    def score(self, sums: Sequence[float]) -> float:
        """Return the score from sums over all samples."""
        ...

    def shape(self, inputs: Tensor, outputs: int) -> tuple[int, ...]:
        """Return the shape that a network's output must have."""
        ...


class Classification:
    """Logits (N, classes) and labels int64 (N,); scored by accuracy."""

    metric, sums = ACCURACY, 2

    def aligned(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return both as they are."""
        return outputs, targets

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the mean cross entropy, nats."""
        return F.cross_entropy(outputs, targets, label_smoothing=smoothing)

    def count(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return how many predictions are right, and how many there are."""
        right = (outputs.argmax(1) == targets).sum()
        return torch.stack([right, torch.full_like(right, len(targets))]).double()

    def score(self, sums: Sequence[float]) -> float:
        """Return the share that is right."""
        right, count = sums
        return right / count

    def shape(self, inputs: Tensor, outputs: int) -> tuple[int, ...]:
        """Return (N, classes)."""
        return (len(inputs), outputs)


class Regression:
    """Predictions (N, 1) and numbers float32 (N,); scored by R²."""

    metric, sums = R2, 4

    def aligned(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return both as (N,)."""
        return outputs.squeeze(1), targets

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the mean squared error."""
        return F.mse_loss(*self.aligned(outputs, targets))

    def count(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sums of squared errors, targets, their squares, and ones."""
        predicted, y = self.aligned(outputs.double(), targets.double())
        error = predicted - y
        ones = torch.ones_like(y)
        return torch.stack([error.square().sum(), y.sum(), y.square().sum(), ones.sum()])

    def score(self, sums: Sequence[float]) -> float:
        """Return the share of the targets' variance that is explained, 1 - SSE / SST.

        Example:
            >>> y = torch.tensor([1.0, 2.0, 3.0])
            >>> Regression().score(Regression().count(y[:, None], y).tolist())
            1.0
        """
        squares, total, power, count = sums
        around = power - total**2 / count
        if around <= 0:  # all targets are equal
            return 1.0 if squares == 0 else 0.0
        return 1 - squares / around

    def shape(self, inputs: Tensor, outputs: int) -> tuple[int, ...]:
        """Return (N, 1)."""
        return (len(inputs), outputs)


class NextCharacter:
    """Logits (N, T, characters) and the next characters int64 (N, T); scored by bits each."""

    metric, sums = BITS, 2

    def aligned(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N T, characters) and (N T,)."""
        return outputs.flatten(0, 1), targets.flatten()

    def loss(self, outputs: Tensor, targets: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the mean cross entropy of a character, nats."""
        return F.cross_entropy(*self.aligned(outputs, targets), label_smoothing=smoothing)

    def count(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of nats, and how many characters there are."""
        nats = F.cross_entropy(*self.aligned(outputs, targets), reduction="sum")
        return torch.stack([nats, torch.full_like(nats, targets.numel())]).double()

    def score(self, sums: Sequence[float]) -> float:
        """Return bits per character."""
        nats, count = sums
        return nats / count / math.log(2)

    def shape(self, inputs: Tensor, outputs: int) -> tuple[int, ...]:
        """Return (N, T, characters)."""
        return (*inputs.shape, outputs)


TASKS: dict[str, Task] = {
    "classification": Classification(),
    "regression": Regression(),
    "text": NextCharacter(),
}
