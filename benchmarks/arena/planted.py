"""Tasks whose right structure is known: a teacher with that structure made the labels."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from arena.labels import data_of
from arena.networks import (
    INPUTS,
    PIXELS,
    TOKENS,
    VOCABULARY,
    Transformer,
    convolutional,
    perceptron,
    residual,
)
from arena.task import EIGHT, Recipe, Shape, Task

RECIPE = Recipe(steps=4_000, epoch=400, batch_size=128, lr=0.1, fine_steps=1_200, fine_lr=0.02)
"""Chosen for the dense perceptrons, on validation data."""


def vectors(count: int, generator: torch.Generator) -> Tensor:
    """Independent normal inputs."""
    return torch.randn(count, INPUTS, generator=generator)


def images(count: int, generator: torch.Generator) -> Tensor:
    """Normal noise with neighbours alike."""
    small = torch.randn(count, 3, PIXELS // 2, PIXELS // 2, generator=generator)
    fine = torch.randn(count, 3, PIXELS, PIXELS, generator=generator)
    return small.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.5 * fine


def sentences(count: int, generator: torch.Generator) -> Tensor:
    """Independent tokens."""
    return torch.randint(VOCABULARY, (count, TOKENS), generator=generator)


Draw = Callable[[int, torch.Generator], Tensor]


def planted(
    name: str,
    make: Callable[[Shape], nn.Module],
    draw: Draw,
    shapes: tuple[Shape, Shape, Shape],
    grid: dict[str, Shape],
    recipe: Recipe = RECIPE,
    *,
    branches: bool = True,
) -> Task:
    """A task from the shapes of the full network, of one half as deep, and of the teacher."""
    full, half, teacher = shapes
    return Task(
        name=name,
        full=full,
        make=make,
        example=lambda: draw(2, torch.Generator().manual_seed(0)),
        stream=partial(data_of, partial(make, teacher), draw),
        recipe=recipe,
        half=half,
        grid=grid,
        planted=teacher,
        branches=branches,
    )


def planted_perceptron(name: str, width: int, teacher: Shape) -> Task:
    """A perceptron of equal widths on the labels of one with the widths of ``teacher``."""
    depth = len(teacher)

    def deep(layers: int) -> Shape:
        return (width,) * layers + (0,) * (depth - layers)

    ramp = [0.5 + place / max(depth - 1, 1) for place in range(depth)]
    grid = {f"depth-{layers}": deep(layers) for layers in range(1, depth)} | {
        "narrowing": tuple(round(width * share) for share in reversed(ramp)),
        "widening": tuple(round(width * share) for share in ramp),
        "bottleneck": tuple(width // (1 + place % 2) for place in range(depth)),
    }
    shapes = (deep(depth), deep((depth + 1) // 2), teacher)
    return planted(name, perceptron, vectors, shapes, grid, branches=False)


def planted_residual(name: str, width: int, teacher: Shape) -> Task:
    """A residual perceptron of equal widths; blocks of width 0 in ``teacher`` are not needed."""
    blocks = len(teacher) - 1

    def deep(kept: int) -> Shape:
        return (width,) * (1 + kept) + (0,) * (blocks - kept)

    grid = {f"depth-{kept}": deep(kept) for kept in range(1, blocks, 2)} | {
        "narrow-branches": (width,) + (width // 2,) * blocks,
        "narrow-stream": (width // 2,) + (width,) * blocks,
    }
    shapes = (deep(blocks), deep((blocks + 1) // 2), teacher)
    return planted(name, residual, vectors, shapes, grid)


def _convolutional() -> Task:
    full = (16,) * 4 + (32,) * 4
    grid = {
        "depth-1-1": (16, 16, 0, 0, 32, 32, 0, 0),
        "depth-1-3": (16, 16, 0, 0, 32, 32, 32, 32),
        "depth-3-1": (16, 16, 16, 16, 32, 32, 0, 0),
        "narrow-branches": (16, 8, 8, 8, 32, 16, 16, 16),
        "narrow-early": (8, 8, 8, 8, 32, 32, 32, 32),
    }
    shapes = (full, (16, 16, 16, 0, 32, 32, 0, 0), (12, 10, 0, 5, 24, 0, 28, 0))
    recipe = Recipe(steps=3_000, epoch=300, batch_size=64, lr=0.1, fine_steps=900, fine_lr=0.02)
    return planted("cnn", convolutional, images, shapes, grid, recipe)


def _transformer() -> Task:
    full = (32,) + (4, 64) * 4
    grid = {
        "depth-1": (32,) + (4, 64) + (0, 0) * 3,
        "depth-3": (32,) + (4, 64) * 3 + (0, 0),
        "attention-early": (32,) + (4, 64) * 2 + (0, 64) * 2,
        "small-mlps": (32,) + (4, 32) * 4,
    }
    shapes = (full, (32,) + (4, 64) * 2 + (0, 0) * 2, (32, 2, 16, 0, 40, 1, 0, 0, 0))
    recipe = Recipe(
        steps=3_000,
        epoch=300,
        batch_size=64,
        lr=2e-3,
        fine_steps=900,
        fine_lr=5e-4,
        weight_decay=0.01,
        optimizer="AdamW",
    )
    task = planted("transformer", Transformer, sentences, shapes, grid, recipe)
    return replace(task, quanta={"*": EIGHT, "*.query": 1})


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        planted_perceptron("mlp-4x80", 80, (10, 64, 10, 40)),
        planted_perceptron("mlp-5x72", 72, (36, 9, 28, 9, 56)),
        planted_residual("residual", 48, (24, 40, 0, 16, 0, 0, 32, 0, 0)),
        _convolutional(),
        _transformer(),
    )
}


def drawn(number: int) -> Task:
    """A planted task that ``number`` draws: its kind, depth, width and the teacher's widths."""
    generator = torch.Generator().manual_seed(90_001 + number)

    def pick(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    kind, name = pick(0, 1), f"drawn-{number}"
    depth, width = pick(3, 6), 8 * pick(6, 12)
    while True:
        shares = torch.rand(depth, generator=generator) * 2.4 - 2.5
        teacher = [max(6, round(width * 2 ** float(share))) for share in shares]
        if kind:
            gone = torch.rand(depth - 1, generator=generator) < 0.5
            teacher[1:] = [0 if off else w for off, w in zip(gone, teacher[1:], strict=True)]
        build = planted_residual if kind else planted_perceptron
        task = build(name, width, tuple(teacher))
        if 0.08 <= task.targets[0] <= 0.35:
            return task
