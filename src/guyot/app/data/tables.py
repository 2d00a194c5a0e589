"""Tables in CSV: numbers and categories in columns, and a column with the class.

The class is in the column `label`, or else in the last one. Columns of numbers are scaled to mean 0
and deviation 1 over the training rows; the others become a 0/1 column per value. A fifth of the
rows, the same ones every time, is test data.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from guyot.app.data.arrays import AS_IT_IS, Dataset, Split
from guyot.core.errors import MisconfiguredError

_TEST = 0.2
_MOST_VALUES = 1000


def read_table(file: Path) -> Dataset:
    """Read a table.

    Args:
        file: CSV with a line of names.

    Raises:
        MisconfiguredError: it cannot be read, a row or an entry is missing, or there are fewer
            than two classes.
    """
    names, rows = _read(file)
    label = names.index("label") if "label" in names else len(names) - 1
    classes = sorted({row[label] for row in rows}, key=_by_value)
    if len(classes) > max(2, len(rows) // 3) and all(map(_is_number, classes)):
        raise MisconfiguredError(
            f"{file}: the column {names[label]!r} has {len(classes)} different numbers in "
            f"{len(rows)} rows, too many for classes: call the column of classes label; for "
            "regression write a loop of your own with guyot.Discovery"
        )
    if len(classes) < 2:
        raise MisconfiguredError(
            f"{file}: the column {names[label]!r} has only the class {classes[0]!r}: give two or "
            "more, and call their column label if it is not the last"
        )
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    count = max(1, round(_TEST * len(rows)))
    test, train = order[:count].sort().values, order[count:].sort().values
    numbers = {name: number for number, name in enumerate(classes)}
    labels = torch.tensor([numbers[row[label]] for row in rows])
    columns = [
        _column([row[place] for row in rows], train, f"{file}: the column {name!r}")
        for place, name in enumerate(names)
        if place != label
    ]
    if not columns:
        raise MisconfiguredError(f"{file} has one column: give features beside the class")
    whole = Split(torch.cat(columns, dim=1), labels)
    taken = whole.take(train), whole.take(test)
    return Dataset("table", *taken, tuple(classes), *AS_IT_IS, flip=False, pad=0)


def _read(file: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            lines = [line for line in csv.reader(stream) if line]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise MisconfiguredError(
            f"table:{file} cannot be read ({reason}): give a file of comma-separated values in "
            "UTF-8"
        ) from error
    if len(lines) < 6:
        raise MisconfiguredError(
            f"{file} has {max(0, len(lines) - 1)} rows: give a line of names and 5 rows or more"
        )
    names, *rows = lines
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise MisconfiguredError(
                f"{file}, row {number}: {len(row)} entries, and {len(names)} names in the first "
                "line: repair the row"
            )
        if "" in row:
            raise MisconfiguredError(
                f"{file}, row {number}: the column {names[row.index('')]!r} is empty: fill it in, "
                "or remove the row"
            )
    return names, rows


def _column(cells: Sequence[str], train: Tensor, where: str) -> Tensor:
    """Return a column as features, float32 (rows, features)."""
    if all(map(_is_number, cells)):
        values = torch.tensor([float(cell) for cell in cells], dtype=torch.float64)[:, None]
        if not bool(values.isfinite().all()):
            raise MisconfiguredError(f"{where} has numbers that are not finite: repair them")
        known = values[train]
        spread = known.std(correction=0)
        return ((values - known.mean()) / (spread if spread > 0 else 1.0)).float()
    kinds = sorted(set(cells))
    if len(kinds) > _MOST_VALUES:
        raise MisconfiguredError(
            f"{where} has {len(kinds)} different texts: remove it, or group its values"
        )
    return torch.tensor([[float(cell == kind) for kind in kinds] for cell in cells])


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _by_value(cell: str) -> tuple[bool, float, str]:
    return (False, float(cell), cell) if _is_number(cell) else (True, 0.0, cell)
