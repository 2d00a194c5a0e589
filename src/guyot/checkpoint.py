"""Checkpoints of a run: folders of safetensors and JSON from which it goes on bit for bit.

The folder `step-000000120` of a checkpoint holds

- manifest.json: format, version, step, and the versions of what wrote it
- structure.json: what is left of the network, for `guyot.rebuild`
- model.safetensors: weights and buffers under their own names
- state.json and state.safetensors: everything else, see `guyot.storage`
- SHA256SUMS: checksums of the files above
"""

from __future__ import annotations

import importlib.metadata
import platform
import random
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from guyot.checks import keeps_elementwise_state
from guyot.errors import GuyotError, GuyotWarning, MisconfiguredError, UnsupportedError
from guyot.session import Discovery
from guyot.storage import (
    published,
    read_json,
    read_tensors,
    read_tree,
    removed,
    sweep,
    verify,
    write_json,
    write_tensors,
    write_tree,
)
from guyot.surgery import unwrap
from guyot.trees import difference

FORMAT = "guyot checkpoint"
VERSION = 1

_FILES = ("manifest.json", "structure.json", "model.safetensors", "state.json", "state.safetensors")
_NAME = re.compile(r"step-(\d{9,})")
_WHOLE = {"units": {}, "removed_layers": []}
_UNFIT = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What the `load_state_dict` of others may raise at a state that is not theirs."""


class Stateful(Protocol):
    """An optimiser, a scheduler, a gradient scaler, an average of the weights, ..."""

    def state_dict(self) -> Any:
        """What must survive: tensors and plain values."""
        ...

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Restore what `state_dict` gave."""
        ...


class Checkpointer:
    """Saves a run as it goes, and goes on with it in another process.

    Everything of a run is handed over once; the order of `parts` is the order in which they are
    restored. A checkpoint appears whole or not at all, and only then the oldest one is removed.
    Random states of Python, NumPy and torch (the CPU's and every GPU's) are part of it.

    Args:
        folder: where the checkpoints go.
        model: the network; with a discovery, the one it was made with.
        discovery: None for a run without one.
        keep: how many checkpoints stay.
        **parts: everything else with `state_dict()` and `load_state_dict()`.

    Raises:
        MisconfiguredError: `keep` below 1, a part that has no state, or a discovery of another
            model.

    Example:
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
        if keep < 1:
            raise MisconfiguredError(f"keep={keep}: give how many checkpoints stay, at least 1")
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
        self._model, self._discovery, self._parts = unwrap(model), discovery, parts

    @property
    def checkpoints(self) -> list[Path]:
        """Those that are there, oldest step first."""
        found: list[tuple[int, Path]] = []
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if (match := _NAME.fullmatch(path.name)) and path.is_dir():
                    found.append((int(match[1]), path))
        return [path for _, path in sorted(found)]

    def save(self, step: int, position: Mapping[str, Any] | None = None) -> Path:
        """Write a checkpoint; call it between two steps.

        Older ones beyond `keep` are removed afterwards, and so are those of later steps: they
        belong to a future that this run left when it went on from an earlier checkpoint.

        Args:
            step: optimiser steps so far.
            position: where in the data the run is, and whatever else the loop needs; tensors and
                plain values.

        Returns:
            The folder of the checkpoint.

        Raises:
            UnsupportedError: a state holds something else than tensors and plain values.
            StorageError: it cannot be written, the disk is full for instance; the checkpoints
                that are there stay.
            SequenceError: in the middle of a step.
        """
        target = self.folder / f"step-{step:09}"
        discovery = self._discovery
        state = {
            "discovery": None if discovery is None else discovery.state_dict(),
            "parts": {name: part.state_dict() for name, part in self._parts.items()},
            "random": _random_state(),
            "position": dict(position or {}),
        }
        with published(target) as folder:
            write_json(folder / "manifest.json", _manifest(step))
            structure = _WHOLE if discovery is None else discovery.structure
            write_json(folder / "structure.json", structure)
            write_tensors(folder / "model.safetensors", _weights(self._model))
            write_tree(folder, "state", state)
        there = self.checkpoints
        number = there.index(target)
        for path in [*there[number + 1 :], *there[: max(0, number + 1 - self.keep)]]:
            removed(path)
        return target

    def resume(self, checkpoint: str | Path | None = None) -> dict[str, Any] | None:
        """Go on from a checkpoint.

        Make model, optimiser, discovery and the rest exactly as for the first start, then call
        this: the model is cut down to the size it had, and everything gets its state.

        Args:
            checkpoint: its folder; None: the latest, if there is one.

        Returns:
            The position that was saved; None if there is no checkpoint yet.

        Raises:
            MisconfiguredError: the checkpoint is not whole, was changed, has another version, or
                does not fit what is here; names the file and the difference. Make everything anew
                before another attempt.
        """
        if checkpoint is None:
            if self.folder.is_dir():
                sweep(self.folder)
            there = self.checkpoints
            if not there:
                return None
            checkpoint = there[-1]
        folder = Path(checkpoint)
        verify(folder, _FILES)
        _check_manifest(folder / "manifest.json")
        weights = read_tensors(folder / "model.safetensors")
        state = read_tree(folder, "state")
        self._check_shape(folder, state)
        try:
            if self._discovery is not None:
                self._discovery.load_state_dict(state["discovery"])
        except GuyotError as error:
            raise MisconfiguredError(f"{folder / 'state.json'}: {error}") from error
        self._check_structure(folder / "structure.json")
        if found := difference(_weights(self._model), weights):
            raise MisconfiguredError(f"{folder / 'model.safetensors'}: {found}; {_DO}")
        self._model.load_state_dict(weights)
        for name, part in self._parts.items():
            _load(part, name, state["parts"][name], folder / "state.json")
        _set_random_state(state["random"], folder / "state.json")
        return state["position"]

    def _check_shape(self, folder: Path, state: Any) -> None:
        """Refuse a state without the entries that this run has."""
        own = {
            "discovery": self._discovery is not None,
            "parts": dict.fromkeys(self._parts, True),
            "random": True,
            "position": True,
        }
        found: Any = state
        if isinstance(state, Mapping):
            found = {key: isinstance(value, Mapping) for key, value in state.items()}
            if isinstance(state.get("parts"), Mapping):
                found["parts"] = dict.fromkeys(state["parts"], True)
        if wrong := difference(own, found, values=True):
            raise MisconfiguredError(f"{folder / 'state.json'}: {wrong}; {_DO}")

    def _check_structure(self, file: Path) -> None:
        """Refuse a structure file that says something else than the record of removals."""
        own = _WHOLE if self._discovery is None else self._discovery.structure
        if found := difference(own, read_json(file), values=True):
            raise MisconfiguredError(f"{file}: {found}; {_DO}")


_DO = "build model, discovery and the rest as for the first start"


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model, which must be tensors."""
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
    """Refuse other formats and versions; tell of other versions of torch."""
    found = read_json(file)
    known = isinstance(found, Mapping) and found.get("format") == FORMAT
    if not known or found.get("version") != VERSION:
        what = f"version {found.get('version')!r}" if known else "no checkpoint of guyot"
        raise MisconfiguredError(
            f"{file}: this is {what}, and this guyot reads version {VERSION}: go on with the "
            "version of guyot that wrote it"
        )
    if found.get("torch") != str(torch.__version__):
        warnings.warn(
            f"{file}: torch {found.get('torch')} wrote it and this is {torch.__version__}; the "
            "run goes on, but not bit for bit as it would have",
            GuyotWarning,
            stacklevel=3,
        )


