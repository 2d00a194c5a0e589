"""What is kept between runs: decoded images, and what was measured of this machine.

The folder is `$XDG_CACHE_HOME/guyot`, else `~/.cache/guyot`. Everything in it can be made again.
When images are added, those that were not used for the longest time are removed, so that the folder
stays below `$GUYOT_CACHE_GB` gigabytes, 10 unless it is set.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from guyot.core.errors import MisconfiguredError

_BOUND = "GUYOT_CACHE_GB"
_USUAL = 10.0
_IMAGES = re.compile(r"(?P<stem>.+-[0-9a-f]{16})\.(?:images\.npy|labels\.npy|corrupt\.json)")
_MEASURED = re.compile(r"(?P<stem>quantum-[0-9a-f]{16})\.json")
_SCRATCH = re.compile(r"(?P<stem>.+-[0-9a-f]{16})\..*\d+(?:\.npy)?")


@dataclass(frozen=True)
class Kept:
    """Files that are kept, used and removed together.

    Attributes:
        name: what their names begin with.
        kind: "images" or "measurements".
        files: of the entry.
        size: bytes.
        used: when, in seconds since 1970.
    """

    name: str
    kind: str
    files: tuple[Path, ...]
    size: int
    used: float


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """Return the folder given, or `$XDG_CACHE_HOME/guyot` (`~/.cache/guyot`)."""
    if cache_dir is not None:
        return Path(cache_dir)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "guyot"


def bound() -> int:
    """Return how many bytes the folder may hold.

    Raises:
        MisconfiguredError: the variable holds no such number.
    """
    text = os.environ.get(_BOUND, "")
    try:
        value = float(text) if text else _USUAL
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise MisconfiguredError(f"{_BOUND}={text!r}: give gigabytes, such as 10, or unset it")
    return round(value * 1e9)


def entries(root: Path) -> list[Kept]:
    """Return what a folder keeps, the least recently used first; nothing of others is named."""
    found: dict[tuple[str, str], list[tuple[Path, os.stat_result]]] = {}
    for file in sorted(root.glob("*")):
        for kind, pattern in (
            ("images", _IMAGES),
            ("measurements", _MEASURED),
            ("images", _SCRATCH),  # of a program that was killed
        ):
            if (named := pattern.fullmatch(file.name)) and file.is_file():
                with contextlib.suppress(FileNotFoundError):  # another program removed it
                    found.setdefault((kind, named["stem"]), []).append((file, file.stat()))
                break
    made = [
        Kept(
            name,
            kind,
            tuple(file for file, _ in parts),
            sum(stat.st_size for _, stat in parts),
            max(stat.st_mtime for _, stat in parts),
        )
        for (kind, name), parts in found.items()
    ]
    return sorted(made, key=lambda entry: (entry.used, entry.name))


def remove(removed: Iterable[Kept]) -> None:
    """Remove entries.

    Raises:
        MisconfiguredError: a file cannot be removed.
    """
    for entry in removed:
        for file in entry.files:
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise MisconfiguredError(
                    f"{file} cannot be removed ({error.strerror}): change its permissions"
                ) from error


def evict(root: Path, size: int) -> None:
    """Remove images, the least recently used first, until so many bytes more fit in."""
    known = entries(root)
    over = sum(entry.size for entry in known) + size - bound()
    for entry in known:
        if over <= 0:
            return
        if entry.kind == "images":
            remove([entry])
            over -= entry.size


def touch(files: Iterable[Path]) -> None:
    """Note that files were used."""
    for file in files:
        with contextlib.suppress(OSError):  # a folder that may only be read
            os.utime(file)
