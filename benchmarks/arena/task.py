"""What a task is: a network, its data, its recipe, and the structures that one may give it."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from guyot.app.models import count_macs

Shape = tuple[int, ...]
"""The widths of a network, in the order of its task; 0: that layer or block is absent."""

EIGHT = 8
"""What rounded widths are multiples of."""


class Source(Protocol):
    """Batches of inputs and labels in numbered epochs; an epoch depends on its number alone."""

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Data:
    """What one network is trained, chosen and tested on."""

    train: Source
    validation: Source
    test: Source


@dataclass(frozen=True)
class Recipe:
    """How to train, the same for every method of a task.

    ``steps`` optimiser steps from scratch, ``epoch`` of them make an epoch; ``fine_steps`` and
    ``fine_lr`` hold from a checkpoint. ``warmup`` is the share of the steps in which the learning
    rate grows; it falls to 0 by a cosine.
    """

    steps: int
    epoch: int
    batch_size: int
    lr: float
    fine_steps: int
    fine_lr: float
    weight_decay: float = 1e-4
    optimizer: str = "SGD"
    warmup: float = 0.05
    fine_warmup: float = 0.0

    def factor(self, step: int, total: int, warmup: float) -> float:
        """Learning rate at a step as a share of the peak."""
        first = round(warmup * total)
        if step < first:
            return (step + 1) / first
        return 0.5 * (1 + math.cos(math.pi * (step - first) / max(total - first, 1)))

    def make_optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum 0.9, or AdamW."""
        parameters = model.parameters()
        if self.optimizer == "AdamW":
            return torch.optim.AdamW(parameters, lr, weight_decay=self.weight_decay, foreach=True)
        return torch.optim.SGD(
            parameters, lr, 0.9, weight_decay=self.weight_decay, nesterov=True, foreach=True
        )


@dataclass(frozen=True)
class Task:
    """One network on one kind of data.

    Attributes:
        name: unique.
        full: the shape of the full network.
        make: the network of a shape, with fresh weights; a width of 0 leaves a block out.
        example: a batch of two inputs.
        stream: the data for a recipe and a seed.
        recipe: how all methods train.
        planted: the shape of the teacher that made the labels, where there is one.
        shares: targets, as shares of the full network's MACs; a planted task has its teacher's.
        half: the full widths of a network of half depth.
        grid: base shapes that somebody who cuts by hand would try, by name.
        branches: whether it has residual branches, which may go as a whole.
        quanta: what guyot rounds widths to, where they are rounded.
        unit: what all scaled widths are multiples of, such as the number of heads.
        stack: path of the list of blocks, where the shape is width and depth.
        cuttable: whether torch-pruning knows the network's layers.
        meta: whether the network can be counted without weights.
        steady: positions of a shape that a uniform network does not scale (depths, heads).
        reset: draws fresh weights for a network that was cut; None: `reset_parameters` of all
            its modules.
        known: MACs by shape, as far as they were counted.
    """

    name: str
    full: Shape
    make: Callable[[Shape], nn.Module]
    example: Callable[[], Tensor]
    stream: Callable[[Recipe, int], Data]
    recipe: Recipe
    half: Shape
    grid: dict[str, Shape]
    planted: Shape | None = None
    shares: tuple[float, ...] = (0.5, 0.25, 0.1)
    branches: bool = True
    quanta: int | Mapping[str, int] = EIGHT
    unit: int = 1
    stack: str | None = None
    cuttable: bool = True
    meta: bool = True
    steady: frozenset[int] = frozenset()
    reset: Callable[[nn.Module], None] | None = None
    known: dict[Shape, int] = field(default_factory=dict, compare=False, repr=False)

    def data(self, seed: int) -> Data:
        """The data of a seed."""
        return self.stream(self.recipe, seed)

    def macs(self, model: nn.Module) -> int:
        """MACs of one sample."""
        device = next(model.parameters()).device
        return count_macs(model, self.example().to(device))

    def macs_of(self, shape: Shape) -> int:
        """MACs of one sample of the network of a shape; no weights are drawn for that."""
        if shape not in self.known:
            with torch.random.fork_rng([]), torch.device("meta" if self.meta else "cpu"):
                self.known[shape] = count_macs(self.make(shape), self.example())
        return self.known[shape]

    @cached_property
    def full_macs(self) -> int:
        """MACs of one sample of the full network."""
        return self.macs_of(self.full)

    @cached_property
    def targets(self) -> tuple[float, ...]:
        """Shares of MACs to keep."""
        if self.planted is None:
            return self.shares
        return (round(self.macs_of(self.planted) / self.full_macs, 4),)

    def scaled(self, base: Shape, share: float, rounded: bool) -> Shape:
        """The widths of ``base`` times ``share``.

        Exact widths are rounded at another point in each layer, so that as ``share`` grows one
        layer grows at a time and any number of MACs is nearly met.
        """
        scaled: list[int] = []
        for place, width in enumerate(base):
            if place in self.steady or width == 0:
                scaled.append(width)
                continue
            coarse = rounded and self.full[place] >= 2 * EIGHT  # heads stay single
            unit = EIGHT if coarse else self.unit
            shift = (place + 0.5) / len(base)
            scaled.append(unit * max(1, math.floor(width * share / unit + shift)))
        return tuple(scaled)

    def fitted(self, base: Shape, target: float, rounded: bool) -> Shape:
        """``base`` scaled so that the MACs come closest to ``target`` of the full network's."""
        wanted = target * self.full_macs
        low, high = 0.0, 2.0
        while high - low > 1e-3:
            middle = (low + high) / 2
            if self.macs_of(self.scaled(base, middle, rounded)) < wanted:
                low = middle
            else:
                high = middle
        near = [self.scaled(base, share, rounded) for share in (low, high)]
        return min(near, key=lambda shape: abs(self.macs_of(shape) - wanted))

    def fresh(self, model: nn.Module) -> None:
        """Draw new weights for a network that was cut."""
        if self.reset is not None:
            self.reset(model)
            return
        for module in model.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()


def shorter(task: Task, steps: int, fine_steps: int) -> Task:
    """The task with fewer steps, for trials and tests."""
    recipe = replace(task.recipe, steps=steps, fine_steps=fine_steps, epoch=max(1, steps // 10))
    return replace(task, recipe=recipe)
