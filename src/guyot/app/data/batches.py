"""Batches from uint8 arrays: random crop, flip and normalisation on the whole batch at once."""

from collections.abc import Iterator

import torch
from torch import Tensor

from guyot.app.data.arrays import Dataset, Split
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
    return flat.index_select(0, pixel.view(-1)).view(images.shape)


def normalise(images: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 ``(N, H, W, C)`` to ``dtype`` ``(N, C, H, W)``, ``channels_last`` in memory.

    ``mean`` and ``std`` float32 ``(C,)`` in units of [0, 1].
    """
    values = (images.float() - 255 * mean).mul_(1 / (255 * std))
    return values.to(dtype).permute(0, 3, 1, 2)


class Batches:
    """Deterministic, resumable batches of one split.

    ``epoch(e)`` depends on ``(seed, e)`` alone, so a run continues at any batch of any epoch with
    the batches it would have had. In training (``augment=True``) the images are shuffled and
    augmented and an incomplete last batch is dropped; otherwise they come in order and all of them.
    ``share=(rank, ranks)`` gives one of several processes its part of every batch, augmented as it
    is in the whole one.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        batch_size: int,
        *,
        augment: bool,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        if batch_size < 1 or (augment and batch_size > len(split)):
            raise MisconfiguredError(
                f"batch_size={batch_size}: give a number between 1 and the {len(split)} "
                "training samples"
            )
        self.task = TASKS[dataset.task]
        self.split, self.batch_size, self.augment = split, batch_size, augment
        self.pad, self.flip = dataset.pad, dataset.flip
        self.seed, self.dtype, self.share = seed, dtype, share
        self.mean, self.std = torch.tensor(dataset.mean), torch.tensor(dataset.std)

    def __len__(self) -> int:
        """Batches in one epoch."""
        rounding = 0 if self.augment else self.batch_size - 1
        return (len(self.split) + rounding) // self.batch_size

    def epoch(self, number: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield ``(images (N, C, H, W) of dtype, labels (N,) int64)`` of epoch ``number``.

        The first ``start`` batches are left out; the others are what they are with them.
        """
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        total = len(self.split)
        order = torch.randperm(total, generator=generator) if self.augment else torch.arange(total)
        for step in range(len(self)):
            index = order[step * self.batch_size : (step + 1) * self.batch_size]
            crop = self.augment and self.split.images.dim() == 4
            drawn = draw_crops(len(index), self.pad, generator) if crop else None
            rank, ranks = self.share
            mine = slice(len(index) * rank // ranks, len(index) * (rank + 1) // ranks)
            index = index[mine]
            if step < start or not len(index):
                continue
            images = self.split.images[index]
            if drawn is not None:
                offsets, mirrored = drawn[0][:, mine], drawn[1][mine]
                images = crop_and_flip(images, self.pad, self.flip, offsets, mirrored)
            yield self._seen(images), self.split.labels[index]

    def _seen(self, images: Tensor) -> Tensor:
        """Return samples as the network sees them."""
        if images.dtype == torch.int64:  # characters
            return images
        if images.dtype == torch.uint8:
            return normalise(images, self.mean, self.std, self.dtype)
        images = images.to(self.dtype)
        return images.permute(0, 3, 1, 2) if images.dim() == 4 else images
