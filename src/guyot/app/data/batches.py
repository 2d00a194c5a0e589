"""Batches from uint8 arrays: random crop, flip and normalisation on the whole batch at once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from guyot.app.data.arrays import Dataset, Request, Samples
from guyot.app.tasks import TASKS
from guyot.core.errors import MisconfiguredError


def draw_crops(count: int, pad: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return what is random in :func:`crop_and_flip` of ``count`` images.

    Returns offsets of rows and columns, int64 ``(2, count, 1)`` from 0 to ``2 * pad``, and which
    images are mirrored, bool ``(count, 1)``, with probability 1/2.
    """
    offsets = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    return offsets, torch.rand((count, 1), generator=generator) < 0.5


def crop_and_flip(
    images: Tensor, pad: int, flip: bool, offsets: Tensor, mirrored: Tensor
) -> Tensor:
    """Random crop after zero padding, and random horizontal flip, as one gather.

    ``images`` uint8 ``(N, H, W, C)``; each image is padded by ``pad`` pixels on every side, a
    window of the old size is cut at its offset, and mirrored where it shall be if ``flip``; see
    :func:`draw_crops`. Returns a new tensor of the same shape.
    """
    count, height, width, _ = images.shape
    padded = torch.nn.functional.pad(images, (0, 0, pad, pad, pad, pad))
    rows = offsets[0] + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    if flip:
        columns = torch.where(mirrored, width - 1 - columns, columns)
    columns = offsets[1] + columns
    pixel = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    pixel = pixel + torch.arange(count)[:, None, None] * (height + 2 * pad) * (width + 2 * pad)
    flat = padded.view(-1, images.shape[3])
    return flat.index_select(0, pixel.view(-1).to(flat.device)).view(images.shape)


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 ``(N, H, W, C)`` to ``dtype`` ``(N, C, H, W)``, ``channels_last`` in memory.

    ``mean`` and ``std`` float32 ``(C,)`` in units of [0, 1].
    """
    values = (images.float() - 255 * mean).mul_(1 / (255 * std))
    return values.to(dtype).permute(0, 3, 1, 2)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device; a copy from pinned memory to a GPU is not waited for."""
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class _Step:
    """The part of a batch that one process has, and what is random about its images.

    ``offsets`` and ``mirrored`` are those of :func:`draw_crops`; ``None``: images stay whole.
    """

    request: Request
    offsets: Tensor | None = None
    mirrored: Tensor | None = None


class Batches:
    """Deterministic, resumable batches of one split.

    ``epoch(e)`` depends on ``(seed, e)`` alone, so a run continues at any batch of any epoch with
    the batches it would have had. In training (``augment=True``) the images are shuffled and
    augmented and an incomplete last batch is dropped; otherwise they come in order and all of them.
    ``share=(rank, ranks)`` gives one of several processes its part of every batch, augmented as it
    is in the whole one. Images come on the ``device``, where they are normalised, and labels on the
    CPU.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Samples,
        batch_size: int,
        *,
        augment: bool,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        share: tuple[int, int] = (0, 1),
        device: str | torch.device = "cpu",
    ) -> None:
        if batch_size < 1 or (augment and batch_size > len(split)):
            raise MisconfiguredError(
                f"batch_size={batch_size}: give a number between 1 and the {len(split)} "
                "training samples"
            )
        self.task = TASKS[dataset.task]
        self.split, self.batch_size, self.augment = split, batch_size, augment
        self.pad, self.flip, self.resized = dataset.pad, dataset.flip, dataset.resized
        self.seed, self.dtype, self.share = seed, dtype, share
        self.device = torch.device(device)
        self.mean = torch.tensor(dataset.mean, device=device)
        self.std = torch.tensor(dataset.std, device=device)

    def __len__(self) -> int:
        """Batches in one epoch."""
        rounding = 0 if self.augment else self.batch_size - 1
        return (len(self.split) + rounding) // self.batch_size

    def epoch(
        self, number: int, start: int = 0, stop: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(images (N, C, H, W) of dtype, labels (N,) int64)`` of epoch ``number``.

        Only the batches from ``start`` to before ``stop``; they are what they are with the others.
        """
        steps, ahead = itertools.tee(self._steps(number, start, stop))
        read = self.split.read((step.request for step in ahead), self.device)
        for step, (images, kept) in zip(steps, read, strict=True):
            index, offsets, mirrored = step.request.index, step.offsets, step.mirrored
            if kept is not None:
                index = index[kept]
            if offsets is not None and mirrored is not None:
                if kept is not None:
                    offsets, mirrored = offsets[:, kept], mirrored[kept]
                images = crop_and_flip(images, self.pad, self.flip, offsets, mirrored)
            yield self._seen(images), self.labels[index]

    @functools.cached_property
    def labels(self) -> Tensor:
        """What is learnt of every sample of the split."""
        return self.split.labels

    def _steps(self, number: int, start: int, stop: int | None) -> Iterator[_Step]:
        """Yield what the batches of an epoch are made of; those without images are left out."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        total, (rank, ranks) = len(self.split), self.share
        order = torch.arange(total)
        if self.augment:
            order = self.split.order(self.batch_size, generator)
        for step in range(len(self) if stop is None else min(stop, len(self))):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            mine = slice(len(index) * rank // ranks, len(index) * (rank + 1) // ranks)
            crop = self.augment and len(self.split.shape) == 3
            if crop and self.resized:
                seeds = torch.randint(2**62, (len(index),), generator=generator)
                found = _Step(Request(index[mine], seeds[mine]))
            elif crop:
                offsets, mirrored = draw_crops(len(index), self.pad, generator)
                found = _Step(Request(index[mine]), offsets[:, mine], mirrored[mine])
            else:
                found = _Step(Request(index[mine], centred=self.resized))
            if step >= start and len(found.request.index):
                yield found

    def _seen(self, images: Tensor) -> Tensor:
        """Return samples as the network sees them."""
        images = on_device(images, self.device)
        if images.dtype == torch.int64:  # characters
            return images
        if images.dtype == torch.uint8:
            return normalise(images, self.mean, self.std, self.dtype)
        images = images.to(self.dtype)
        return images.permute(0, 3, 1, 2) if images.dim() == 4 else images
