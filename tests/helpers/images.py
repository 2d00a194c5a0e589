"""Small images in folders and in Parquet files, and a source whose reader dies."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from guyot.app.data.folders import Address, ClassFolder, Reader

CLASSES = ("cat", "dog")


def picture(number: int, side: int = 20) -> bytes:
    """Return a PNG whose pixels tell its number and are not square."""
    pixels = np.random.default_rng(number).integers(0, 256, (side, side + number % 7, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_folder(root: Path, train: int = 20, test: int = 6) -> Path:
    """Write so many images, half of them of each class."""
    for part, first, count in (("train", 0, train), ("val", train, test)):
        for number in range(first, first + count):
            folder = root / part / CLASSES[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:03d}.png").write_bytes(picture(number))
    return root


def write_parquet(root: Path, train: int = 20, test: int = 6, group: int = 3) -> Path:
    """Write the same images in the columns and files of the Hub."""
    (root / "data").mkdir(parents=True)
    half = train // 2
    rows("data/train-00000-of-00002", root, range(half), group)
    rows("data/train-00001-of-00002", root, range(half, train), group)
    rows("data/validation-00000-of-00001", root, range(train, train + test), group)
    return root


def rows(
    name: str,
    root: Path,
    numbers: Sequence[int],
    group: int = 3,
    labels: Sequence[int] | None = None,
    classes: Sequence[str] = CLASSES,
) -> None:
    """Write a Parquet file of images with the columns of the Hub."""
    import pyarrow as pa
    from pyarrow import parquet

    cells = [{"bytes": picture(number), "path": f"{number}.png"} for number in numbers]
    table = pa.table({"image": cells, "label": labels or [number % 2 for number in numbers]})
    info = {"info": {"features": {"label": {"names": list(classes)}}}}
    table = table.replace_schema_metadata({b"huggingface": json.dumps(info).encode()})
    parquet.write_table(table, root / f"{name}.parquet", row_group_size=group)


class Deadly(ClassFolder):
    """Images of which one ends the process that reads it."""

    def reader(self) -> Reader:
        return _Deadly()


class _Deadly:
    def expect(self, addresses: Sequence[Address]) -> None:
        pass

    def read(self, address: Address) -> bytes:
        if Path(address).name == "011.png":
            os._exit(1)
        return Path(address).read_bytes()

    def name(self, address: Address) -> str:
        return str(address)
