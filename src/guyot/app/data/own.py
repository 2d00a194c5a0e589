"""Data that a function of the user's returns.

    def datasets():
        return {"train": train, "test": test}  # and "validation", "classes"

Each part is a `Dataset` or `DataLoader` of PyTorch whose samples are pairs (x, label), or a pair of
arrays (all x, all labels). Samples are read once, into memory: what a dataset draws at random is
drawn once; `augment` crops and flips images again in every epoch. Images are uint8 (H, W, C), which
are normalised, or float (C, H, W), as the network sees them. Other samples are float, of any shape.
Labels are numbers of classes from 0; of a regression they are what is predicted.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from guyot.app.data.arrays import AS_IT_IS, Dataset, Split, scaled, statistics
from guyot.app.user_code import function_of
from guyot.core.errors import MisconfiguredError, first_line

_PARTS = ("train", "test", "validation", "classes")
_GIVES = 'a dict {"train": ..., "test": ...} of datasets of (x, label)'


def own_data(name: str, *, regression: bool = False) -> Dataset:
    """Call the user's function and read what it returns.

    Args:
        name: FILE.py:NAME or package.module:NAME.
        regression: labels are numbers to predict.

    Raises:
        MisconfiguredError: there is no such function, or what it returns is no such data.
    """
    made = function_of(name, "data", _GIVES)()
    if not isinstance(made, Mapping) or not {"train", "test"} <= set(made) <= set(_PARTS):
        found = sorted(map(str, made)) if isinstance(made, Mapping) else type(made).__name__
        raise MisconfiguredError(
            f"data={name!r} returned {found}: return {_GIVES}, and if you like validation and "
            "classes"
        )
    parts: dict[str, Split] = {}
    for part in ("train", "test", "validation"):
        if made.get(part) is not None:
            parts[part] = _split(made[part], f"data={name!r}: {part}", regression)
    if regression and made.get("classes") is not None:
        raise MisconfiguredError(f"data={name!r}: a regression has no classes: leave them out")
    return _dataset(name, parts, made.get("classes"), regression)


def _dataset(name: str, parts: dict[str, Split], names: Any, regression: bool) -> Dataset:
    train = parts["train"]
    for part, split in parts.items():
        if split.images.shape[1:] != train.images.shape[1:] or (
            split.images.dtype != train.images.dtype
        ):
            raise MisconfiguredError(
                f"data={name!r}: samples of {part} are {_kind(split.images)}, those of train "
                f"{_kind(train.images)}: give all the same"
            )
    classes = () if regression else _classes(name, parts, names)
    images = train.images.dtype == torch.uint8
    mean, std = statistics(train.images) if images else AS_IT_IS
    pad = max(1, train.images.shape[1] // 8) if train.images.dim() == 4 else 0
    validation, test = parts.get("validation"), parts["test"]
    made = Dataset(name, train, test, classes, mean, std, False, pad, validation)
    return _scaled(made) if regression else made


def _classes(name: str, parts: dict[str, Split], names: Any) -> tuple[str, ...]:
    count = 1 + max(int(split.labels.max()) for split in parts.values())
    classes = tuple(map(str, range(count) if names is None else names))
    if len(classes) < max(2, count):
        raise MisconfiguredError(
            f"data={name!r}: there are {len(classes)} classes and labels up to {count - 1}: give "
            "two classes or more, numbered from 0"
        )
    return classes


def _scaled(data: Dataset) -> Dataset:
    """Return data of a regression whose labels have mean 0 and deviation 1 in training data."""
    known = data.train.labels
    made: dict[str, Split] = {}
    for part in ("train", "test", "validation"):
        split = getattr(data, part)
        if split is not None:
            labels, target = scaled(split.labels, known)
            made[part] = Split(split.images, labels)
            data = dataclasses.replace(data, target=target)
    return dataclasses.replace(data, **made, task="regression")


def _split(part: Any, where: str, regression: bool) -> Split:
    """Read one part into memory."""
    try:
        if isinstance(part, tuple | list) and len(part) == 2 and hasattr(part[0], "shape"):
            x, labels = (torch.as_tensor(value) for value in part)
        elif isinstance(part, DataLoader):
            batches = [(x, y) for x, y in part]
            x, labels = (torch.cat(list(column)) for column in zip(*batches, strict=True))
        else:
            samples = list(_samples(part))
            x = torch.stack([torch.as_tensor(x) for x, _ in samples])
            labels = torch.stack([torch.as_tensor(y) for _, y in samples])
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise MisconfiguredError(
            f"{where} cannot be read as pairs (x, label) of one shape: {first_line(error)}"
        ) from error
    if not len(x) or len(x) != len(labels):
        raise MisconfiguredError(f"{where} has {len(x)} samples and {len(labels)} labels")
    labels = _labels(labels, where, regression)
    if x.dtype != torch.uint8:
        if not x.is_floating_point():
            raise MisconfiguredError(
                f"{where}: samples are {_kind(x)}: give uint8 images of (H, W, C), or float samples"
            )
        x = x.float().permute(0, 2, 3, 1) if x.dim() == 4 else x.float()
    elif x.dim() != 4 or x.shape[-1] not in (1, 3):
        raise MisconfiguredError(f"{where}: uint8 samples are {_kind(x)}: give images of (H, W, C)")
    return Split(x.contiguous(), labels)


def _labels(labels: Tensor, where: str, regression: bool) -> Tensor:
    """Return labels as int64, those of a regression as float64."""
    if regression:
        found = labels.double()
        if labels.dim() != 1 or not bool(found.isfinite().all()):
            raise MisconfiguredError(
                f"{where}: labels are {_kind(labels)}: give one finite number per sample; for "
                "several numbers write a loop of your own with guyot.Discovery"
            )
        return found
    if labels.dim() != 1 or labels.is_floating_point() or int(labels.min()) < 0:
        raise MisconfiguredError(
            f"{where}: labels are {_kind(labels)}: give numbers of classes from 0, or "
            "task=regression to predict numbers"
        )
    return labels.long()


def _samples(part: Any) -> Iterator[tuple[Any, Any]]:
    for number in itertools.count() if not hasattr(part, "__len__") else range(len(part)):
        x, label = part[number]
        yield x, label


def _kind(values: Tensor) -> str:
    return f"{str(values.dtype).removeprefix('torch.')} of {tuple(values.shape[1:])}"