def _load(part: Stateful, name: str, state: Any, file: Path) -> None:
    """Give a part its state; whatever it objects to names the file."""
    problem = None
    if isinstance(part, torch.optim.lr_scheduler.LRScheduler):
        own = part.state_dict()
        found = state
        if isinstance(state, Mapping):  # some schedulers get entries as they go
            found = {key: state[key] for key in own if key in state}
        problem = difference(own, found)
    elif isinstance(part, torch.optim.Optimizer):
        problem = _misfit(part, state)
    if problem is None:
        try:
            cast(Stateful, part).load_state_dict(state)
        except (*_UNFIT, RuntimeError) as error:
            problem = str(error).splitlines()[0] if str(error) else type(error).__name__
    if problem is not None:
        raise MisconfiguredError(f"{file}: {name} does not fit: {problem}; {_DO}")


def _misfit(optimizer: torch.optim.Optimizer, state: Any) -> str | None:
    """In what an optimiser's state is not that of this optimiser."""
    own = {**optimizer.state_dict(), "state": {}}
    if not isinstance(state, Mapping) or not isinstance(state.get("state"), Mapping):
        return difference(own, state) or "state is no mapping"
    if found := difference(own, {**state, "state": {}}):
        return found
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    elementwise = keeps_elementwise_state(optimizer)
    for number, entries in state["state"].items():
        if number not in range(len(parameters)) or not isinstance(entries, Mapping):
            return f"state.{number} is of no parameter"
        for key, value in entries.items():
            if elementwise and isinstance(value, Tensor) and value.dim():
                expected = parameters[number].detach().to(value.dtype)
                if found := difference(expected, value):
                    return f"state.{number}.{key}: {found}"
    return None


def _random_state() -> dict[str, Any]:
    """Of Python, NumPy's global generator, and torch."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - other libraries draw from it
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _set_random_state(state: Any, file: Path) -> None:
    """Restore what `_random_state` gave."""
    try:
        random.setstate(state["python"])
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        elif len(state["cuda"]) != torch.cuda.device_count():
            warnings.warn(
                f"{file}: it holds the random states of {len(state['cuda'])} GPUs and "
                f"{torch.cuda.device_count()} are here; theirs start anew",
                GuyotWarning,
                stacklevel=3,
            )
    except (*_UNFIT, RuntimeError) as error:
        raise MisconfiguredError(f"{file}: random does not fit: {error}") from error
