"""Distillation: the network that gets smaller also learns what the full one predicts."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guyot.core.condition import Condition, is_number, require
from guyot.core.errors import MisconfiguredError

_WEIGHT = Condition(
    lambda weight: is_number(weight) and 0 <= weight <= 1, "give the teacher's share, from 0 to 1"
)
_TEMPERATURE = Condition(
    lambda temperature: is_number(temperature) and 0 < temperature < float("inf"),
    "give a positive number, such as 2",
)


class Distillation:
    """Mix the loss with the distance to the full network's predictions.

        distillation = guyot.Distillation(model)  # the trained network, before it gets smaller
        discovery = guyot.Discovery(model, (images,), optimizer, total_steps=1000, target=0.5)

        def loss():
            logits = model(images)
            return distillation(F.cross_entropy(logits, labels), logits, images)

    The result is `(1 - weight) * loss + weight * T**2 * KL(teacher || student)`, where both
    distributions are softmaxes of logits over the temperature T (Hinton et al., arXiv:1503.02531).
    It is a mean over samples, in nats, as `Discovery` needs it.

    The teacher is a copy: it takes the memory of the weights once more. Every call runs it forward
    once, without gradients, which is about a third of what a step of the full network takes.

    Args:
        teacher: the full network, trained; it is copied, frozen, and predicts in evaluation mode.
        weight: share of the teacher in the loss, in [0, 1].
        temperature: T > 0; the higher, the more the teacher's small probabilities count.
        dim: of the classes in the logits; -1 for language models, 1 for maps of classes.

    Raises:
        MisconfiguredError: a setting is out of range.

    Example:
        >>> teacher = nn.Linear(2, 3)
        >>> inputs = torch.randn(4, 2)
        >>> logits = teacher(inputs)
        >>> loss = F.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))
        >>> mixed = Distillation(teacher, weight=0.25)(loss, logits, inputs)
        >>> torch.allclose(mixed, 0.75 * loss)  # the student agrees with the teacher
        True
    """

    def __init__(
        self,
        teacher: nn.Module,
        *,
        weight: float = 0.5,
        temperature: float = 2.0,
        dim: int = -1,
    ) -> None:
        require("weight", weight, _WEIGHT)
        require("temperature", temperature, _TEMPERATURE)
        self.weight, self.temperature, self.dim = weight, temperature, dim
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)

    def __call__(self, loss: Tensor, outputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the mixed loss of a batch.

        Args:
            loss: of the student with the labels, nats.
            outputs: the student's logits, or an output that has `logits`.
            *args: what the teacher is called with.
            **kwargs: what the teacher is called with, by name.

        Returns:
            nats, a scalar of the dtype of `loss`.

        Raises:
            MisconfiguredError: the outputs hold no logits, or those of teacher and student differ
                in shape.
        """
        with torch.no_grad():
            taught = _logits(self.teacher(*args, **kwargs))
        logits = _logits(outputs)
        if taught.shape != logits.shape:
            raise MisconfiguredError(
                f"the student's logits have the shape {tuple(logits.shape)} and the teacher's "
                f"{tuple(taught.shape)}: call both with the same batch"
            )
        student = F.log_softmax(logits.float() / self.temperature, self.dim)
        target = F.log_softmax(taught.float() / self.temperature, self.dim)
        divergence = F.kl_div(student, target, reduction="none", log_target=True).sum(self.dim)
        distance = self.temperature**2 * divergence.mean()
        return (1 - self.weight) * loss + self.weight * distance.to(loss.dtype)


def _logits(outputs: Any) -> Tensor:
    found = getattr(outputs, "logits", outputs)
    if not isinstance(found, Tensor):
        raise MisconfiguredError(
            f"the outputs are a {type(outputs).__name__} without logits: give the tensor of logits"
        )
    return found
