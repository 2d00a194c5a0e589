"""Images in Parquet files as the Hugging Face Hub has them, in the columns `image` and `label`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guyot.app.data.folders import Address, Reader
from guyot.core.errors import MisconfiguredError, first_line

IMAGE, LABEL = "image", "label"
_OPEN = 2 * 2**30
"""Bytes of row groups that all processes together hold at a time."""
_MOST_LANES = 256
_LARGEST = 256 * 2**20


class ParquetImages:
    """Rows of Parquet files.

    Args:
        paths: of the files.

    Attributes:
        files: their paths.
        labels: int64 (N,).
        classes: the names that the Hub keeps in the schema; empty without any.

    Raises:
        MisconfiguredError: a file cannot be read, or has not the columns.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        import pyarrow
        from pyarrow import parquet

        self.files = list(map(str, paths))
        self._counts: list[tuple[int, int, int]] = []  # file, row group, rows
        self._bytes = 0
        labels: list[np.ndarray] = []
        for number, file in enumerate(self.files):
            try:
                with parquet.ParquetFile(file) as opened:
                    _check(file, opened.schema_arrow)
                    about = opened.metadata
                    for group in range(about.num_row_groups):
                        rows = about.row_group(group)
                        self._counts.append((number, group, rows.num_rows))
                        self._bytes = max(self._bytes, rows.total_byte_size)
                    column = opened.read(columns=[LABEL], use_threads=False).column(0)
            except (OSError, pyarrow.ArrowException) as error:
                raise MisconfiguredError(
                    f"{file} cannot be read ({first_line(error)}): repair it, or download it again"
                ) from error
            if column.null_count:
                raise MisconfiguredError(
                    f"{file}: the column {LABEL!r} has empty rows: remove them"
                )
            labels.append(column.to_numpy().astype(np.int64))
        self.labels = torch.from_numpy(np.concatenate(labels))
        self.classes = schema_classes(self.files[0], LABEL)

    def reader(self) -> Reader:
        """Return a reader of rows."""
        return _RowReader()

    @cached_property
    def _starts(self) -> Tensor:
        """Return the first row of every row group, and the number of rows."""
        counts = torch.tensor([0, *(rows for *_, rows in self._counts)])
        return counts.cumsum(0)

    def _groups(self, rows: Tensor) -> Tensor:
        """Return the numbers of the row groups in which rows are."""
        return torch.searchsorted(self._starts, rows, right=True) - 1

    def addresses(self, rows: Sequence[int]) -> list[Address]:
        """Return path, row group and row in it."""
        groups = self._groups(torch.tensor(rows, dtype=torch.int64)).tolist()
        found: list[Address] = []
        for row, group in zip(rows, groups, strict=True):
            file, number, _ = self._counts[group]
            found.append((self.files[file], number, row - int(self._starts[group])))
        return found

    def order(self, rows: Tensor, batch: int, generator: torch.Generator) -> Tensor:
        """Return a random order that reads every row group once.

        A batch takes its images from many row groups, each of them from a lane of its own. Row
        groups are in random order, and so are the rows in each. The order does not depend on
        processes: the places of a batch that are neighbours are those of one lane, so that a
        process which has a part of every batch has lanes of its own.

        Raises:
            MisconfiguredError: a row group is too large to hold some of them at a time.
        """
        if self._bytes > _LARGEST:
            raise MisconfiguredError(
                f"{self.files[0]} and the files beside it have row groups of up to "
                f"{self._bytes >> 20} MiB, and the most that is held while training is "
                f"{_LARGEST >> 20} MiB: write the files with row_group_size=100"
            )
        groups = self._groups(rows)
        number = torch.randperm(len(self._counts), generator=generator)[groups]
        shuffled = torch.randperm(len(rows), generator=generator)
        sequence = shuffled[number[shuffled].sort(stable=True).indices]
        steps = len(rows) // batch
        there = len(groups.unique())
        lanes = max(1, min(batch, there, _MOST_LANES, _OPEN // max(self._bytes, 1)))
        edges = torch.arange(lanes + 1) * batch // lanes  # lane k has places edges[k] to edges[k+1]
        parts = [
            sequence[first * steps : last * steps].view(steps, last - first)
            for first, last in itertools.pairwise(edges.tolist())
        ]
        return torch.cat([torch.cat(parts, 1).flatten(), sequence[steps * batch :]])


class _RowReader:
    """Reads rows, and keeps the row groups of those that are expected."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], Any] = {}

    def expect(self, addresses: Sequence[Address]) -> None:
        """Forget the row groups of other addresses."""
        needed = {(file, group) for file, group, _ in addresses}
        self._kept = {key: kept for key, kept in self._kept.items() if key in needed}

    def read(self, address: Address) -> bytes:
        """Return the bytes of an image file."""
        file, group, row = address
        if (file, group) not in self._kept:
            from pyarrow import parquet

            with parquet.ParquetFile(file) as opened:
                table = opened.read_row_group(group, columns=[f"{IMAGE}.bytes"], use_threads=False)
            self._kept[file, group] = table.column(0)
        content = self._kept[file, group][row].as_py()["bytes"]
        if content is None:
            raise ValueError("its bytes are not in the file")
        return content

    def name(self, address: Address) -> str:
        """Return file and row."""
        file, group, row = address
        return f"{file}, row {row} of row group {group},"


def parquet_files(root: Path, *splits: str) -> list[Path]:
    """Return the Parquet files of the first of some splits that a folder has, in order."""
    for split in splits:
        for folder in (root, root / "data"):
            if found := sorted(folder.glob(f"{split}*.parquet")):
                return found
    return []


def _check(file: str, schema: Any) -> None:
    import pyarrow

    there = dict(zip(schema.names, schema.types, strict=True))
    if missing := [name for name in (IMAGE, LABEL) if name not in there]:
        raise MisconfiguredError(
            f"{file} has no column {missing[0]!r} (it has {', '.join(there)}): name the columns of "
            f"images and labels {IMAGE!r} and {LABEL!r}"
        )
    kind = there[IMAGE]
    if not pyarrow.types.is_struct(kind) or "bytes" not in {field.name for field in kind}:
        raise MisconfiguredError(
            f"{file}: the column {IMAGE!r} is {kind}: give records with the field 'bytes', as the "
            "package datasets writes them"
        )
    if not pyarrow.types.is_integer(there[LABEL]):
        raise MisconfiguredError(
            f"{file}: the column {LABEL!r} is {there[LABEL]}: give numbers of classes from 0"
        )


def schema_classes(file: str | Path, column: str) -> tuple[str, ...]:
    """Return the names of a column's classes in the schema, as the package datasets writes them."""
    from pyarrow import parquet

    metadata = parquet.read_schema(file).metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return tuple(features.get(column, {}).get("names", ()))
