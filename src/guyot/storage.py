"""Trees and folders on disk: safetensors and JSON, written whole or not at all, read with mistrust.

A tree (see `guyot.trees`) becomes two files: `NAME.safetensors` holds its tensors, `NAME.json` the
rest. JSON has no tuples, no keys but strings, no NaN; one-entry objects whose key begins with $
stand for them:

    {"$tensor": "optimizer.state.0.exp_avg", "strides": [9, 1, 3]}  strides: if not contiguous
    {"$tuple": [0.9, 0.999]}
    {"$items": [[0, "a"], [1, "b"]]}                                a dict with other keys
    {"$counter": [[30, 1], [60, 1]]}                                a `collections.Counter`
    {"$float": "nan"}                                               or "inf", "-inf"
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
from collections import Counter
from collections.abc import Collection, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from guyot.errors import MisconfiguredError, StorageError, UnsupportedError
from guyot.trees import describe

SUMS = "SHA256SUMS"
"""Name of the file with the checksums of a folder; `sha256sum --check` reads it."""

JSON_LIMIT = 2**28
"""Bytes of the largest JSON file that is read; a structure of a million units takes 2**23."""

_SCRATCH = ".unfinished-"
_REPLACED = f"{_SCRATCH}replaced-"


def write_tree(folder: Path, name: str, tree: Any) -> None:
    """Write `NAME.json` and `NAME.safetensors`.

    Raises:
        UnsupportedError: a leaf is neither a dense tensor nor a plain value; says where.
        StorageError: the disk is full, or the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    write_json(folder / f"{name}.json", _encoded(tree, name, tensors))
    write_tensors(folder / f"{name}.safetensors", tensors)


def read_tree(folder: Path, name: str) -> Any:
    """The tree that `write_tree` wrote; tensors are on the CPU and have the strides they had.

    Raises:
        MisconfiguredError: a file is missing, damaged, or not of this kind; names it.
    """
    tensors = read_tensors(folder / f"{name}.safetensors")
    file = folder / f"{name}.json"
    try:
        return _decoded(read_json(file), tensors)
    except _Malformed as error:
        raise MisconfiguredError(f"{file} is no state that guyot wrote: {error}") from error


