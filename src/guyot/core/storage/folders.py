"""Folders that appear whole or not at all, and the checksums of what is in them."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Collection, Generator, Iterable, Mapping
from pathlib import Path

from guyot.core.errors import MisconfiguredError, StorageError, first_line
from guyot.core.storage.files import JSON_LIMIT, regular, sync, unwritten

SUMS = "SHA256SUMS"
"""Name of the file with the checksums of a folder; `sha256sum --check` reads it."""

_SCRATCH = ".unfinished-"
_REPLACED = f"{_SCRATCH}replaced-"


@contextlib.contextmanager
def published(folder: Path, known: Mapping[str, str] | None = None) -> Generator[Path]:
    """Give a new folder to be filled; it gets its name when all of it is on disk.

    Files get their checksums, files and folder are synced, then the folder is renamed, and the
    rename is synced. A folder of that name is replaced. If anything fails, nothing appears.

    Args:
        folder: to write.
        known: checksums by the names of files that other processes have put there by the end.

    Raises:
        StorageError: it cannot be written.
    """
    scratch = unfinished(folder)
    replaced = folder.parent / f"{_REPLACED}{folder.name}"
    try:
        remove_leftovers(folder.parent)
        scratch.mkdir(parents=True)
        yield scratch
        known = dict(known or {})
        known |= checksums(file for file in scratch.iterdir() if file.name not in known)
        sums = "".join(f"{digest}  {name}\n" for name, digest in sorted(known.items()))
        (scratch / SUMS).write_text(sums, encoding="utf-8")
        for file in (scratch / SUMS, scratch):
            sync(file)
        if folder.exists():
            folder.rename(replaced)
        scratch.rename(folder)
        sync(folder.parent)
        _discard(replaced)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise unwritten(folder, error) from error
    finally:
        with contextlib.suppress(OSError):
            _discard(scratch)


def unfinished(folder: Path) -> Path:
    """Return where a folder is while `published` lets it be filled."""
    return folder.parent / f"{_SCRATCH}{folder.name}"


def checksums(files: Iterable[Path]) -> dict[str, str]:
    """Return the checksums of files by name, and write the files to the disk itself.

    Raises:
        StorageError: they cannot be written.
    """
    found: dict[str, str] = {}
    for file in files:
        try:
            found[file.name] = _sha256(file)
            sync(file)
        except OSError as error:
            raise unwritten(file, error) from error
    return found


def removed(folder: Path) -> None:
    """Remove a folder; it disappears at once, never in part."""
    scratch = folder.parent / f"{_SCRATCH}removed-{folder.name}"
    _discard(scratch)
    folder.rename(scratch)
    _discard(scratch)


def remove_leftovers(parent: Path) -> None:
    """Put in order what a killed process left; every folder is then old or new, and whole."""
    for folder in parent.glob(f"{_SCRATCH}*"):
        replaced = parent / folder.name.removeprefix(_REPLACED)
        if folder.name.startswith(_REPLACED) and not replaced.exists():
            folder.rename(replaced)  # killed between the two renames of `published`
        else:
            _discard(folder)


def verify(folder: Path, names: Collection[str], mine: Collection[str] | None = None) -> None:
    """Check that a folder holds exactly these files, whole, and the checksums of all of them.

    Args:
        folder: to check.
        names: of the files.
        mine: whose content is read; None: that of all.

    Raises:
        MisconfiguredError: names the file that is missing, unexpected, or was changed.
    """
    try:
        present = {file.name for file in folder.iterdir()}
    except OSError as error:
        raise MisconfiguredError(f"{folder} cannot be read: {first_line(error)}") from error
    for name in sorted({*names, SUMS} ^ present):
        kind = "is missing" if name not in present else "does not belong there"
        raise MisconfiguredError(f"{folder / name} {kind}: this is no whole checkpoint")
    try:
        if regular(folder / SUMS) > JSON_LIMIT:
            raise ValueError("it is too large")
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except (OSError, ValueError) as error:
        raise MisconfiguredError(f"{folder / SUMS} cannot be read: {first_line(error)}") from error
    if set(sums) != set(names):
        raise MisconfiguredError(
            f"{folder / SUMS} lists {', '.join(sorted(sums)) or 'nothing'}; expected "
            f"{', '.join(sorted(names))}"
        )
    for name in sorted(names if mine is None else mine):
        try:
            size, digest = regular(folder / name), _sha256(folder / name)
        except (OSError, ValueError) as error:
            raise MisconfiguredError(
                f"{folder / name} cannot be read: {first_line(error)}"
            ) from error
        if digest != sums[name]:
            raise MisconfiguredError(
                f"{folder / name} is damaged: its {size} bytes have the SHA-256 {digest[:12]}..., "
                f"written were {sums[name][:12]}..."
            )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _discard(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
