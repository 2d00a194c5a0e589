"""Where images come from: digits, CIFAR in Hugging Face parquet, folders of images.

Decoded images are cached as ``.npy`` under the user's cache folder, keyed by the source files'
sizes and times, so a second run starts at once.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guyot.app.cache import cache_root, evict, touch
from guyot.app.data.arrays import Dataset, Split, statistics
from guyot.app.data.decoding import Decoded, judge
from guyot.app.data.own import own_data
from guyot.app.data.tables import read_table
from guyot.app.data.texts import read_text
from guyot.app.user_code import is_function
from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.storage import regular

_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
_LABEL = {"cifar10": "label", "cifar100": "fine_label"}
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}


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
) -> Dataset:
    """Load a dataset by ``name``.

    * ``digits``: scikit-learn's 8x8 digits, no file needed; every fifth image is test data.
    * ``cifar10``, ``cifar100``: parquet files in ``data_dir`` (``train*.parquet`` and
      ``test*.parquet`` with the columns of the Hugging Face datasets), or, without ``data_dir``,
      downloaded by the package ``datasets``.
    * ``imagefolder:DIR``: ``DIR/train/CLASS/*`` and ``DIR/test/CLASS/*`` (or ``val``), resized and
      centre-cropped to ``image_size`` pixels; with ``test_share`` ``DIR/CLASS/*``, of which that
      share becomes test data.
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
        return _image_folder(root, image_size, cache, skip_corrupt, test_share)
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
        names = _class_names(name, train[0])
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


def _class_names(name: str, file: Path) -> tuple[str, ...]:
    import pyarrow.parquet as parquet

    metadata = parquet.read_schema(file).metadata or {}
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return tuple(features.get(_LABEL[name], {}).get("names", ()))


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


def _image_folder(
    root: Path, size: int, cache: Path, skip_corrupt: bool, test_share: float | None
) -> Dataset:
    if not root.is_dir():
        raise MisconfiguredError(f"imagefolder:{root}: there is no such folder, give another")
    train_dir = root / "train"
    test_dir = next((root / part for part in ("test", "val") if (root / part).is_dir()), None)
    if test_share is not None:
        if train_dir.is_dir():
            raise MisconfiguredError(
                f"test_share={test_share} is for class folders without train and test, and {root} "
                "has train: leave it out"
            )
        train_dir = test_dir = root
    elif not train_dir.is_dir() or test_dir is None:
        classes = [name for name in _folders(root) if name not in ("train", "test", "val")]
        remedy = "; or split the class folders that it has with test_share=0.2" if classes else ""
        raise MisconfiguredError(
            f"imagefolder:{root} needs the folders {train_dir} and {root / 'test'} (or val), "
            f"each with one sub-folder of images per class{remedy}"
        )
    assert test_dir is not None
    classes = _classes(train_dir)
    splits: list[Split] = []
    for folder in dict.fromkeys((train_dir, test_dir)):
        files = _class_files(folder, classes, whole=folder == train_dir)
        key = f"folder-{size}"
        paths = [path for path, _ in files]
        decode = partial(_decode_folder, files, size)
        splits.append(_cached(cache, paths, decode, key, skip_corrupt))
    if test_share is not None:
        splits = _divided(splits[0], test_share)
    mean, std = statistics(splits[0].images)
    pad = max(1, size // 8)
    return Dataset("imagefolder", splits[0], splits[1], classes, mean, std, flip=True, pad=pad)


def _divided(whole: Split, share: float) -> list[Split]:
    """Return training and test data: the same share of every class, the same ones every time."""
    generator = torch.Generator().manual_seed(0)
    test = torch.zeros(len(whole), dtype=torch.bool)
    for label in whole.labels.unique():
        index = (whole.labels == label).nonzero().flatten()
        count = min(len(index) - 1, max(1, round(share * len(index))))
        test[index[torch.randperm(len(index), generator=generator)[:count]]] = True
    return [whole.take((~test).nonzero().flatten()), whole.take(test.nonzero().flatten())]


def _folders(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    except OSError as error:
        raise MisconfiguredError(
            f"{folder} cannot be read ({error.strerror}): change its permissions"
        ) from error


def _classes(folder: Path) -> tuple[str, ...]:
    """Return the classes of a folder.

    Raises:
        MisconfiguredError: there are fewer than two.
    """
    classes = tuple(_folders(folder))
    if len(classes) < 2:
        loose = sum(path.suffix.lower() in _SUFFIXES for path in folder.iterdir())
        found = f"only the class {classes[0]!r}" if classes else "no folders of classes"
        beside = f", and {loose} images that are in no class" if loose else ""
        raise MisconfiguredError(
            f"{folder} has {found}{beside}: give two classes or more, each in a folder of its own"
        )
    return classes


def _class_files(folder: Path, classes: tuple[str, ...], whole: bool) -> list[tuple[Path, int]]:
    """Return images and their labels; of training data every class must have some."""
    unknown = [name for name in _folders(folder) if name not in classes]
    if unknown:
        raise MisconfiguredError(
            f"{folder} has classes that the training folder lacks: {', '.join(unknown)}"
        )
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("**/*"))
        if path.suffix.lower() in _SUFFIXES
    ]
    if not files:
        raise MisconfiguredError(
            f"{folder} holds no images in class folders; known endings: "
            f"{', '.join(sorted(_SUFFIXES))}"
        )
    there = {label for _, label in files}
    if whole and (empty := [name for n, name in enumerate(classes) if n not in there]):
        raise MisconfiguredError(
            f"{folder} has classes without images: {', '.join(empty)}; add some, or remove the "
            "folders"
        )
    return files


def _decode_folder(files: list[tuple[Path, int]], size: int) -> Decoded:
    decoded = Decoded(size)
    for path, label in files:

        def read(path: Path = path) -> bytes:
            regular(path.resolve())  # a pipe would be waited for
            return path.read_bytes()

        decoded.add(read, str(path), label)
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
