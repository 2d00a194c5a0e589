"""How long a forward pass really takes, several networks side by side."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass of a batch, milliseconds.

    Attributes:
        median: of the repetitions.
        low: first quartile.
        high: third quartile.
        repetitions: how many were timed.
    """

    median: float
    low: float
    high: float
    repetitions: int


def measure(
    models: Mapping[str, nn.Module],
    image_shape: Sequence[int],
    batch_size: int,
    *,
    seconds: float = 2.0,
    threads: int | None = None,
) -> dict[str, Latency]:
    """Time forward passes in evaluation mode, float32, `channels_last`.

    The networks take turns, so that whatever else the machine does meets all of them alike.
    Modes and the number of threads come back afterwards.

    Args:
        models: networks by name, all on one device.
        image_shape: (C, H, W) of one image.
        batch_size: images per pass.
        seconds: about how long to measure; at least 5 repetitions of each.
        threads: of the CPU; None leaves them.

    Returns:
        Latency by name.
    """
    device = next(next(iter(models.values())).parameters()).device
    images = torch.randn(batch_size, *image_shape, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    times: dict[str, list[float]] = {name: [] for name in models}
    with _evaluation(models.values()), _threads(threads), torch.inference_mode():
        for model in models.values():
            for _ in range(3):
                _timed(model, images)
        end = time.perf_counter() + seconds
        while len(next(iter(times.values()))) < 5 or time.perf_counter() < end:
            for name, model in models.items():
                times[name].append(_timed(model, images))
    return {name: _summary(values) for name, values in times.items()}


def _timed(model: nn.Module, images: Tensor) -> float:
    """Milliseconds of one pass."""
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return 1000 * (time.perf_counter() - start)


def _summary(times: Sequence[float]) -> Latency:
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Latency(median, low, high, len(times))


@contextlib.contextmanager
def _evaluation(models: Iterable[nn.Module]) -> Generator[None]:
    modes = {module: module.training for model in models for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _threads(count: int | None) -> Generator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
