"""Tables in CSV or Parquet: numbers and categories in columns, and a column to predict.

The setting `label` names that column; else it is called `label`, or is the last one. It holds
classes, or, with `task="regression"`, numbers. Columns of numbers are scaled to mean 0 and
deviation 1 over the training rows; the others become a 0/1 column per value. A fifth of the rows,
the same ones every time, is test data.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from guyot.app.data.arrays import AS_IT_IS, Dataset, Split, scaled
from guyot.core.condition import did_you_mean
from guyot.core.errors import MisconfiguredError, first_line
from guyot.core.packages import needed
from guyot.core.storage import regular
from guyot.core.warning import warn

_TEST = 0.2
_MOST_VALUES = 1000
_MISSING = frozenset({"NA", "N/A", "n/a", "NULL", "Null", "null", "None", "none", "-", "?"})
"""What programs write where a number is missing."""
_MISTAKES = 0.1
"""Share of the rows up to which texts among numbers are mistakes and no categories."""
_FEW = 10
"""Different texts that any column may have."""
_OWN_TEXT = 0.5
"""Different texts per row above which a column names rows and says nothing about them."""
_PARQUET = (".parquet", ".pq")


def read_table(file: Path, label: str | None = None, *, regression: bool = False) -> Dataset:
    """Read a table.

    Args:
        file: CSV with a line of names, or Parquet.
        label: name of the column to predict; None: `label`, or the last one.
        regression: it holds numbers and not classes.

    Raises:
        MisconfiguredError: it cannot be read, a row, an entry or the column is missing, or there
            are fewer than two classes or numbers.
    """
    names, rows = (_parquet if file.suffix.lower() in _PARQUET else _csv)(file)
    if label is not None and label not in names:
        raise MisconfiguredError(
            f"label={label!r} is no column of {file}{did_you_mean(label, names)}: choose "
            f"{', '.join(names)}"
        )
    _check_rows(file, names, rows)
    place = names.index(label or "label") if (label or "label") in names else len(names) - 1
    if len(names) < 2:
        raise MisconfiguredError(f"{file} has one column: give features beside what to predict")
    where = f"{file}: the column {names[place]!r}"
    cells = [row[place] for row in rows]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    count = max(1, round(_TEST * len(rows)))
    test, train = order[:count].sort().values, order[count:].sort().values
    classes: tuple[str, ...] = ()
    target = None
    if regression:
        labels, target = _numbers(cells, train, where)
    else:
        labels, classes = _classes(cells, where)
    columns = [
        _column([row[other] for row in rows], train, f"{file}: the column {name!r}")
        for other, name in enumerate(names)
        if other != place
    ]
    if not any(column.shape[1] for column in columns):
        raise MisconfiguredError(f"{file} has no features: give columns beside what to predict")
    whole = Split(torch.cat(columns, dim=1), labels)
    task = "regression" if regression else "classification"
    return Dataset(
        "table",
        whole.take(train),
        whole.take(test),
        classes,
        *AS_IT_IS,
        flip=False,
        pad=0,
        task=task,
        target=target,
    )


def _csv(file: Path) -> tuple[list[str], list[list[str]]]:
    try:
        regular(file.resolve())
        with file.open(encoding="utf-8-sig", newline="") as stream:
            names, *rows = [line for line in csv.reader(stream) if line] or [[]]
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise MisconfiguredError(
            f"table:{file} cannot be read ({reason}): give a file of comma-separated values in "
            "UTF-8, or of Parquet, whose name ends in .parquet"
        ) from error
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise MisconfiguredError(
                f"{file}, row {number}: {len(row)} entries, and {len(names)} names in the first "
                "line: repair the row"
            )
    return names, rows


def _parquet(file: Path) -> tuple[list[str], list[list[str]]]:
    with needed(f"table:{file} needs", "data", ", or give the table as CSV"):
        import pyarrow
        import pyarrow.parquet as parquet
    try:
        regular(file.resolve())
        table = parquet.read_table(file)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise MisconfiguredError(
            f"table:{file} cannot be read ({first_line(error)}): give a file of Parquet"
        ) from error
    nested = [field.name for field in table.schema if pyarrow.types.is_nested(field.type)]
    if nested:
        raise MisconfiguredError(
            f"{file}: the column {nested[0]!r} holds lists or records: give one value per row"
        )
    columns = [[_cell(cell) for cell in column.to_pylist()] for column in table.columns]
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def _cell(value: object) -> str:
    """Write an entry of Parquet as CSV would have it."""
    if value is None:
        return ""
    return str(int(value)) if isinstance(value, bool) else str(value)


def _check_rows(file: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if len(rows) < 5:
        raise MisconfiguredError(
            f"{file} has {len(rows)} rows: give a line of names and 5 rows or more"
        )
    if twice := {name for name in names if names.count(name) > 1}:
        raise MisconfiguredError(f"{file} has two columns {min(twice)!r}: rename one of them")
    if gaps := [number for number, row in enumerate(rows, 2) if "" in row]:
        column = names[rows[gaps[0] - 2].index("")]
        raise MisconfiguredError(
            f"{file}, row {gaps[0]}: the column {column!r} is empty{_and_more(gaps, 'gaps')}: fill "
            f"{'it' if len(gaps) == 1 else 'them'} in, or remove the rows"
        )


def _and_more(rows: Sequence[int], what: str) -> str:
    """Say how many more rows have the same problem; nothing if one has."""
    return f", and {len(rows) - 1} more rows have {what}" if len(rows) > 1 else ""


def _classes(cells: Sequence[str], where: str) -> tuple[Tensor, tuple[str, ...]]:
    """Return the class of each row, int64 (rows,), and their names."""
    classes = sorted(set(cells), key=_by_value)
    if len(classes) > max(2, len(cells) // 3) and all(map(_is_number, classes)):
        raise MisconfiguredError(
            f"{where} has {len(classes)} different numbers in {len(cells)} rows, too many for "
            "classes: predict numbers with task=regression, or name the column of classes with "
            "label=COLUMN"
        )
    if len(classes) < 2:
        raise MisconfiguredError(
            f"{where} has only the class {classes[0]!r}: give two or more, or name another column "
            "with label=COLUMN"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    return torch.tensor([numbers[cell] for cell in cells]), tuple(classes)


def _numbers(cells: Sequence[str], train: Tensor, where: str) -> tuple[Tensor, tuple[float, float]]:
    """Return the numbers to predict, scaled, and their mean and deviation in training rows."""
    for number, cell in enumerate(cells, 2):
        if not _is_number(cell) or not math.isfinite(float(cell)):
            raise MisconfiguredError(
                f"{where} has {cell!r} in row {number}, which is no finite number: repair it, or "
                "leave task=regression out to predict classes"
            )
    values = torch.tensor([float(cell) for cell in cells], dtype=torch.float64)
    if bool((values[train] == values[train][0]).all()):
        raise MisconfiguredError(
            f"{where} has the same number in all rows that are trained on: name another column "
            "with label=COLUMN"
        )
    return scaled(values, values[train])


def _column(cells: Sequence[str], train: Tensor, where: str) -> Tensor:
    """Return a column as features, float32 (rows, features); none if every row has its own text."""
    texts = [number for number, cell in enumerate(cells, 2) if not _is_number(cell)]
    if len(texts) < len(cells) and _are_gaps([cells[n - 2] for n in texts], len(cells)):
        raise MisconfiguredError(
            f"{where} holds numbers, but {cells[texts[0] - 2]!r} in row {texts[0]}"
            f"{_and_more(texts, 'no number there')}: write numbers, or remove the rows"
        )
    if all(map(_is_number, cells)):
        values = torch.tensor([float(cell) for cell in cells], dtype=torch.float64)
        if bad := [number for number, fine in enumerate(values.isfinite().tolist(), 2) if not fine]:
            raise MisconfiguredError(
                f"{where} has numbers that are not finite: {cells[bad[0] - 2]!r} in row {bad[0]}"
                f"{_and_more(bad, 'such numbers')}; repair them, or remove the rows"
            )
        return scaled(values, values[train])[0][:, None]
    kinds = sorted(set(cells))
    if len(kinds) > max(_FEW, _OWN_TEXT * len(cells)):
        warn(
            f"{where} is left out, since it has {len(kinds)} different texts in {len(cells)} rows: "
            "group its values if they matter"
        )
        return torch.empty(len(cells), 0)
    if len(kinds) > _MOST_VALUES:
        raise MisconfiguredError(
            f"{where} has {len(kinds)} different texts: remove it, or group its values"
        )
    return torch.tensor([[float(cell == kind) for kind in kinds] for cell in cells])


def _are_gaps(texts: Sequence[str], rows: int) -> bool:
    """Say whether texts among numbers stand for missing numbers or are mistakes."""
    return bool(texts) and (_MISSING.issuperset(texts) or len(texts) <= _MISTAKES * rows)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _by_value(cell: str) -> tuple[bool, float, str]:
    return (False, float(cell), cell) if _is_number(cell) else (True, 0.0, cell)
