"""The run folder: what it holds, how it is written, and the network made from it again.

config.json         the `RunConfig`, with device, threads and precision as they were
environment.json    versions, hardware, command and state of the sources, for every start
metrics.jsonl       what happened, a line each: `docs/runs.md` is the reference
checkpoints/        the last checkpoints, see `guyot.discovery.checkpoint`
model.safetensors   the state dict of the network that is left
structure.json      the model's name and what it kept, for `guyot.load`
result.json         figures before and after
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from guyot.app.config import RunConfig
from guyot.app.factories import check_trusted, is_factory
from guyot.app.models import build
from guyot.app.running.tensorboard import Board
from guyot.core.contents import RUN
from guyot.core.errors import MisconfiguredError, StorageError
from guyot.core.inputs import Inputs
from guyot.core.schema import misfit
from guyot.core.storage import read_json, replaced
from guyot.core.trees import finite, json_text
from guyot.costs.latency import LatencyTable
from guyot.results.saved import STRUCTURE, WEIGHTS, load, read, save


class RunFolder:
    """Writes a run folder; of a finished run nothing is ever overwritten.

    Args:
        path: does not exist or is empty; of a resumed run, its folder.
        board: is told every line of `metrics.jsonl` too.
        resumed: a run continues here.

    Raises:
        MisconfiguredError: there is something else.
    """

    def __init__(self, path: Path, board: Board | None = None, *, resumed: bool = False) -> None:
        self.path, self._board = path, board
        self.lines = 0
        if resumed:
            self._check_unfinished()
        elif (path / "config.json").is_file():
            raise MisconfiguredError(
                f"out={str(path)!r} holds a run: continue it by guyot train --resume {path}, or "
                "give a new folder"
            )
        elif path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise MisconfiguredError(
                f"out={str(path)!r} {'is not empty' if path.is_dir() else 'is a file'}: give a "
                "new folder, what is there is not overwritten"
            )

    def _check_unfinished(self) -> None:
        if not (self.path / "config.json").is_file():
            raise MisconfiguredError(
                f"resume={str(self.path)!r} is no run folder, it has no config.json: give one that "
                "guyot train wrote"
            )
        if is_finished(self.path):
            raise MisconfiguredError(
                f"resume={str(self.path)!r} is finished, there is nothing to continue: what "
                "came out is in the folder"
            )

    @property
    def checkpoints(self) -> Path:
        """Return where checkpoints go."""
        return self.path / "checkpoints"

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Nobody else writes here meanwhile.

        Raises:
            MisconfiguredError: somebody does, or the folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise MisconfiguredError(
                f"out={str(self.path)!r} cannot be made ({error.strerror}): give another folder"
            ) from error
        try:
            if not _lock(descriptor):
                raise MisconfiguredError(
                    f"{self.path} is in use by another process: wait for its end, or stop it"
                )
            yield
        finally:
            os.close(descriptor)

    def begin(self, config: RunConfig, environment: Mapping[str, Any]) -> None:
        """Write `config.json`, `environment.json` and an empty `metrics.jsonl`.

        A latency table is copied to `latency.json`, and the configuration names the copy.

        Raises:
            StorageError: they cannot be written.
        """
        if config.latency_table is not None:
            table = self.path / "latency.json"
            self._write(table.name, LatencyTable.load(config.latency_table).to_dict())
            config = dataclasses.replace(config, latency_table=str(table.resolve()))
        self._write("config.json", config.to_dict())
        self.restart(0, environment)

    def restart(self, lines: int, environment: Mapping[str, Any]) -> None:
        """Keep the lines that were written before a checkpoint, and note another start.

        The network and the figures of the stopped run are removed; they will be written again.

        Raises:
            StorageError: the files cannot be written.
        """
        file = self.path / "environment.json"
        before: Any = read_json(file) if file.exists() else None
        starts = before.get("starts") if isinstance(before, Mapping) else None
        known = starts if isinstance(starts, list) else []
        self._write(file.name, {"starts": [*known, environment]})
        self._cut(lines)
        for name in ("result.json", STRUCTURE, WEIGHTS):
            (self.path / name).unlink(missing_ok=True)

    def _cut(self, lines: int) -> None:
        file = self.path / "metrics.jsonl"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        kept = text.splitlines(keepends=True)[:lines]
        if len(kept) < lines:
            raise MisconfiguredError(
                f"{file} has {len(kept)} lines and the checkpoint was written after {lines}: "
                "restore the file, or start a new run"
            )
        replaced(file, "".join(kept))
        self.lines = lines

    def metric(self, event: str, values: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`; `docs/runs.md` says what it may hold.

        Raises:
            StorageError: it cannot be written.
        """
        line = json.dumps(finite({"event": event, **values}), allow_nan=False)
        file = self.path / "metrics.jsonl"
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise StorageError(
                f"{file} cannot be written: {error.strerror}; make room, then guyot train "
                f"--resume {self.path} continues the run"
            ) from error
        self.lines += 1
        if self._board is not None:
            self._board.metric(event, values)

    def network(
        self, model: nn.Module, example_inputs: Inputs, structure: Mapping[str, Any]
    ) -> None:
        """Write `model.safetensors` and `structure.json`."""
        save(self.path, model, example_inputs, structure)

    def result(self, values: Mapping[str, Any]) -> None:
        """Write `result.json`.

        Raises:
            StorageError: it cannot be written.
        """
        self._write("result.json", values)

    def close(self) -> None:
        """No more lines."""
        if self._board is not None:
            self._board.close()

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        replaced(self.path / name, json_text(values))


