"""A small training loop with everything a checkpoint has to hold."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases import CASES
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from guyot import Checkpointer, Discovery, DiscoveryConfig

STEPS = 100
Optimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
}


class Run:
    """A model, an average of it, an optimiser, a schedule and a discovery."""

    def __init__(self, name: str, optimizer: str = "sgd", **dials: Any) -> None:
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - the global generator is part of a checkpoint
        torch.manual_seed(0)
        self.name = name
        self.model = CASES[name].build().train().to(memory_format=torch.channels_last)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, STEPS)
        settings = {
            "target": 0.4,
            "total_steps": STEPS,
            "config": DiscoveryConfig(round_to=1, removals=8),
        }
        self.discovery = Discovery(
            self.model, (CASES[name].inputs(),), self.optimizer, **(settings | dials)
        )
        self.discovery.follow(self.average)

    def train(self, start: int, stop: int) -> None:
        for step in range(start, stop):
            x, y = batch(self.name, step)
            functional.cross_entropy(self.model(x).flatten(1)[:, :3], y).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            self.discovery.step()
            self.average.update_parameters(self.model)

    def states(self) -> dict[str, Any]:
        parts = {
            "discovery": self.discovery,  # first: the others' states fit what it leaves
            "model": self.model,
            "average": self.average,
            "optimizer": self.optimizer,
            "schedule": self.schedule,
        }
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, states: dict[str, Any]) -> None:
        for name, state in states.items():
            getattr(self, name).load_state_dict(state)


def batch(name: str, step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, *CASES[name].shape[1:], generator=generator)
    return x, x.flatten(1)[:, :3].argmax(1)


def same(left: Any, right: Any) -> bool:
    """Trees are equal to the last bit."""
    if isinstance(left, Tensor):
        return isinstance(right, Tensor) and torch.equal(left, right) and left.dtype is right.dtype
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        pairs = zip(left, right, strict=True)
        return len(left) == len(right) and all(same(*pair) for pair in pairs)
    return left == right


def checkpointer(run: Run, folder: Path, **choices: Any) -> Checkpointer:
    parts = {"average": run.average, "optimizer": run.optimizer, "schedule": run.schedule}
    return Checkpointer(folder, run.model, run.discovery, **(parts | choices))
