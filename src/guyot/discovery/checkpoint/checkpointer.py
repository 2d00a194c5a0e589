"""`Checkpointer`: writes checkpoints, and resumes a run from one."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from guyot.core.condition import Condition, is_whole, require
from guyot.core.contents import MANIFEST
from guyot.core.errors import GuyotError, MisconfiguredError, StorageError, UnsupportedError
from guyot.core.inputs import check_module
from guyot.core.locate import unwrap, wrapper_of
from guyot.core.parallel import Ranks, group_of_shards
from guyot.core.randomness import diverge, random_state
from guyot.core.schema import misfit
from guyot.core.storage import (
    checksums,
    loaded,
    published,
    read_json,
    remove_leftovers,
    removed,
    shard_name,
    taken_apart,
    unfinished,
    write_json,
    write_tensors,
)
from guyot.core.trees import difference
from guyot.core.warning import warn
from guyot.discovery.checkpoint.others import collected, misfit_of_ranks, own, warn_number
from guyot.discovery.checkpoint.parts import REMEDY, Stateful, restore, restore_random
from guyot.discovery.checkpoint.shards import (
    TENSORS,
    check_files,
    completed,
    contents_of,
    held,
    load_weights,
    shapes,
    share_in,
    whole_only,
)
from guyot.discovery.discovery import Discovery
from guyot.discovery.snapshot import branched

FORMAT = "guyot checkpoint"
VERSION = 3

_NAME = re.compile(r"step-(\d{9,})")
_KEEP = Condition(
    lambda keep: is_whole(keep) and keep >= 1, "give how many checkpoints stay, at least 1"
)
_WHOLE = {"units": {}, "removed_layers": []}


class Checkpointer:
    """Save a run while it trains, and resume it in another process.

    The constructor takes everything that has a state. `parts` are restored in their order. A
    checkpoint appears whole or not at all, and the oldest one is removed after that. It holds the
    random states of Python, NumPy and torch (the CPU's and every GPU's).

    With several processes, give the model in its `DistributedDataParallel` or sharded by
    `fully_shard`, and call `save` and `resume` in all of them. Every process writes and reads its
    rows of sharded tensors. Rank 0 writes all else, also what differs between processes: random
    states, positions and parts. With the same number of processes a run resumes bit for bit. With
    another number, and in one process without `fully_shard`, it uses other random numbers.

    Args:
        folder: where the checkpoints are written.
        model: the network; with a discovery, the one it was made with, in the same wrapper.
        discovery: None for a run without one.
        keep: how many checkpoints stay.
        **parts: everything else with `state_dict()` and `load_state_dict()`.

    Attributes:
        folder: the same.
        discovery: the same.

    Raises:
        MisconfiguredError: `keep` below 1, a part that has no state, or a discovery of another
            model.

    Examples:
        >>> import tempfile
        >>> def start(folder):
        ...     model = nn.Linear(3, 2)
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     return model, Checkpointer(folder, model, optimizer=optimizer)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     model, checkpoints = start(folder)
        ...     path = checkpoints.save(step=7, position={"epoch": 1})
        ...     again, checkpoints = start(folder)
        ...     position = checkpoints.resume()
        >>> path.name, position, torch.equal(again.weight, model.weight)
        ('step-000000007', {'epoch': 1}, True)
    """

    def __init__(
        self,
        folder: str | Path,
        model: nn.Module,
        discovery: Discovery | None = None,
        *,
        keep: int = 2,
        **parts: Stateful,
    ) -> None:
        check_module(model)
        require("keep", keep, _KEEP)
        for name, part in parts.items():
            if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
                raise MisconfiguredError(
                    f"{name}={type(part).__name__} has no state_dict() and load_state_dict(): "
                    "leave it out, or put what must survive into position"
                )
        if discovery is not None and discovery.model is not unwrap(model):
            raise MisconfiguredError(
                f"the discovery is of another {type(model).__name__} than the model: give the "
                "model that the Discovery was made with"
            )
        self.folder = Path(folder)
        self.keep = keep
        self._model, self.discovery, self._parts = unwrap(model), discovery, parts
        self._wrapper = wrapper_of(model)
        shards = group_of_shards(self._model)
        self._sharded = self._own_buffers = shards is not None
        if self._wrapper is not None:
            self._own_buffers = not self._wrapper.broadcast_buffers
        group = shards if self._wrapper is None else self._wrapper.process_group
        self._ranks = Ranks(group, next(self._model.parameters()).device)
        self._share = share_in(self._model, self._ranks)

    @property
    def checkpoints(self) -> list[Path]:
        """Return those that are there, oldest step first."""
        return checkpoints_in(self.folder)

    def save(self, step: int, position: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint; call it between two steps.

        Older ones beyond `keep` are removed afterwards, and so are those of later steps: they
        belong to a future that this run left when it resumed from an earlier checkpoint.

        Args:
            step: optimiser steps so far.
            position: where in the data the run is, and what else the loop needs; tensors and plain
                values.

        Returns:
            The folder of the checkpoint.

        Raises:
            UnsupportedError: a state holds something else than tensors and plain values.
            StorageError: one of the processes cannot write, the disk is full for instance; the
                checkpoints that are there stay.
            SequenceError: in the middle of a step.
        """
        target = self.folder / f"step-{step:09}"
        state = None if self.discovery is None else self.discovery.state_dict()
        self._write(target, step, state, position)
        if self._ranks.rank:
            return target
        there = self.checkpoints
        number = there.index(target)
        for path in [*there[number + 1 :], *there[: max(0, number + 1 - self.keep)]]:
            removed(path)
        return target

    def branch(
        self,
        folder: str | Path,
        target: float,
        step: int,
        position: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a checkpoint during discovery, from which a run with a larger target starts.

        Make everything of that run as for a first start, with its own target, and `resume()` from
        a `Checkpointer` on that folder: it settles with the next step, see `guyot.Family`.

        Args:
            folder: of the checkpoints of that run.
            target: share of the complexity that it keeps.
            step: optimiser steps so far.
            position: as for `save`.

        Returns:
            The folder of the checkpoint.

        Raises:
            MisconfiguredError: no target above that of this run, or a run without a discovery.
            SequenceError: the gates are not on.
            StorageError: it cannot be written.
        """
        if self.discovery is None:
            raise MisconfiguredError(
                f"target={target} from a run without a discovery: a run branches off "
                "during discovery"
            )
        path = Path(folder) / f"step-{step:09}"
        self._write(path, step, branched(self.discovery.state_dict(), target), position)
        return path

    def remove_later(self, folder: str | Path, step: int) -> bool:
        """Remove branches of later steps, which belong to a future that this run has left.

        Args:
            folder: as for `branch`.
            step: optimiser steps so far.

        Returns:
            True if one is left.
        """
        left = False
        for path in checkpoints_in(Path(folder)):
            if int(path.name.rpartition("-")[2]) <= step:
                left = True
            elif not self._ranks.rank:
                removed(path)
        return left

    def _write(
        self,
        target: Path,
        step: int,
        discovery: Mapping[str, Any] | None,
        position: Mapping[str, Any] | None,
    ) -> None:
        state: dict[str, Any] = {
            "discovery": discovery,
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "random": random_state(),
            "position": dict(position or {}),
        }
        failed = StorageError(
            f"{target} was not written: another process could not write its part, and says why"
        )
        state["ranks"] = collected(self._ranks, self._known(state))
        known: dict[str, str] = {}
        with contextlib.ExitStack() as stack:
            with self._ranks.together(failed):
                folder = unfinished(target)
                if not self._ranks.rank:
                    stack.enter_context(published(target, known))
            with self._ranks.together(failed):
                mine = self._write_files(folder, step, state)
            for found in self._ranks.gather(json.dumps(mine).encode()):
                known |= json.loads(found)
            with self._ranks.together(failed):
                stack.close()

    def _write_files(self, folder: Path, step: int, state: Any) -> dict[str, str]:
        """Write what this process holds; return the checksums of its files."""
        data, tensors = taken_apart("state", state)
        index: dict[str, Any] = {"shards": self._share.parts}
        files: list[Path] = []
        for name, all_of_it in zip(TENSORS, (_weights(self._model), tensors), strict=True):
            held_here, index[name] = held(all_of_it, self._share)
            if self._share.first:
                files.append(folder / shard_name(name, self._share.number, self._share.parts))
                write_tensors(files[-1], held_here, {"step": str(step)})
        if not self._ranks.rank:
            structure = _WHOLE if self.discovery is None else self.discovery.structure
            write_json(folder / "manifest.json", _manifest(step))
            write_json(folder / "structure.json", structure)
            write_json(folder / "index.json", index)
            write_json(folder / "state.json", data)
        return checksums(files)

    def resume(self, checkpoint: str | Path | None = None) -> dict[str, Any] | None:
        """Resume from a checkpoint.

        Make model, optimiser, discovery and all parts exactly as for the first start, then call
        this: the model is cut down to the size it had, and everything gets its state.

        Args:
            checkpoint: its folder; None: the latest, if there is one.

        Returns:
            The position that was saved; None if there is no checkpoint yet.

        Raises:
            MisconfiguredError: the checkpoint is not whole, was changed, has another version, or
                does not fit what is here; names the file and the difference. Make everything new
                before another attempt.
        """
        folder = self._found(checkpoint)
        if folder is None:
            return None
        shards = check_files(folder, self._ranks)
        _check_manifest(folder / "manifest.json")
        weights, state = contents_of(folder, shards)
        self._check_shape(folder, state)
        try:
            if self.discovery is not None:
                self.discovery.load_state_dict(loaded(state["discovery"]))
        except GuyotError as error:
            raise MisconfiguredError(f"{folder / 'state.json'}: {error}") from error
        self._check_structure(folder / "structure.json")
        if found := difference(_weights(self._model), shapes(weights)):
            file = folder / shard_name("model", 0, shards)
            raise MisconfiguredError(f"{file}: {found}; {REMEDY}")
        load_weights(self._model, weights)
        return self._restore(state, folder / "state.json")

    def _restore(self, state: Mapping[str, Any], file: Path) -> dict[str, Any]:
        """Give everything but the network its state; return the position."""
        mine = own(state["ranks"], self._ranks)
        known = state if mine is None else {**state, **mine}
        if "buffers" in known:
            buffers, theirs = dict(self._model.named_buffers()), loaded(known["buffers"])
            if found := difference(buffers, theirs):
                raise MisconfiguredError(f"{file}: buffers: {found}; {REMEDY}")
            for name, buffer in buffers.items():
                buffer.copy_(theirs[name])
        for name, part in self._parts.items():
            found = state["parts"][name]
            if f"parts.{name}" in known:
                found = completed(known[f"parts.{name}"], found)
            restore(part, name, found, file, self._sharded)
        restore_random(loaded(known["random"]), file)
        if mine is None:
            diverge(self._ranks.rank)
            if not self._ranks.rank:
                warn_number(file, len(state["ranks"]) + 1, self._ranks.size)
        return loaded(known["position"])

    def _found(self, checkpoint: str | Path | None) -> Path | None:
        """Return the checkpoint that was asked for, the same one on all ranks."""
        if checkpoint is None:
            with self._ranks.together():
                if self.folder.is_dir() and not self._ranks.rank:
                    remove_leftovers(self.folder)
            there = self.checkpoints
            checkpoint = there[-1] if there else None
        self._ranks.agree(
            "the checkpoint to resume from", str(checkpoint and Path(checkpoint).name)
        )
        return None if checkpoint is None else Path(checkpoint)

    def _known(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what may differ on another rank; an optimiser's state is the same on all."""
        known = {"random": state["random"], "position": state["position"]}
        for name, part in self._parts.items():
            if not isinstance(part, torch.optim.Optimizer):
                known[f"parts.{name}"] = whole_only(state["parts"][name])
        if self._own_buffers:
            known["buffers"] = dict(self._model.named_buffers())
        return known

    def _check_shape(self, folder: Path, state: Any) -> None:
        """Refuse a state without the entries that this run has."""
        expected = {
            "discovery": self.discovery is not None,
            "parts": dict.fromkeys(self._parts, True),
            "random": True,
            "position": True,
            "ranks": True,
        }
        found: Any = state
        if isinstance(state, Mapping):
            found = {
                key: key == "ranks" or isinstance(value, Mapping) for key, value in state.items()
            }
            if isinstance(state.get("parts"), Mapping):
                found["parts"] = dict.fromkeys(state["parts"], True)
        wrong = difference(expected, found, values=True)
        names = ["random", "position", "buffers", *(f"parts.{name}" for name in self._parts)]
        if wrong := wrong or misfit_of_ranks(state["ranks"], names):
            raise MisconfiguredError(f"{folder / 'state.json'}: {wrong}; {REMEDY}")

    def _check_structure(self, file: Path) -> None:
        """Refuse a structure file that says something else than the record of removals."""
        own = _WHOLE if self.discovery is None else self.discovery.structure
        if found := difference(own, read_json(file), values=True):
            raise MisconfiguredError(f"{file}: {found}; {REMEDY}")


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, oldest step first."""
    found: list[tuple[int, Path]] = []
    if folder.is_dir():
        for path in folder.iterdir():
            if (match := _NAME.fullmatch(path.name)) and path.is_dir():
                found.append((int(match[1]), path))
    return [path for _, path in sorted(found)]


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict of a model, which must be tensors."""
    state = model.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise UnsupportedError(
                f"the model's state has {name}, a {type(value).__name__}: a checkpoint holds "
                "tensors; put the module's extra state into position"
            )
    return state


def _manifest(step: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "step": step,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "guyot": importlib.metadata.version("guyot"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _check_manifest(file: Path) -> None:
    """Refuse other formats and versions; warn of other versions of torch."""
    found = read_json(file)
    known = isinstance(found, Mapping) and found.get("format") == FORMAT
    if known and (wrong := misfit(found, MANIFEST)):
        raise MisconfiguredError(f"{file} is no manifest that guyot wrote: {wrong}")
    if not known or found.get("version") != VERSION:
        what = f"version {found.get('version')!r}" if known else "no checkpoint of guyot"
        raise MisconfiguredError(
            f"{file}: this is {what}, and this guyot reads version {VERSION}: resume with "
            "the version of guyot that wrote it"
        )
    if found.get("torch") != str(torch.__version__):
        warn(
            f"{file}: torch {found.get('torch')} wrote it and this is {torch.__version__}; the "
            "run resumes, but not bit for bit as with the former",
        )