class ReadOnlyFolder(RunFolder):
    """The run folder of a process that leaves writing to another.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._board = path, None
        self.lines = 0

    @contextlib.contextmanager
    def locked(self) -> Generator[None]:
        """Nothing is locked."""
        yield

    def restart(self, lines: int, environment: Mapping[str, Any]) -> None:
        """Nothing is cut."""
        self.lines = lines

    def metric(self, event: str, values: Mapping[str, Any]) -> None:
        """Nothing is appended."""
        self.lines += 1

    def network(
        self, model: nn.Module, example_inputs: Inputs, structure: Mapping[str, Any]
    ) -> None:
        """Nothing is written."""

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        """Nothing is written."""


def _lock(descriptor: int) -> bool:
    """Say whether this process holds a folder now; it does until its end, whatever that may be."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def recorded_config(folder: Path, trust: bool) -> RunConfig:
    """The `RunConfig` that a folder holds.

    Raises:
        MisconfiguredError: it holds none, or one that names a function without `trust`.
    """
    file = folder / "config.json"
    config = RunConfig.from_dict(read_json(file))
    check_trusted(file, config.to_dict(), trust)
    return config


def raw_config(folder: Path) -> dict[str, Any]:
    """What a folder's `config.json` says, unchecked; nothing where there is none."""
    try:
        found: Any = read_json(folder / "config.json")
    except MisconfiguredError:
        return {}
    return found if isinstance(found, dict) else {}


def result_of(folder: Path) -> dict[str, Any]:
    """Return what a folder's `result.json` says; nothing where there is none."""
    file = folder / "result.json"
    found: Any = read_json(file) if file.exists() else None
    return found if isinstance(found, dict) else {}


def is_finished(folder: Path) -> bool:
    """Say whether the run in a folder is finished."""
    return result_of(folder).get("status") == "finished"


def load_run(folder: str | Path, *, trust: bool = False) -> nn.Module:
    """The network of a run folder, in evaluation mode.

    Args:
        folder: of a run that has ended.
        trust: call a function that the folder names as its model.

    Raises:
        MisconfiguredError: the folder is not one, is incomplete, or names a function.
    """
    structure, state = read(folder)
    check_trusted(Path(folder) / STRUCTURE, structure, trust)
    if wrong := misfit(structure, RUN):
        raise MisconfiguredError(
            f"folder={str(folder)!r} was not written by `guyot train` ({wrong} in {STRUCTURE}): "
            "its network is read with guyot.load(folder, model_factory)"
        )
    name, classes = structure["model"], structure["classes"]
    if not is_factory(name) and not any(classes in tensor.shape for tensor in state.values()):
        raise MisconfiguredError(
            f"{Path(folder) / STRUCTURE} has classes={classes}, which is no size of any tensor in "
            f"{WEIGHTS}: give the folder as `guyot train` wrote it"
        )
    image_shape = structure["inputs"][0]["tensor"][1:]
    return load(folder, lambda: build(name, classes, image_shape))
