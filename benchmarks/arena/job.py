"""One run while it trains: what a method sees and changes."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from arena.task import Data, Task
from guyot import Distillation

Json = dict[str, Any]
_EXTRA = 500_000
"""Number of the epoch whose batches cuts are measured on; no run trains on it."""


@dataclass(frozen=True)
class Run:
    """One cell of the table.

    Attributes:
        task: name of the task.
        start: "scratch"; "checkpoint" of the dense run of the same seed; or "distilled": from that
            checkpoint, and its predictions are part of the loss.
        method: name of the method.
        target: share of the full network's MACs; 1 for the dense network.
        rounded: whether widths are multiples of eight.
        seed: of weights, batches and, where there is one, the teacher.
    """

    task: str
    start: str
    method: str
    target: float
    rounded: bool
    seed: int

    @property
    def name(self) -> str:
        """Unique, and the stem of the result file."""
        if self.method == "dense":
            return f"{self.task}/{self.start}-dense-s{self.seed}"
        widths = "rounded" if self.rounded else "exact"
        return f"{self.task}/{self.start}-{self.method}-{self.target:g}-{widths}-s{self.seed}"


class FromFull:
    """For methods whose runs begin with the full network."""

    def network(self, task: Task, run: Run, results: Path) -> nn.Module:
        """What training begins with."""
        return task.make(task.full)


def cross_entropy(output: Any, labels: Tensor) -> Tensor:
    """Mean cross entropy per label, in nats."""
    logits = getattr(output, "logits", output)
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


def loss_of(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy per label, in nats, and how many labels were predicted."""
    output = model(inputs)
    logits = getattr(output, "logits", output)
    return cross_entropy(output, labels), (logits.detach().argmax(-1) == labels).sum()


@dataclass
class Job:
    """The state of a run.

    Attributes:
        run: which one it is.
        task: its task.
        data: its data.
        device: where it trains.
        model: the network as it is now.
        optimizer: of its parameters.
        total: steps of the run.
        step: steps that are over.
        macs: MACs of one sample now.
        spent: sum of MACs of one sample over the steps that are over.
        teacher: part of the loss of training, if there is one.
    """

    run: Run
    task: Task
    data: Data
    device: torch.device
    model: nn.Module
    total: int
    lr: float
    warmup: float
    optimizer: torch.optim.Optimizer = field(init=False)
    step: int = 0
    macs: int = 0
    spent: int = 0
    started: float = field(default_factory=time.perf_counter)
    teacher: Distillation | None = None

    def __post_init__(self) -> None:
        self.take(self.model)

    def take(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Continue with another network, and with a new optimiser."""
        self.model = model.to(self.device)
        self.optimizer = optimizer or self.task.recipe.make_optimizer(self.model, self.lr)
        self.macs = self.task.macs(self.model)

    @property
    def example(self) -> Tensor:
        """A batch of two inputs."""
        return self.task.example().to(self.device)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch, on the device."""
        for inputs, labels in self.data.train.epoch(epoch):
            yield inputs.to(self.device), labels.to(self.device)

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch, nats: with the teacher's part if there is a teacher."""
        output = self.model(inputs)
        loss = cross_entropy(output, labels)
        return loss if self.teacher is None else self.teacher(loss, output, inputs)

    def measuring(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Training batches for measuring what a cut needs."""
        return islice(self.batches(_EXTRA), count)

    def set_rate(self) -> None:
        """Set the learning rate of this step."""
        rate = self.lr * self.task.recipe.factor(self.step, self.total, self.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate


@torch.no_grad()
def score(job: Job, part: str) -> Json:
    """Mean cross entropy (nats) and accuracy in evaluation mode on "validation" or "test"."""
    job.model.eval()
    loss, hits, count = 0.0, 0, 0
    for inputs, labels in getattr(job.data, part).epoch(0):
        inputs, labels = inputs.to(job.device), labels.to(job.device)
        mean, right = loss_of(job.model, inputs, labels)
        loss += float(mean) * labels.numel()
        hits += int(right)
        count += labels.numel()
    job.model.train()
    return {"loss": loss / count, "accuracy": hits / count}
