"""What `guyot train` does when a launcher started it several times: rank 0 writes, all train."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from guyot.app.config import RunConfig
from guyot.app.data.batches import on_device
from guyot.app.running.folder import ReadOnlyFolder, RunFolder
from guyot.app.running.late import Late
from guyot.app.running.setup import resolve
from guyot.app.running.tensorboard import Board
from guyot.core.errors import MisconfiguredError
from guyot.core.parallel import Ranks


def open_folder(ranks: Ranks, path: Path, tensorboard: bool, *, resumed: bool = False) -> RunFolder:
    """The run folder; on all ranks but the first one that nothing is written to."""
    if ranks.rank:
        return ReadOnlyFolder(path)
    return RunFolder(path, Board(path / "tensorboard") if tensorboard else None, resumed=resumed)


def resolve_together(config: RunConfig, ranks: Ranks) -> RunConfig:
    """`resolve`, with what rank 0 measured.

    Raises:
        MisconfiguredError: as `resolve`; or batches cannot be split evenly over the ranks.
    """
    if config.batch_size % ranks.size:
        raise MisconfiguredError(
            f"batch_size={config.batch_size} images per step cannot be split evenly over "
            f"{ranks.size} processes: start {_divisors(config.batch_size)} processes, or a new run "
            f"with a multiple of {ranks.size}"
        )
    measured = config.round_to is None and config.cuts
    with ranks.together():
        others = measured and ranks.rank
        config = resolve(dataclasses.replace(config, round_to=1) if others else config)
    if measured:
        found = torch.tensor([config.round_to or 1], device=config.device)
        config = dataclasses.replace(config, round_to=int(ranks.first(found)))
    return config


def _divisors(number: int) -> str:
    """Name the numbers of processes, up to some hundred, that share batches evenly.

    Example:
        >>> _divisors(12)
        '1, 2, 3, 4, 6 or 12'
    """
    *found, last = [str(n) for n in range(1, min(number, 512) + 1) if number % n == 0]
    return f"{', '.join(found)} or {last}" if found else last


def resuming(path: str | Path) -> str:
    """Say how a run is continued."""
    return (
        f"guyot train --resume {path} continues it, with any number of processes that divides "
        "batch_size"
    )


def distributed(model: nn.Module, ranks: Ranks) -> nn.Module:
    """The model in `DistributedDataParallel` if there are several ranks.

    Parameters that a step does not use are looked for, in models with skipped branches for
    instance. Then buckets stay in one order, too, and a resumed run adds up as it did before.
    """
    if ranks.size == 1:
        return model
    return DistributedDataParallel(model, find_unused_parameters=True)


def share_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Let buffers (running statistics) be those of rank 0."""
    if ranks.size > 1:
        for buffer in model.buffers():
            buffer.copy_(ranks.first(buffer))


def average_buffers(model: nn.Module, ranks: Ranks) -> None:
    """Let running statistics be the mean of those that the ranks took of their own samples."""
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(ranks.mean(buffer))


class SharedStep:
    """What all ranks know of a step: the loss over all of its images, and what some rank wants.

    Args:
        ranks: who agrees.
        stop: whether this rank wants to stop.
    """

    def __init__(self, ranks: Ranks, stop: Callable[[], bool]) -> None:
        self._ranks, self._stop = ranks, stop
        self._wishes = Late()
        self._agreed = self._overdue = False

    def step(self, loss: Tensor, overdue: bool) -> tuple[Tensor, bool]:
        """Send one message of 3 numbers.

        Args:
            loss: of this rank's images, nats, a scalar on the device.
            overdue: whether this rank's last checkpoint is too old.

        Returns:
            Mean loss over the ranks, on the device, and whether any was overdue a step ago.
        """
        if self._ranks.size == 1:
            return loss, overdue
        wishes = torch.tensor([float(self._stop()), float(overdue)])
        mine = torch.cat([loss.reshape(1), on_device(wishes, loss.device)])
        mean = self._ranks.mean(mine)
        stop, late = self._wishes.give(mean[1:]) or (0, 0)
        self._agreed = stop > 0
        # a rank says it twice, since it hears the answer one step late
        self._overdue = late > 0 and not self._overdue
        return mean[0], self._overdue

    def __call__(self) -> bool:
        """Say whether to stop; the same on all ranks between two steps."""
        return self._stop() if self._ranks.size == 1 else self._agreed
