"""Where images come from: digits, CIFAR in Hugging Face parquet, folders of images.

Images are held in memory, unless processes shall decode them while a network trains. Decoded images
are cached as ``.npy`` under the user's cache folder, keyed by the source files' sizes and times, so
a second run starts at once.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guyot.app.cache import cache_root, evict, touch
from guyot.app.data.arrays import Dataset, Samples, Split, statistics
from guyot.app.data.decoding import Decoded, judge
from guyot.app.data.folders import ClassFolder, ImageSource, class_names, subfolders
from guyot.app.data.own import own_data
from guyot.app.data.parquet import ParquetImages, parquet_files, schema_classes
from guyot.app.data.streamed import IMAGENET, Streamed
from guyot.app.data.tables import read_table
from guyot.app.data.texts import read_text
from guyot.app.user_code import is_function
from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.warning import warn

_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
_LABEL = {"cifar10": "label", "cifar100": "fine_label"}


def load_dataset(  # noqa: PLR0913 - settings of the data
    name: str,
    data_dir: str | Path | None = None,
    *,
    cache_dir: str | Path | None = None,
    image_size: int = 32,
    skip_corrupt: bool = False,
    test_share: float | None = None,
    regression: bool = False,
    label: str | None = None,
    context: int = 64,
    validation: float = 0.1,
    workers: int | None = None,
) -> Dataset:
    """Load a dataset by ``name``.

    * ``digits``: scikit-learn's 8x8 digits, no file needed; every fifth image is test data.
    * ``cifar10``, ``cifar100``: parquet files in ``data_dir`` (``train*.parquet`` and
      ``test*.parquet`` with the columns of the Hugging Face datasets), or, without ``data_dir``,
      downloaded by the package ``datasets``.
    * ``imagefolder:DIR``: ``DIR/train/CLASS/*`` and ``DIR/test/CLASS/*`` (or ``val``), resized and
      centre-cropped to ``image_size`` pixels; with ``test_share`` ``DIR/CLASS/*``, of which that
      share becomes test data. ``DIR`` may also have the Hub's parquet files, ``train*.parquet`` and
      ``test*.parquet`` or ``val*.parquet``, with the columns ``image`` and ``label``. With
      ``workers`` images stay in their files, and so many processes decode them for each batch.
    * ``table:FILE``: CSV or Parquet whose column ``label`` is predicted, see
      `guyot.app.data.tables`.
    * ``text:FILE``: windows of ``context`` characters, of which the share ``validation`` is held
      out, see `guyot.app.data.texts`.
    * ``FILE.py:NAME``: what a function of the user's returns, see `guyot.app.data.own`.

    With ``regression`` labels of tables and of the user's data are numbers and not classes.

    ``cache_dir`` defaults to ``$XDG_CACHE_HOME/guyot`` (``~/.cache/guyot``). An image that cannot
    be read is an error that names it; with ``skip_corrupt`` it is left out, and named by a warning.
    """
    cache = cache_root(cache_dir)
    if name == "digits":
        return _digits()
    if name in _HUB:
        folder = None if data_dir is None else Path(data_dir)
        return _cifar(name, folder, cache, skip_corrupt)
    if name.startswith("imagefolder:"):
        root = Path(name.removeprefix("imagefolder:"))
        found = _found(root, test_share)
        if workers is not None:
            return _streamed(found, image_size, workers, skip_corrupt)
        return _held(found, image_size, cache, skip_corrupt)
    if name.startswith("table:"):
        file = Path(name.removeprefix("table:"))
        return read_table(file, label, regression=regression)
    if name.startswith("text:"):
        return read_text(Path(name.removeprefix("text:")), context, validation)
    if is_function(name):
        return own_data(name, regression=regression)
    raise MisconfiguredError(
        f"data={name!r} is unknown; choose digits, {', '.join(_HUB)}, imagefolder:DIR, "
        "table:FILE.csv, text:FILE.txt or a function of your own as FILE.py:NAME"
    )


def _digits() -> Dataset:
    from sklearn.datasets import load_digits

    bunch: Any = load_digits()
    images = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[..., None]
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    is_test = torch.arange(len(labels)) % 5 == 4
    train = Split(images[~is_test], labels[~is_test])
    test = Split(images[is_test], labels[is_test])
    mean, std = statistics(train.images)
    classes = tuple(str(digit) for digit in range(10))
    return Dataset("digits", train, test, classes, mean, std, flip=False, pad=1)


def _cifar(name: str, data_dir: Path | None, cache: Path, skip_corrupt: bool) -> Dataset:
    if data_dir is None:
        splits, names = _from_hub(name)
    else:
        train, test = _parquet_files(data_dir, "train"), _parquet_files(data_dir, "test")
        splits = [
            _cached(cache, files, lambda f=files: _decode_parquet(name, f), name, skip_corrupt)
            for files in (train, test)
        ]
        names = schema_classes(train[0], _LABEL[name])
    classes = names or tuple(str(i) for i in range(int(splits[0].labels.max()) + 1))
    mean, std = statistics(splits[0].images)
    return Dataset(name, splits[0], splits[1], classes, mean, std, flip=True, pad=4)


def _parquet_files(data_dir: Path, split: str) -> list[Path]:
    files = sorted(data_dir.glob(f"**/{split}*.parquet"))
    if not files:
        raise MisconfiguredError(
            f"data_dir={str(data_dir)!r} holds no {split}*.parquet; point it to the folder with "
            "the dataset's parquet files"
        )
    return files


