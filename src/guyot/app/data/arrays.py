"""Samples as whole arrays: the vocabulary of the data room."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from guyot.core.errors import MisconfiguredError

AS_IT_IS = ((0.0,), (1.0,))
"""Mean and deviation of samples that nobody normalises."""


@dataclass(frozen=True)
class Request:
    """Samples that belong to one batch.

    ``index`` int64 ``(N,)``: which ones. ``seeds`` int64 ``(N,)`` of random parts of images, of
    which each is scaled to the whole; ``None``: without. ``centred``: the margin is cut off.
    """

    index: Tensor
    seeds: Tensor | None = None
    centred: bool = False


class Samples(Protocol):
    """Samples with labels, in memory (`Split`) or in files (`guyot.app.data.streamed`)."""

    @property
    def labels(self) -> Tensor:
        """Return what is learnt of each, ``(N, ...)``."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a sample; ``(H, W, C)`` of an image."""
        ...

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Samples:
        """Return the samples in ``index`` (int64), in that order."""
        ...

    def order(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return a random order of the samples, int64 ``(N,)``, for batches of one size."""
        ...

    def fingerprint(self) -> int:
        """Return a number that tells these samples from others."""
        ...

    def read(
        self, requests: Iterable[Request], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the samples of each request; if some were left out also which are left, bool."""
        ...


@dataclass(frozen=True)
class Split:
    """``images`` uint8 ``(N, H, W, C)`` and ``labels`` int64 ``(N,)``.

    Samples of the user's may also be float32, of any shape: they are what the network sees, but for
    images, which are ``(N, H, W, C)`` here, too. Labels of a regression are float32 ``(N,)``. Of a
    text both are int64 ``(N, T)``: characters, and the characters that follow them.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of a sample."""
        return tuple(self.images.shape[1:])

    def take(self, index: Tensor) -> Split:
        """The rows in ``index`` (int64), in that order."""
        return Split(self.images[index], self.labels[index])

    def order(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return any order, all of them equally probable."""
        return torch.randperm(len(self), generator=generator)

    def fingerprint(self) -> int:
        """Return CRC-32 of the images and labels."""
        known = zlib.crc32(self.images.contiguous().numpy().data)
        return zlib.crc32(self.labels.numpy().tobytes(), known)

    def read(
        self, requests: Iterable[Request], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield the samples of each request; none is left out."""
        for request in requests:
            yield self.images[request.index], None


@dataclass(frozen=True)
class Dataset:
    """A training and a test split, class names, and per-channel statistics in units of [0, 1].

    ``validation`` is ``None`` until :meth:`hold_out` moves training images there. ``task`` is a
    name in `guyot.app.tasks`. A regression has no classes; ``target`` is the mean and deviation of
    what it predicts, over the training data, to which labels were scaled. The classes of a text
    are its characters. ``flip`` and ``pad`` say how training images are augmented; with ``resized``
    a random part of each is scaled to the whole, and the margin of other images is cut off.
    """

    name: str
    train: Samples
    test: Samples
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool
    pad: int
    validation: Samples | None = None
    task: str = "classification"
    target: tuple[float, float] | None = None
    resized: bool = False

    @property
    def outputs(self) -> int:
        """How many numbers a network gives, for each character of a text."""
        return len(self.classes) or 1

    @property
    def image_shape(self) -> tuple[int, ...]:
        """``(C, H, W)`` as a model sees one image; of samples that are none, their shape."""
        if len(self.train.shape) != 3:
            return self.train.shape
        height, width, channels = self.train.shape
        return channels, height, width

    def hold_out(self, count: int, seed: int = 0) -> Dataset:
        """Move ``count`` training images, chosen by ``seed``, into ``validation``."""
        total = len(self.train)
        if not 0 < count < total:
            raise MisconfiguredError(
                f"validation={count} images of {total}: give a number between 1 and {total - 1}"
            )
        order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
        kept, held = order[:-count].sort().values, order[-count:].sort().values
        return replace(self, train=self.train.take(kept), validation=self.train.take(held))


def scaled(numbers: Tensor, known: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """Scale numbers to mean 0 and deviation 1 over those that are known.

    Args:
        numbers: float64 ``(N,)``.
        known: of the training data.

    Returns:
        Them as float32, and mean and deviation; 1 where all that are known are equal.
    """
    spread = float(known.std(correction=0))
    mean, spread = float(known.mean()), spread if spread > 0 else 1.0
    return ((numbers - mean) / spread).float(), (mean, spread)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel of uint8 ``(N, H, W, C)``, in units of [0, 1].

    Exact: computed from the 256-bin histogram of every channel.
    """
    means, stds = [], []
    levels = torch.arange(256, dtype=torch.float64) / 255
    for channel in range(images.shape[-1]):
        counts = torch.bincount(images[..., channel].flatten().int(), minlength=256).double()
        share = counts / counts.sum()
        mean = float((share * levels).sum())
        means.append(mean)
        stds.append(max(float((share * (levels - mean) ** 2).sum()) ** 0.5, 1e-6))
    return tuple(means), tuple(stds)
