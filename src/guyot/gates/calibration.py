"""The most probable network and statistics that belong to it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.inputs import call_model, evaluation_mode
from guyot.core.torch_private import batch_norms
from guyot.core.types import Structures


def most_probable(theta: Tensor, alive: Tensor, structures: Structures) -> Tensor:
    """Return the gates of the most probable network: theta >= 1/2, and a unit in every group.

    Args:
        theta: keep probabilities, shape (gates,).
        alive: which gates may still be 1, bool, shape (gates,).
        structures: what there is.

    Returns:
        0/1, dtype and shape of `theta`.
    """
    likely = ((theta >= 0.5) & alive).to(theta)
    return without_empty_groups(likely[None], theta, alive, structures)[0]


def without_empty_groups(
    gates: Tensor, theta: Tensor, alive: Tensor, structures: Structures
) -> Tensor:
    """Switch the most probable unit on, in place, wherever no unit of a group is on.

    Args:
        gates: 0/1, shape (steps, gates).
        theta: keep probabilities, shape (gates,).
        alive: which gates may still be 1, bool, shape (gates,).
        structures: what there is.
    """
    for number in range(len(structures.groups)):
        where = structures.index.units(number)
        empty = ~gates[:, where].any(1)
        if bool(empty.any()):
            open_to = torch.where(alive[where], theta[where], -1)
            gates[empty, where.start + int(open_to.argmax())] = 1
    return gates


@contextlib.contextmanager
def calibrated(
    model: nn.Module,
    batches: Iterable[Any] | None,
    total: Callable[[Tensor], Tensor] | None = None,
) -> Generator[nn.Module]:
    """Switch the model to evaluation mode, with BatchNorm's statistics averaged over some batches.

    The gates of weights are those of evaluation mode while the statistics are collected. Modes and
    statistics come back afterwards. Without batches only the mode changes.

    Args:
        model: the network.
        batches: what it is called with: a tensor, a tuple of arguments or a mapping of them, each;
            those of this rank.
        total: sum over the ranks, of a vector, which is called once if `batches` is not None;
            None: there is one rank.
    """
    norms = [m for m in batch_norms(model) if m.track_running_stats]
    saved = [
        (m, m.momentum, {k: v.clone() for k, v in m.named_buffers(recurse=False)}) for m in norms
    ]

    @torch.no_grad()
    def restore() -> None:
        for norm, momentum, buffers in saved:
            norm.momentum = momentum
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)

    with evaluation_mode(model):
        try:
            if batches is not None and not _collect(model, norms, batches, total):
                restore()
            yield model
        finally:
            restore()


@torch.no_grad()
def average_statistics(
    norms: Sequence[nn.BatchNorm2d], batches: Iterable[Any], run: Callable[[Any], object]
) -> int:
    """Make running statistics means over batches; return the number of batches.

    Args:
        norms: in evaluation mode, as everything else; their momenta are gone afterwards.
        batches: of training data.
        run: takes a batch and runs the model on it.
    """
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.training = True
    count = 0
    for batch in batches:
        run(batch)
        count += 1
    for norm in norms:
        norm.training = False
    return count


@torch.no_grad()
def _collect(
    model: nn.Module,
    norms: Sequence[nn.BatchNorm2d],
    batches: Iterable[Any],
    total: Callable[[Tensor], Tensor] | None,
) -> int:
    """Make running statistics means over the batches of all ranks; return their number."""
    count = average_statistics(norms, batches, partial(_call, model))
    found = [s for norm in norms for s in (norm.running_mean, norm.running_var) if s is not None]
    if total is not None and found:
        weight = found[0].new_tensor([float(count)])
        pooled = total(torch.cat([weight, *(count * statistic for statistic in found)]))
        count = int(pooled[0])
        parts = (pooled[1:] / pooled[0].clamp(min=1)).split([len(s) for s in found])
        for statistic, part in zip(found, parts, strict=True):
            statistic.copy_(part)
    return count


def _call(model: nn.Module, batch: Any) -> None:
    call_model(model, batch if isinstance(batch, (tuple, list, Mapping)) else (batch,))
