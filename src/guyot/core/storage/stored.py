"""Tensors in files, which are read when they are needed; one may be in several files.

`NAME.safetensors` holds all tensors of a name. If several processes write, each writes a *shard*,
`NAME-00001-of-00004.safetensors` and so on. The first shard holds every tensor, and of a tensor
that is split only the first rows. The others hold the rows that follow, each as many.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from guyot.core.errors import MisconfiguredError, first_line
from guyot.core.storage.coding import laid_out
from guyot.core.storage.files import regular
from guyot.core.trees import describe, mapped

_SHARD = re.compile(r".+-\d{5,}-of-(\d{5,})\.safetensors")


def shard_name(name: str, number: int, shards: int) -> str:
    """Return the name of a file.

    Args:
        name: of the tensors together.
        number: of the shard, from 0.
        shards: how many there are.

    Example:
        >>> shard_name("model", 0, 1), shard_name("model", 1, 4)
        ('model.safetensors', 'model-00002-of-00004.safetensors')
    """
    part = "" if shards == 1 else f"-{number + 1:05}-of-{shards:05}"
    return f"{name}{part}.safetensors"


def shards_in(folder: Path) -> int:
    """Return into how many shards the tensors in a folder are split, by the names of files."""
    found = sorted(file.name for file in folder.glob("*.safetensors"))
    return next((int(match[1]) for name in found if (match := _SHARD.fullmatch(name))), 1)


def note_in(file: Path, name: str) -> str | None:
    """Return what was noted when a file was written; None if it is damaged or without that."""
    try:
        regular(file)
        with safe_open(file, "pt", backend="pread") as opened:
            return (opened.metadata() or {}).get(name)
    except (OSError, SafetensorError, ValueError):
        return None


class Stored:
    """A tensor that has not been read. `stored` makes them.

    Attributes:
        name: under which it was written.
        shape: of the whole.
        dtype: the same.
        split: whether its rows are in several files.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[_File],
        rows: int | None,
        strides: Sequence[int] | None = None,
    ) -> None:
        self.name, self._files, self._rows, self._strides = name, files, rows, strides
        first = files[0].take(name, slice(0, 0))
        shape = files[0].shape(name)
        self.dtype, self.split, self._each = first.dtype, rows is not None, 0
        if rows is not None:
            self._each = -(-rows // len(files))
            if not shape or shape[0] != min(self._each, rows):
                raise MisconfiguredError(
                    f"{files[0].path} holds {name} with shape {tuple(shape)}, which is no share of "
                    f"{rows} rows: the files of the folder do not belong together"
                )
            shape[0] = rows
        self.shape = torch.Size(shape)

    def __repr__(self) -> str:
        return describe(self.like())

    def like(self) -> Tensor:
        """Return a tensor of this shape and dtype without content."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def laid_out(self, strides: Sequence[int]) -> Stored:
        """Return the same tensor, which `read` gives these strides as a whole."""
        return Stored(self.name, self._files, self._rows, strides)

    def read(self, rows: slice | None = None) -> Tensor:
        """Return the tensor on the CPU, or some of its rows.

        Raises:
            MisconfiguredError: a file is damaged, or does not belong to the others.
        """
        if not self.split:
            found = self._files[0].take(self.name, rows)
            if rows is None and self._strides is not None:
                return laid_out(found, self._strides)
            return found
        start, stop = (0, self.shape[0]) if rows is None else (rows.start, rows.stop)
        found = torch.empty(stop - start, *self.shape[1:], dtype=self.dtype)
        done = start
        while done < stop:
            number, offset = divmod(done, self._each)
            end = min(self._each, stop - number * self._each)
            self._check_piece(number)
            piece = self._files[number].take(self.name, slice(offset, end))
            found[done - start :][: end - offset] = piece
            done += end - offset
        return found

    def _check_piece(self, number: int) -> None:
        """Refuse a file that has not its rows."""
        rows = min(self._each, self.shape[0] - number * self._each)
        shape = self._files[number].shape(self.name)
        if shape != [rows, *self.shape[1:]]:
            raise MisconfiguredError(
                f"{self._files[number].path} holds {self.name} with shape {tuple(shape)}, expected "
                f"{rows} rows of {self}: the files of the folder do not belong together"
            )


class _File:
    """A file of tensors, opened when it is first read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: Any = None

    def names(self) -> list[str]:
        return self._do(lambda: list(self._open().keys()))

    def shape(self, name: str) -> list[int]:
        return self._do(lambda: list(self._open().get_slice(name).get_shape()))

    def take(self, name: str, rows: slice | None) -> Tensor:
        if rows is None or not any(self.shape(name)[:1]):  # safetensors slices none without rows
            return self._do(lambda: self._open().get_tensor(name))
        return self._do(lambda: self._open().get_slice(name)[rows])

    def _open(self) -> Any:
        if self._opened is None:
            regular(self.path)
            self._opened = safe_open(self.path, "pt", backend="pread")
        return self._opened

    def _do(self, read: Any) -> Any:
        try:
            return read()
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise MisconfiguredError(f"{self.path} cannot be read: {first_line(error)}") from error


def stored(
    folder: Path, name: str, shards: int = 1, rows: Mapping[str, int] | None = None
) -> dict[str, Stored]:
    """Return the tensors of a name, none of which is read yet.

    Args:
        folder: of the files.
        name: of the tensors together.
        shards: how many files there are.
        rows: of tensors that are split, how many there are in all.

    Raises:
        MisconfiguredError: a file is missing or damaged.
    """
    files = [_File(folder / shard_name(name, number, shards)) for number in range(shards)]
    rows, names = rows or {}, files[0].names()
    if missing := sorted({*rows} - {*names}):
        raise MisconfiguredError(f"{files[0].path} holds no {missing[0]}, which is split")
    return {each: Stored(each, files, rows.get(each)) for each in names}


def loaded(tree: Any) -> Any:
    """Return a tree with its stored tensors read."""
    return mapped(tree, lambda tensor: tensor.read(), Stored)