def _decode_parquet(name: str, files: list[Path]) -> Decoded:
    import pyarrow.parquet as parquet

    decoded = Decoded()
    for file in files:
        table = parquet.read_table(file)
        for column in ("img", _LABEL[name]):
            if column not in table.column_names:
                raise MisconfiguredError(
                    f"{file} has no column {column!r} (it has {', '.join(table.column_names)}); "
                    f"{name} is expected in the layout of {_HUB[name]}"
                )
        cells, labels = (table.column(c).to_pylist() for c in ("img", _LABEL[name]))
        for row, (cell, label) in enumerate(zip(cells, labels, strict=True)):
            decoded.add(lambda c=cell: c["bytes"], f"{file}, row {row}", label)
    return decoded


def _from_hub(name: str) -> tuple[list[Split], tuple[str, ...]]:
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MisconfiguredError(
            f"data={name!r} without data_dir is downloaded by the package 'datasets', which is not "
            "installed: pip install datasets, or give data_dir=FOLDER with its parquet files"
        ) from error
    hub: Any = datasets.load_dataset(_HUB[name])
    splits: list[Split] = []
    for part in ("train", "test"):
        images = np.stack([np.asarray(image.convert("RGB")) for image in hub[part]["img"]])
        labels = torch.tensor(hub[part][_LABEL[name]])
        splits.append(Split(torch.from_numpy(images), labels))
    return splits, tuple(hub["train"].features[_LABEL[name]].names)


