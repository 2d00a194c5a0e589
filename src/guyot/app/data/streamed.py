"""Images that stay in their files until a batch needs them, decoded by processes of their own.

Every process decodes a part of each batch. What is random about an image is drawn before, from the
seed and the number of the epoch, so that the number of processes changes nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import multiprocessing
import os
import random
import signal
import threading
import warnings
import zlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from guyot.app.data.arrays import Request
from guyot.app.data.decoding import opened
from guyot.app.data.folders import Address, ImageSource, Reader, listing
from guyot.core.errors import MisconfiguredError, ParallelError, first_line
from guyot.core.warning import warn

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of ImageNet's channels, in units of [0, 1]."""
_AHEAD = 4
"""Batches that are decoded before they are needed."""
_FEW = 8
"""Images for which no process is worth its start."""
_AREA, _ASPECT, _TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
_CENTRE = 224 / 256


@dataclass(frozen=True)
class Streamed:
    """Images in files.

    Attributes:
        source: of the files.
        rows: which images of the source, int64 (N,).
        size: pixels of the square that a network sees.
        workers: processes that decode; 0: this one.
        skip: leave out images that cannot be read.
    """

    source: ImageSource
    rows: Tensor
    size: int
    workers: int
    skip: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> Tensor:
        """Return the class of every image, int64 (N,)."""
        return self.source.labels[self.rows]

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (H, W, C) of an image."""
        return (self.size, self.size, 3)

    def take(self, index: Tensor) -> Streamed:
        """Return the images in `index` (int64), in that order."""
        return replace(self, rows=self.rows[index])

    def order(self, batch: int, generator: torch.Generator) -> Tensor:
        """Return a random order of the images for batches of one size."""
        return self.source.order(self.rows, batch, generator)

    def fingerprint(self) -> int:
        """Return CRC-32 of labels and of names and sizes of files; pixels are not read."""
        known = zlib.crc32(self.rows.numpy().tobytes(), listing(self.source.files))
        return zlib.crc32(self.labels.numpy().tobytes(), known)

    def read(
        self, requests: Iterable[Request], device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Decode the images of requests, one after the other.

        Args:
            requests: what is wanted.
            device: to which the images are copied.

        Yields:
            uint8 (N, H, W, 3), and which images of the request they are if some were left out.

        Raises:
            MisconfiguredError: an image cannot be read.
            ParallelError: a process that decodes images ended.
        """
        wanted, ahead = itertools.tee(requests)
        workers = min(self.workers, len(self) // _FEW)
        shares = max(1, workers)
        pieces = (piece for request in ahead for piece in self._pieces(request, shares))
        decoded = _decoded(_Decoding(self.source.reader(), self.size), pieces, workers, device)
        with contextlib.closing(decoded):
            for request in wanted:
                count = min(shares, len(request.index))
                parts = list(itertools.islice(decoded, count))
                images = [part.to(device, non_blocking=True) for part, _ in parts]
                unread = [place for _, found in parts for place in found]
                kept = self._kept(request, unread) if unread else None
                yield (torch.cat(images) if len(images) > 1 else images[0]), kept

    def _pieces(self, request: Request, shares: int) -> Iterator[_Piece]:
        """Divide a request among processes: each gets neighbours, and the same places each time."""
        rows = self.rows[request.index].tolist()
        addresses = self.source.addresses(rows)
        seeds = None if request.seeds is None else request.seeds.tolist()
        shares = min(shares, len(rows))
        for share in range(shares):
            first, last = len(rows) * share // shares, len(rows) * (share + 1) // shares
            own = None if seeds is None else seeds[first:last]
            yield _Piece(addresses[first:last], own, request.centred, first)

    def _kept(self, request: Request, unread: Sequence[tuple[int, str]]) -> Tensor:
        """Refuse images that cannot be read, or return which are left, bool (N,)."""
        if not self.skip:
            more = f" (and {len(unread) - 1} more of its batch)" if len(unread) > 1 else ""
            raise MisconfiguredError(
                f"{unread[0][1]}{more}; repair it, or skip such images: with on_corrupt=skip in "
                "config.json the run can be resumed"
            )
        for _, problem in unread:
            warn(f"{problem}; it is left out")
        if len(unread) == len(request.index):
            raise MisconfiguredError(f"{unread[0][1]}, and no other of its batch: repair them")
        kept = torch.ones(len(request.index), dtype=torch.bool)
        kept[[place for place, _ in unread]] = False
        return kept


@dataclass(frozen=True)
class _Piece:
    """What a process decodes at once.

    Attributes:
        addresses: of the images.
        seeds: of random crops; None: without.
        centred: cut the margin off.
        first: place of the first image in its batch.
    """

    addresses: Sequence[Address]
    seeds: Sequence[int] | None
    centred: bool
    first: int


_Decoded = tuple[Tensor, list[tuple[int, str]]]
"""Images uint8 (N, H, W, 3), and place and problem of each that cannot be read."""


class _Decoding(TorchDataset[_Decoded]):
    """Decodes pieces.

    Args:
        reader: of image files.
        size: of the images.
    """

    def __init__(self, reader: Reader, size: int) -> None:
        self._reader, self._size = reader, size

    def __getitem__(self, piece: Any) -> _Decoded:
        from PIL import Image

        images: list[np.ndarray] = []
        unread: list[tuple[int, str]] = []
        self._reader.expect(piece.addresses)
        for place, address in enumerate(piece.addresses):
            image = opened(lambda a=address: self._reader.read(a), self._reader.name(address))
            if isinstance(image, str):
                unread.append((piece.first + place, image))
                continue
            box, mirrored = centre_crop(image.size, centred=piece.centred), False
            if piece.seeds is not None:
                box, mirrored = random_crop(image.size, random.Random(piece.seeds[place]))
            square = image.resize((self._size, self._size), Image.Resampling.BILINEAR, box=box)
            pixels = np.asarray(square)
            images.append(pixels[:, ::-1] if mirrored else pixels)
        stacked = np.stack(images) if images else np.empty((0, self._size, self._size, 3), np.uint8)
        return torch.from_numpy(stacked), unread


Crop = tuple[float, float, float, float]
"""Left, upper, right and lower edge, pixels."""


def centre_crop(size: tuple[int, int], *, centred: bool) -> Crop:
    """Return the square in the middle of an image.

    Args:
        size: width and height of the image.
        centred: it has 224/256 of the shorter side, as if the image were scaled so that this side
            has 256 pixels and 224 x 224 were cut out; else all of it.
    """
    width, height = size
    side = min(size) * (_CENTRE if centred else 1.0)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def random_crop(size: tuple[int, int], chance: random.Random) -> tuple[Crop, bool]:
    """Draw a part of an image, and whether it is mirrored.

    It has 8 to 100 % of the area, and an aspect ratio between 3/4 and 4/3, as in Szegedy et al.
    (2015), Going deeper with convolutions. When ten draws do not fit into the image it is the
    largest part in the middle with such an aspect ratio.

    Args:
        size: width and height of the image.
        chance: draws.
    """
    width, height = size
    mirrored = chance.random() < 0.5
    low, high = map(math.log, _ASPECT)
    for _ in range(_TRIES):
        area = width * height * (_AREA[0] + (_AREA[1] - _AREA[0]) * chance.random())
        aspect = math.exp(low + (high - low) * chance.random())
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left = int((width - w + 1) * chance.random())
            upper = int((height - h + 1) * chance.random())
            return (left, upper, left + w, upper + h), mirrored
    w, h = min(width, round(height * _ASPECT[1])), min(height, round(width / _ASPECT[0]))
    left, upper = (width - w) // 2, (height - h) // 2
    return (left, upper, left + w, upper + h), mirrored


def _decoded(
    decoding: _Decoding, pieces: Iterator[_Piece], workers: int, device: torch.device
) -> Generator[_Decoded]:
    """Decode pieces, in order.

    Raises:
        ParallelError: a process that decodes ended.
    """
    loader: DataLoader[Any] = DataLoader(
        decoding,
        batch_size=None,
        sampler=pieces,  # type: ignore[arg-type] - it may be any iterable
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=device.type == "cuda",
        prefetch_factor=_AHEAD if workers else None,
        multiprocessing_context=_context() if workers else None,
        worker_init_fn=_ends_with_parent,
        generator=torch.Generator(),  # or it draws from the generator of the run
    )
    with _deaf(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # as it was asked to
        iterator = iter(loader)
    try:
        yield from iterator
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise ParallelError(
            f"a process that decodes images ended ({first_line(error)}): if memory is short, give "
            f"fewer than data_workers={workers}, or a container more shared memory (/dev/shm)"
        ) from error


def _as_it_is(decoded: Any) -> Any:
    return decoded


def _context() -> Any:
    """Return how processes are started: by a server that has imported what they need.

    Forks of this process would hold its locks, sockets and GPUs.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "PIL.Image", "pyarrow.parquet"])
    return context


@contextlib.contextmanager
def _deaf() -> Generator[None]:
    """Let processes that start here hear neither Ctrl-C nor SIGTERM: this process ends them."""
    resource_tracker.ensure_running()  # its start would let both signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ends_with_parent(_: int) -> None:
    parent = multiprocessing.parent_process()

    def end() -> None:
        assert parent is not None
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()
