"""Trees as files: `NAME.safetensors` holds a tree's tensors, `NAME.json` the other values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from guyot.core.errors import MisconfiguredError
from guyot.core.storage.coding import Malformed, decoded, encoded
from guyot.core.storage.files import plain_tensors, read_json, write_json, write_tensors
from guyot.core.storage.stored import Stored, loaded, stored

_TEXT = "$text"
"""Name of the tensor that holds the JSON of a tree in one piece; no path in a tree is like it."""


def write_tree(folder: Path, name: str, tree: Any) -> None:
    """Write `NAME.json` and `NAME.safetensors`.

    Raises:
        UnsupportedError: a leaf is neither a dense tensor nor a plain value; says where.
        StorageError: the disk is full, or the folder cannot be written.
    """
    data, tensors = taken_apart(name, tree)
    write_json(folder / f"{name}.json", data)
    write_tensors(folder / f"{name}.safetensors", tensors)


def taken_apart(name: str, tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """Return what `NAME.json` and `NAME.safetensors` hold of a tree.

    Raises:
        UnsupportedError: a leaf is neither a tensor nor a plain value; says where.
    """
    tensors: dict[str, Tensor] = {}
    return encoded(tree, name, tensors), tensors


def read_tree(folder: Path, name: str) -> Any:
    """The tree that `write_tree` wrote; tensors are on the CPU and have the strides they had.

    Raises:
        MisconfiguredError: a file is missing, damaged, or not of this kind; names it.
    """
    return loaded(put_together(folder, name, stored(folder, name)))


def put_together(folder: Path, name: str, tensors: Mapping[str, Stored]) -> Any:
    """Return the tree of `NAME.json` with tensors that have not been read.

    Raises:
        MisconfiguredError: the file is missing, damaged, or not of this kind; names it.
    """
    file = folder / f"{name}.json"
    try:
        return decoded(read_json(file), tensors, Stored.laid_out)
    except Malformed as error:
        raise MisconfiguredError(f"{file} is no state that guyot wrote: {error}") from error


def packed(name: str, tree: Any) -> bytes:
    """Return a tree in one piece, to be sent to another process; `name` is for errors.

    Raises:
        UnsupportedError: a leaf is neither a dense tensor nor a plain value; says where.
    """
    data, tensors = taken_apart(name, tree)
    text = json.dumps(data, allow_nan=False).encode()
    tensors[_TEXT] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return save(plain_tensors(tensors))


def unpacked(data: bytes) -> Any:
    """Return the tree that `packed` made."""
    tensors = load(data)
    return decoded(json.loads(tensors.pop(_TEXT).numpy().tobytes()), tensors)
