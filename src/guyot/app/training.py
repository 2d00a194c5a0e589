"""The reference recipe and loop: SGD with Nesterov momentum, warm-up, cosine decay, bf16.

Everything is a small part that another loop may use on its own; `train_epoch` shows where a
`Discovery` goes into a loop: one `step()` after `optimizer.zero_grad()`.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from guyot.app.data.batches import on_device
from guyot.app.settings import (
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE_RATE,
    problems_of,
    setting,
)
from guyot.app.tasks import TASKS, Task
from guyot.core.errors import MisconfiguredError
from guyot.core.inputs import evaluation_mode
from guyot.discovery.distillation import Distillation


class Stepper(Protocol):
    """What the loop needs of a `Discovery`: to be told that an optimiser step is over."""

    def step(self, *, loss: Callable[[], Tensor]) -> Any:
        """Called once per optimiser step, after the gradients were cleared.

        ``loss`` runs the model on the same batch again.
        """
        ...


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are those of every CIFAR figure in `benchmarks/`.

    ``lr`` peak learning rate; ``momentum`` of Nesterov's SGD; ``weight_decay`` L2 coefficient on
    all parameters, BatchNorm included; ``warmup_epochs`` of linear growth from 0; ``decay`` to 0
    at the last step; ``label_smoothing`` in [0, 1); ``bf16`` autocast with float32 weights;
    ``teacher`` mixes what the full network predicts into the loss; ``task`` says what is learnt.
    """

    epochs: int = setting(24, rule=AT_LEAST_1)
    batch_size: int = 128
    lr: float = setting(0.1, rule=POSITIVE_RATE)
    momentum: float = setting(0.9, rule=BELOW_1)
    weight_decay: float = setting(5e-4, rule=NOT_NEGATIVE)
    warmup_epochs: float = setting(1.0, rule=NOT_NEGATIVE)
    decay: str = setting("cosine", choices=("cosine", "linear"))
    label_smoothing: float = setting(0.0, rule=BELOW_1)
    bf16: bool = True
    teacher: Distillation | None = None
    task: Task = TASKS["classification"]

    def __post_init__(self) -> None:
        if problems := problems_of(self):
            raise MisconfiguredError(*problems)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of a batch, from float32 outputs: that of the task."""
        return self.task.loss(outputs, targets, self.label_smoothing)


@dataclass(frozen=True)
class EpochResult:
    """What one epoch of training gave.

    ``loss`` mean training loss per sample, ``score`` of the training batches, by the metric of the
    task, ``seconds`` wall-clock, ``steps`` optimiser steps.
    """

    loss: float
    score: float
    seconds: float
    steps: int


class Tally:
    """Sums over the steps of an epoch, which may be continued in another process.

    ``steps`` optimiser steps so far; ``state_dict()`` holds tensors and numbers.
    """

    def __init__(self, task: Task, device: str | torch.device = "cpu") -> None:
        self.steps = 0
        self._task = task
        self._loss = torch.zeros((), device=device)
        self._sums = torch.zeros(task.sums, dtype=torch.float64, device=device)
        self._count = 0
        self._before = 0.0
        self._started = time.perf_counter()

    def add(self, loss: Tensor, sums: Tensor, count: int) -> None:
        """One step: mean ``loss`` (scalar) of ``count`` samples, and the task's ``sums``."""
        self._loss += loss * count
        self._sums += sums
        self._count += count
        self.steps += 1

    @property
    def seconds(self) -> float:
        """Wall-clock so far."""
        return self._before + time.perf_counter() - self._started

    @property
    def result(self) -> EpochResult:
        """Return what the steps gave."""
        if not self.steps:
            raise MisconfiguredError(
                "the epoch had no batch: batch_size exceeds the training images"
            )
        loss, score = float(self._loss) / self._count, self._task.score(self._sums.tolist())
        return EpochResult(loss, score, self.seconds, self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "loss": self._loss.clone(),
            "sums": self._sums.clone(),
            "count": self._count,
            "steps": self.steps,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` gave."""
        self._loss.copy_(state["loss"])
        self._sums.copy_(state["sums"])
        self._count, self.steps = int(state["count"]), int(state["steps"])
        self._before, self._started = float(state["seconds"]), time.perf_counter()


def lr_factor(recipe: Recipe, total_steps: int, steps_per_epoch: int) -> Callable[[int], float]:
    """Learning rate at a step as a fraction of the peak: linear warm-up, then decay to 0."""
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total_steps - 1)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min((step - warmup) / max(total_steps - warmup, 1), 1.0)
        return (
            0.5 * (1 + math.cos(math.pi * progress)) if recipe.decay == "cosine" else 1 - progress
        )

    return factor


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD with Nesterov momentum over all parameters of ``model``."""
    return torch.optim.SGD(
        model.parameters(),
        lr=recipe.lr,
        momentum=recipe.momentum,
        nesterov=recipe.momentum > 0,
        weight_decay=recipe.weight_decay,
        foreach=True,
    )


def make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The recipe's per-step schedule for ``recipe.epochs`` epochs."""
    total = recipe.epochs * steps_per_epoch
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(recipe, total, steps_per_epoch))


def prefers_bf16(device: str | torch.device = "cpu") -> bool:
    """Say whether bf16 autocast gains on ``device``: a CPU with bf16 matrix units, a recent GPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def train_step(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
) -> tuple[Tensor, Tensor]:
    """Forward and backward of one batch.

    ``images`` ``(N, C, H, W)``, ``labels`` int64 ``(N,)``, or what else the task learns from.
    Returns the detached mean loss (float32 scalar) and the task's sums.
    """
    loss, outputs = batch_loss(model, images, labels, recipe)
    loss.backward()
    return loss.detach(), recipe.task.count(outputs.detach().float(), labels)


def batch_loss(
    model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """Mean loss of one batch (float32 scalar), and the outputs of the model."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.bf16):
        logits = model(images)
        loss = recipe.loss(logits.float(), labels)
        if recipe.teacher is not None:
            loss = recipe.teacher(loss, logits, images)
    return loss, logits


def train_epoch(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    recipe: Recipe,
    *,
    discovery: Stepper | None = None,
    on_step: Callable[[int, Tensor], None] | None = None,
    tally: Tally | None = None,
) -> EpochResult:
    """Train on every batch once.

    ``on_step(step, loss)`` is told about every step, and the loss stays on the device: who reads it
    at once lets the device run out of work. ``tally`` holds the sums of the batches that came
    before these, when an epoch is continued.
    """
    device = next(model.parameters()).device
    model.train()
    tally = tally or Tally(recipe.task, device)
    for images, labels in batches:
        images, labels = on_device(images, device), on_device(labels, device)
        loss, sums = train_step(model, images, labels, recipe)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        if discovery is not None:
            discovery.step(loss=lambda: batch_loss(model, images, labels, recipe)[0])  # noqa: B023
        tally.add(loss, sums, len(labels))
        if on_step is not None:
            on_step(tally.steps, loss)
    return tally.result


@dataclass(frozen=True)
class Score:
    """``value`` by the metric of the task; ``loss`` of the task, mean per sample; ``count``."""

    value: float
    loss: float
    count: int


@torch.no_grad()
def score(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    bf16: bool = True,
    task: Task = TASKS["classification"],
    total: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Score:
    """Score and loss over all batches, in evaluation mode; the modes of modules are restored.

    ``total`` sums a vector over processes that have batches of their own each.
    """
    device = next(model.parameters()).device
    found = torch.zeros(task.sums + 2, dtype=torch.float64)
    with evaluation_mode(model):
        for images, labels in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                outputs = model(on_device(images, device))
            outputs, count = outputs.float().cpu(), len(labels)
            found[:-2] += task.count(outputs, labels)
            found[-2] += task.loss(outputs, labels) * count
            found[-1] += count
    *sums, loss, count = total(found.to(device)).tolist()
    return Score(task.score(sums), loss / count, round(count))
