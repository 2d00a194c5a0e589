"""Where images are: in folders of classes, or in Parquet files as the Hugging Face Hub has them.

A source knows how many images there are, their labels, and an address of each. Its reader gets
addresses and gives the bytes of image files. Readers are small, since every process that decodes
images has its own.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from guyot.core.errors import MisconfiguredError
from guyot.core.storage import regular

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}
"""Endings of the names of image files."""

Address = Any
"""The path of a file; or path, row group and row of a Parquet file."""


class Reader(Protocol):
    """Gives the bytes of image files."""

    def expect(self, addresses: Sequence[Address]) -> None:
        """Prepare for these addresses, and forget what is kept for others."""
        ...

    def read(self, address: Address) -> bytes:
        """Return the bytes of an image file.

        Raises:
            Exception: of many kinds, when it cannot be read.
        """
        ...

    def name(self, address: Address) -> str:
        """Return what a user calls the image."""
        ...


class ImageSource(Protocol):
    """Images that are files or rows.

    Attributes:
        files: that hold them.
        labels: int64 (N,).
    """

    files: list[str]
    labels: Tensor

    def reader(self) -> Reader:
        """Return a reader of addresses."""
        ...

    def addresses(self, rows: Sequence[int]) -> list[Address]:
        """Return where these images are."""
        ...

    def order(self, rows: Tensor, batch: int, generator: torch.Generator) -> Tensor:
        """Return a random order of some images, as places in `rows`, for batches of one size."""
        ...


class ClassFolder:
    """A folder with a folder of images for each class.

    Args:
        folder: of the classes.
        classes: in the order of their labels.
        whole: every class must have images.

    Raises:
        MisconfiguredError: there are other classes, or images are missing.
    """

    def __init__(self, folder: Path, classes: Sequence[str], whole: bool) -> None:
        if unknown := [name for name in subfolders(folder) if name not in classes]:
            raise MisconfiguredError(
                f"{folder} has classes that the training folder lacks: {', '.join(unknown)}"
            )
        found = [_images(folder / name) for name in classes]
        if not any(found):
            raise MisconfiguredError(
                f"{folder} holds no images in class folders; known endings: "
                f"{', '.join(sorted(SUFFIXES))}"
            )
        if whole and not all(found):
            empty = [name for name, names in zip(classes, found, strict=True) if not names]
            raise MisconfiguredError(
                f"{folder} has classes without images: {', '.join(empty)}; add some, or remove the "
                "folders"
            )
        self.files = [name for names in found for name in names]
        counts = torch.tensor([len(names) for names in found])
        self.labels = torch.arange(len(classes)).repeat_interleave(counts)

    def reader(self) -> Reader:
        """Return a reader of paths."""
        return _FileReader()

    def addresses(self, rows: Sequence[int]) -> list[Address]:
        """Return paths."""
        return [self.files[row] for row in rows]

    def order(self, rows: Tensor, batch: int, generator: torch.Generator) -> Tensor:
        """Return any order, all of them equally probable."""
        return torch.randperm(len(rows), generator=generator)


class _FileReader:
    """Reads whole files."""

    def expect(self, addresses: Sequence[Address]) -> None:
        """Do nothing."""

    def read(self, address: Address) -> bytes:
        """Return what the file holds."""
        path = Path(address)
        regular(path.resolve())  # a pipe would be waited for
        return path.read_bytes()

    def name(self, address: Address) -> str:
        """Return the path."""
        return str(address)


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the classes of a folder.

    Raises:
        MisconfiguredError: there are fewer than two.
    """
    classes = tuple(subfolders(folder))
    if len(classes) < 2:
        loose = sum(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
        found = f"only the class {classes[0]!r}" if classes else "no folders of classes"
        beside = f", and {loose} images that are in no class" if loose else ""
        raise MisconfiguredError(
            f"{folder} has {found}{beside}: give two classes or more, each in a folder of its own"
        )
    return classes


def subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder.

    Raises:
        MisconfiguredError: it cannot be read.
    """
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise _unreadable(folder, error) from error


def listing(files: Sequence[str]) -> int:
    """Return CRC-32 of the names and sizes of files, without reading them."""
    found = 0
    for file in files:
        known = f"{os.sep.join(file.split(os.sep)[-2:])}|{os.stat(file).st_size}"
        found = zlib.crc32(known.encode(), found)
    return found


def _images(folder: Path) -> list[str]:
    """Return the paths of all images below a folder, in order."""

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # test data may lack a class
            raise _unreadable(folder, error) from error

    found = [
        os.path.join(place, name)
        for place, _, names in os.walk(folder, onerror=refuse)
        for name in names
        if os.path.splitext(name)[1].lower() in SUFFIXES
    ]
    return sorted(found, key=lambda path: path.split(os.sep))


def _unreadable(folder: Path, error: OSError) -> MisconfiguredError:
    return MisconfiguredError(f"{folder} cannot be read ({error.strerror}): change its permissions")