@dataclass(frozen=True)
class _Found:
    """Images on a disk.

    Attributes:
        train: of them.
        test: None: a share of `train`.
        classes: their names.
        test_share: of `train`.
    """

    train: ImageSource
    test: ImageSource | None
    classes: tuple[str, ...]
    test_share: float | None

    def dataset(self, read: Callable[[ImageSource], Samples], size: int) -> Dataset:
        """Return the data set of what was read, in need of its statistics."""
        train = read(self.train)
        if self.test is not None:
            test = read(self.test)
        else:
            assert self.test_share is not None
            train, test = _divided(train, self.test_share)
        pad = max(1, size // 8)
        return Dataset("imagefolder", train, test, self.classes, *IMAGENET, flip=True, pad=pad)


def _found(root: Path, test_share: float | None) -> _Found:
    if not root.is_dir():
        raise MisconfiguredError(f"imagefolder:{root}: there is no such folder, give another")
    train_dir = root / "train"
    test_dir = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if not train_dir.is_dir() and (files := parquet_files(root, "train")):
        return _found_parquet(root, files, test_share)
    if test_share is not None:
        if train_dir.is_dir():
            raise MisconfiguredError(
                f"test_share={test_share} is for class folders without train and test, and {root} "
                "has train: leave it out"
            )
        classes = class_names(root)
        return _Found(ClassFolder(root, classes, whole=True), None, classes, test_share)
    if not train_dir.is_dir() or test_dir is None:
        classes = [name for name in subfolders(root) if name not in ("train", "test", "val")]
        remedy = "; or split the class folders that it has with test_share=0.2" if classes else ""
        raise MisconfiguredError(
            f"imagefolder:{root} needs the folders {train_dir} and {root / 'test'} (or val), "
            f"each with one sub-folder of images per class{remedy}"
        )
    classes = class_names(train_dir)
    train = ClassFolder(train_dir, classes, whole=True)
    return _Found(train, ClassFolder(test_dir, classes, whole=False), classes, None)


def _found_parquet(root: Path, files: list[Path], test_share: float | None) -> _Found:
    train = ParquetImages(files)
    count = int(train.labels.max()) + 1
    classes = train.classes or tuple(map(str, range(count)))
    if len(classes) < max(2, count) or int(train.labels.min()) < 0:
        raise MisconfiguredError(
            f"{files[0]} and the files beside it have {len(classes)} classes and labels from "
            f"{int(train.labels.min())} to {count - 1}: give two classes or more, numbered from 0"
        )
    if test_share is not None:
        if parquet_files(root, "test", "val"):
            raise MisconfiguredError(
                f"test_share={test_share} is for files without test data, and {root} has some: "
                "leave it out"
            )
        return _Found(train, None, classes, test_share)
    for split in ("test", "val"):
        if not (there := parquet_files(root, split)):
            continue
        test = ParquetImages(there)
        if bool((test.labels < 0).all()):  # those of ImageNet are secret
            warn(f"{there[0]} has no labels (all are {int(test.labels[0])}): it is not used")
            continue
        if test.classes != train.classes or not 0 <= int(test.labels.min()) <= int(
            test.labels.max()
        ) < len(classes):
            raise MisconfiguredError(
                f"{there[0]} has other classes than {files[0]}: give files of one data set"
            )
        return _Found(train, test, classes, None)
    raise MisconfiguredError(
        f"imagefolder:{root} has {files[0].name} and no test*.parquet or val*.parquet with labels: "
        "add some, or make a share of the training images test data with test_share=0.2"
    )


def _streamed(found: _Found, size: int, workers: int, skip: bool) -> Dataset:
    def read(source: ImageSource) -> Samples:
        return Streamed(source, torch.arange(len(source.labels)), size, workers, skip)

    return found.dataset(read, size)


def _held(found: _Found, size: int, cache: Path, skip: bool) -> Dataset:
    def read(source: ImageSource) -> Samples:
        _check_memory(len(source.labels), size)
        decode = partial(_decode_source, source, size)
        kind = "parquet" if isinstance(source, ParquetImages) else "folder"
        return _cached(cache, map(Path, source.files), decode, f"{kind}-{size}", skip)

    dataset = found.dataset(read, size)
    assert isinstance(dataset.train, Split)
    mean, std = statistics(dataset.train.images)
    return replace(dataset, mean=mean, std=std)


def memory() -> int:
    """Return the bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _check_memory(count: int, size: int) -> None:
    """Refuse images that would take more than half of the memory: they are copied once."""
    needed, there = count * size * size * 3, memory()
    if needed > there / 2:
        raise MisconfiguredError(
            f"{count:,} images of {size} pixels take {needed / 1e9:.1f} GB, and half of the memory "
            f"is {there / 2e9:.1f} GB: let processes decode them while the network trains "
            "(data_workers=8), or give a smaller image_size"
        )


def _divided(whole: Samples, share: float) -> tuple[Samples, Samples]:
    """Return training and test data: the same share of every class, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    labels = whole.labels
    test = torch.zeros(len(whole), dtype=torch.bool)
    for label in labels.unique():
        index = (labels == label).nonzero().flatten()
        count = min(len(index) - 1, max(1, round(share * len(index))))
        test[index[torch.randperm(len(index), generator=generator)[:count]]] = True
    return whole.take((~test).nonzero().flatten()), whole.take(test.nonzero().flatten())


def _decode_source(source: ImageSource, size: int) -> Decoded:
    decoded, reader = Decoded(size), source.reader()
    addresses = source.addresses(range(len(source.labels)))
    for address, label in zip(addresses, source.labels.tolist(), strict=True):
        reader.expect([address])
        decoded.add(partial(reader.read, address), reader.name(address), label)
    return decoded


def _cached(
    cache: Path, files: Iterable[Path], decode: Callable[[], Decoded], key: str, skip: bool
) -> Split:
    """Decode once; what could not be read is remembered, too, and told every time."""
    digest = hashlib.sha256(key.encode())
    for file in files:
        stat = file.stat()
        digest.update(f"{file.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode())
    stem = cache / f"{key}-{digest.hexdigest()[:16]}"
    image_file, label_file = stem.with_suffix(".images.npy"), stem.with_suffix(".labels.npy")
    corrupt_file = stem.with_suffix(".corrupt.json")
    if not label_file.exists():
        decoded = decode()
        judge(decoded.corrupt, len(decoded.labels), skip)
        if len({image.shape for image in decoded.images}) > 1:
            shapes = sorted({image.shape[:2] for image in decoded.images})
            raise UnsupportedError(f"images of {key} differ in size: {shapes[0]}, {shapes[1]}, ...")
        images, labels = np.stack(decoded.images), np.asarray(decoded.labels, dtype=np.int64)
        cache.mkdir(parents=True, exist_ok=True)
        evict(cache, images.nbytes + labels.nbytes)
        if decoded.corrupt:
            corrupt_file.write_text(json.dumps(decoded.corrupt), encoding="utf-8")
        for target, array in ((image_file, images), (label_file, labels)):
            scratch = target.with_suffix(f".{os.getpid()}.npy")
            np.save(scratch, array)
            scratch.replace(target)
    else:
        corrupt = json.loads(corrupt_file.read_text("utf-8")) if corrupt_file.exists() else []
        judge(corrupt, len(np.load(label_file, mmap_mode="r")), skip)
        touch([image_file, label_file])
    return Split(torch.from_numpy(np.load(image_file)), torch.from_numpy(np.load(label_file)))