def write_json(file: Path, value: Any) -> None:
    """Write plain data.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        file.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise _unwritten(file, error) from error


def replaced(file: Path, text: str) -> None:
    """Write a text file; a reader finds the old text or the new one, even after a crash.

    Raises:
        StorageError: it cannot be written; the old one is still there.
    """
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        _sync(scratch)
        scratch.replace(file)
        _sync(file.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise _unwritten(file, error) from error


def read_json(file: Path) -> Any:
    """Read plain data.

    Raises:
        MisconfiguredError: it is missing, too large, or no JSON.
    """
    try:
        size = _regular(file)
        if size > JSON_LIMIT:
            raise ValueError(f"it has {size} bytes, more than {JSON_LIMIT}")
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise MisconfiguredError(f"{file} cannot be read: {_reason(error)}") from error


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors by name, contiguous.

    Raises:
        UnsupportedError: one of them is sparse, or of a dtype that safetensors lacks.
        StorageError: they cannot be written.
    """
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.layout is not torch.strided or tensor.is_meta:
            raise UnsupportedError(
                f"{name} is {describe(tensor)} with layout {tensor.layout} on {tensor.device}: a "
                "checkpoint holds dense tensors"
            )
        value = tensor.detach().cpu().contiguous()
        if value.untyped_storage().data_ptr() in seen:  # safetensors wants no two names for one
            value = value.clone()
        seen.add(value.untyped_storage().data_ptr())
        plain[name] = value
    try:
        save_file(plain, file, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise _unwritten(file, error) from error
    except (KeyError, ValueError) as error:
        raise UnsupportedError(f"{file.name} cannot hold a tensor: {_reason(error)}") from error


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read tensors by name, to the CPU.

    Raises:
        MisconfiguredError: the file is missing or damaged.
    """
    try:
        _regular(file)
        return load_file(file)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise MisconfiguredError(f"{file} cannot be read: {_reason(error)}") from error


def _encoded(tree: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Plain data for JSON; tensors are put aside by name."""
    if isinstance(tree, Tensor):
        name = path if path not in tensors else f"{path}#{len(tensors)}"
        tensors[name] = tree
        entry: dict[str, Any] = {"$tensor": name}
        if not tree.is_contiguous() and _dense(tree.shape, tree.stride()):
            entry["strides"] = list(tree.stride())
        return entry
    if isinstance(tree, np.generic):
        tree = tree.item()
    if tree is None or isinstance(tree, bool | int | str):
        return tree
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else {"$float": repr(tree)}
    if isinstance(tree, Mapping):
        keyed = all(isinstance(key, str) and not key.startswith("$") for key in tree)
        items = [
            (key if keyed else _encoded(key, path, tensors), _encoded(v, f"{path}.{key}", tensors))
            for key, v in tree.items()
        ]
        if isinstance(tree, Counter):
            return {"$counter": items}
        return dict(items) if keyed else {"$items": items}
    if isinstance(tree, list | tuple):
        values = [_encoded(value, f"{path}.{n}", tensors) for n, value in enumerate(tree)]
        return values if isinstance(tree, list) else {"$tuple": values}
    raise UnsupportedError(
        f"{path} is a {type(tree).__name__}: a checkpoint holds tensors, numbers, strings, None, "
        "and dicts, lists and tuples of them"
    )


class _Malformed(Exception):
    """JSON that `_encoded` does not write."""


def _decoded(data: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_encoded`."""
    if isinstance(data, list):
        return [_decoded(value, tensors) for value in data]
    if not isinstance(data, dict):
        return data
    tags = [key for key in data if key.startswith("$")]
    if not tags:
        return {key: _decoded(value, tensors) for key, value in data.items()}
    value = data[tags[0]]
    match tags[0]:
        case "$tensor" if set(data) <= {"$tensor", "strides"}:
            return _tensor(value, data.get("strides"), tensors)
        case "$tuple" if len(data) == 1 and isinstance(value, list):
            return tuple(_decoded(item, tensors) for item in value)
        case "$items" | "$counter" if len(data) == 1 and isinstance(value, list):
            kind = dict if tags[0] == "$items" else Counter
            with contextlib.suppress(TypeError, ValueError):
                return kind({_key(_decoded(k, tensors)): _decoded(v, tensors) for k, v in value})
        case "$float" if value in ("nan", "inf", "-inf") and len(data) == 1:
            return float(value)
        case _:
            pass
    raise _Malformed(f"{describe(data)} with {tags[0]!r}: {describe(value)}")


def _key(key: Any) -> Any:
    if isinstance(key, str | int | float | bool | tuple | None):
        return key
    raise TypeError


def _tensor(name: Any, strides: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    if not isinstance(name, str) or name not in tensors:
        raise _Malformed(f"the tensor {describe(name)} is not in the file beside it")
    tensor = tensors[name]
    if strides is None:
        return tensor
    if (
        not isinstance(strides, list)
        or len(strides) != tensor.dim()
        or not all(type(stride) is int and 0 <= stride < 2**62 for stride in strides)
        or not _dense(tensor.shape, strides)
    ):
        raise _Malformed(f"{describe(strides)} as strides of {describe(tensor)}")
    laid_out = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype)
    return laid_out.copy_(tensor)


def _dense(shape: Iterable[int], strides: Iterable[int]) -> bool:
    """No two entries share memory and none is skipped."""
    expected = 1
    for stride, size in sorted((s, n) for n, s in zip(shape, strides, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return expected > 0


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _regular(file: Path) -> int:
    """Bytes of a file that is neither a link nor a device."""
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    return found.st_size


def _reason(error: BaseException) -> str:
    text = str(getattr(error, "strerror", None) or error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def _unwritten(file: Path, error: BaseException) -> StorageError:
    return StorageError(
        f"{file} cannot be written: {_reason(error)}; make room or give another folder"
    )


@contextlib.contextmanager
def published(folder: Path) -> Generator[Path]:
    """A new folder to be filled; it appears under its name when all of it is on disk.

    Files get their checksums, files and folder are synced, then the folder is renamed, and the
    rename is synced. A folder of that name is replaced. If anything fails, nothing appears.

    Raises:
        StorageError: it cannot be written.
    """
    scratch = folder.parent / f"{_SCRATCH}{folder.name}"
    replaced = folder.parent / f"{_REPLACED}{folder.name}"
    try:
        sweep(folder.parent)
        scratch.mkdir(parents=True)
        yield scratch
        sums = "".join(f"{_sha256(file)}  {file.name}\n" for file in sorted(scratch.iterdir()))
        (scratch / SUMS).write_text(sums, encoding="utf-8")
        for file in [*scratch.iterdir(), scratch]:
            _sync(file)
        if folder.exists():
            folder.rename(replaced)
        scratch.rename(folder)
        _sync(folder.parent)
        _discard(replaced)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise _unwritten(folder, error) from error
    finally:
        with contextlib.suppress(OSError):
            _discard(scratch)


def removed(folder: Path) -> None:
    """Remove a folder; it disappears at once, never in part."""
    scratch = folder.parent / f"{_SCRATCH}removed-{folder.name}"
    _discard(scratch)
    folder.rename(scratch)
    _discard(scratch)


def sweep(parent: Path) -> None:
    """Put in order what a killed process left; every folder is then old or new, and whole."""
    for folder in parent.glob(f"{_SCRATCH}*"):
        replaced = parent / folder.name.removeprefix(_REPLACED)
        if folder.name.startswith(_REPLACED) and not replaced.exists():
            folder.rename(replaced)  # killed between the two renames of `published`
        else:
            _discard(folder)


def verify(folder: Path, names: Collection[str]) -> None:
    """Check that a folder holds exactly these files, whole, and the checksums of all of them.

    Raises:
        MisconfiguredError: names the file that is missing, unexpected, or was changed.
    """
    try:
        present = {file.name for file in folder.iterdir()}
    except OSError as error:
        raise MisconfiguredError(f"{folder} cannot be read: {_reason(error)}") from error
    for name in sorted({*names, SUMS} ^ present):
        kind = "is missing" if name not in present else "does not belong there"
        raise MisconfiguredError(f"{folder / name} {kind}: this is no whole checkpoint")
    try:
        if _regular(folder / SUMS) > JSON_LIMIT:
            raise ValueError("it is too large")
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except (OSError, ValueError) as error:
        raise MisconfiguredError(f"{folder / SUMS} cannot be read: {_reason(error)}") from error
    if set(sums) != set(names):
        raise MisconfiguredError(
            f"{folder / SUMS} lists {', '.join(sorted(sums)) or 'nothing'}; expected "
            f"{', '.join(sorted(names))}"
        )
    for name in sorted(names):
        try:
            size, digest = _regular(folder / name), _sha256(folder / name)
        except (OSError, ValueError) as error:
            raise MisconfiguredError(f"{folder / name} cannot be read: {_reason(error)}") from error
        if digest != sums[name]:
            raise MisconfiguredError(
                f"{folder / name} is damaged: its {size} bytes have the SHA-256 {digest[:12]}..., "
                f"written were {sums[name][:12]}..."
            )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk itself."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
