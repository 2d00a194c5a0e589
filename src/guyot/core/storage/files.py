"""Files of tensors and of plain data."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from guyot.core.errors import (
    MisconfiguredError,
    StorageError,
    UnsupportedError,
    first_line,
)
from guyot.core.trees import describe

JSON_LIMIT = 2**28
"""Bytes of the largest JSON file that is read; a structure of a million units takes 2**23."""


def write_json(file: Path, value: Any) -> None:
    """Write plain data.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        file.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise unwritten(file, error) from error


def replaced(file: Path, text: str) -> None:
    """Write a text file; a reader finds the old text or the new one, even after a crash.

    Raises:
        StorageError: it cannot be written; the old one is still there.
    """
    scratch = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        scratch.write_text(text, encoding="utf-8")
        sync(scratch)
        scratch.replace(file)
        sync(file.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise unwritten(file, error) from error


def read_json(file: Path, *, links: bool = False) -> Any:
    """Read plain data.

    Args:
        file: to read; a device or a pipe is not waited for.
        links: follow them, as suits a file that the user names.

    Raises:
        MisconfiguredError: it is missing, too large, or no JSON.
    """
    try:
        size = regular(file.resolve() if links else file)
        if size > JSON_LIMIT:
            raise ValueError(f"it has {size} bytes, more than {JSON_LIMIT}")
        return json.loads(file.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except (OSError, ValueError, RecursionError) as error:
        raise MisconfiguredError(f"{file} cannot be read: {first_line(error)}") from error


def write_tensors(
    file: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None
) -> None:
    """Write tensors by name, contiguous.

    Args:
        file: to write.
        tensors: by name.
        notes: texts by name, which the file holds beside.

    Raises:
        UnsupportedError: one of them is sparse, or of a dtype that safetensors lacks.
        StorageError: they cannot be written.
    """
    plain = plain_tensors(tensors)
    try:
        file.touch()
        mode = file.stat().st_mode  # as the umask wants it; safetensors lets only the owner read
        save_file(plain, file, metadata={"format": "pt", **(notes or {})})
        file.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise unwritten(file, error) from error
    except (KeyError, ValueError) as error:
        raise UnsupportedError(f"{file.name} cannot hold a tensor: {first_line(error)}") from error


def plain_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return contiguous tensors on the CPU that share no memory.

    Raises:
        UnsupportedError: one of them is sparse.
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
    return plain


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Read tensors by name, to the CPU.

    Raises:
        MisconfiguredError: the file is missing or damaged.
    """
    try:
        regular(file)
        return load_file(file)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise MisconfiguredError(f"{file} cannot be read: {first_line(error)}") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def regular(file: Path) -> int:
    """Return the bytes of a file that is neither a link nor a device."""
    found = file.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no regular file")
    return found.st_size


def unwritten(file: Path, error: BaseException) -> StorageError:
    """Return the error for a file or folder that cannot be written."""
    return StorageError(
        f"{file} cannot be written: {first_line(error)}; make room or give another folder"
    )


def sync(path: Path) -> None:
    """Write a file, or the names in a folder, to the disk itself."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
