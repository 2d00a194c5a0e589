"""A finished network in a folder: its weights and its structure, without any code.

model.safetensors   the state dict
structure.json      what it kept, and the shapes of example inputs, for `guyot.results.rebuild`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.errors import MisconfiguredError, StorageError
from guyot.core.inputs import Inputs
from guyot.core.storage import read_json, read_tensors, write_tensors
from guyot.core.trees import difference, json_text
from guyot.results.rebuild import rebuild

WEIGHTS, STRUCTURE = "model.safetensors", "structure.json"


def save(
    folder: str | Path,
    model: nn.Module,
    example_inputs: Inputs,
    structure: Mapping[str, Any],
) -> None:
    """Write a finished network, so that `guyot.load` gives it back.

    Args:
        folder: is made if it does not exist; holds no network yet.
        model: what `Discovery.finish` gave.
        example_inputs: those of the `Discovery`; only shapes and dtypes are written.
        structure: `Discovery.structure`; what else it holds must be plain data.

    Raises:
        MisconfiguredError: the folder holds a network, or the example inputs are neither tensors
            nor plain data.
        StorageError: the folder cannot be written.

    Examples:
        >>> import tempfile, guyot
        >>> mlp = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 4))
        >>> found = {"units": {"0": [1, 5, 9]}, "removed_layers": []}
        >>> folder = Path(tempfile.mkdtemp(), "mlp")
        >>> guyot.save(folder, mlp, (torch.ones(2, 8),), found)
        >>> def factory():
        ...     return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> guyot.load(folder, factory)[0]
        Linear(in_features=8, out_features=3, bias=True)
    """
    folder = Path(folder)
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    text = json_text({**structure, "inputs": _described(inputs)})
    if (folder / STRUCTURE).exists():
        raise MisconfiguredError(
            f"folder={str(folder)!r} holds a network already: give another one, nothing is "
            "overwritten"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / f".{WEIGHTS}", model.state_dict())
        (folder / f".{STRUCTURE}").write_text(text, encoding="utf-8")
        for name in (WEIGHTS, STRUCTURE):  # a folder with a structure is complete
            (folder / f".{name}").rename(folder / name)
    except OSError as error:
        raise StorageError(
            f"folder={str(folder)!r} cannot be written ({error.strerror}): give another one"
        ) from error


def load(folder: str | Path, model_factory: Callable[[], nn.Module]) -> nn.Module:
    """Read a network that was saved, in evaluation mode.

    Reading never runs code from the folder: there are only tensors and JSON in it.

    Args:
        folder: was written by `guyot.save` or `guyot train`.
        model_factory: makes the full network as it was made for the run; its weights do not matter.

    Raises:
        MisconfiguredError: a file is missing or damaged, or the factory makes another network.
    """
    structure, state = read(folder)
    model = model_factory()
    rebuild(model, _example(structure["inputs"]), structure)
    if found := difference(model.state_dict(), state):
        raise MisconfiguredError(
            f"the weights in {Path(folder) / WEIGHTS} do not fit what model_factory makes: {found};"
            " build the model as it was built for the run"
        )
    model.load_state_dict(state)
    return model.eval()


def read(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return structure and weights of a folder.

    Raises:
        MisconfiguredError: a file is missing or damaged.
    """
    folder = Path(folder)
    try:
        structure, state = read_json(folder / STRUCTURE), read_tensors(folder / WEIGHTS)
    except MisconfiguredError as error:
        raise MisconfiguredError(
            f"folder={str(folder)!r} holds no complete network ({error}): give a folder that "
            "guyot.save or `guyot train` wrote"
        ) from error
    needed = {"units": dict, "removed_layers": list, "inputs": (list, dict)}
    for key, kind in needed.items():
        if not isinstance(structure, dict) or not isinstance(structure.get(key), kind):
            raise MisconfiguredError(
                f"{folder / STRUCTURE} has no {key!r}, or it is of another kind: give a folder "
                "that guyot.save or `guyot train` wrote"
            )
    return structure, state


def _described(inputs: Any) -> Any:
    """Describe inputs as plain data: a tensor is its shape and dtype."""
    if isinstance(inputs, Tensor):
        dtype = str(inputs.dtype).removeprefix("torch.")
        return {"tensor": list(inputs.shape), "dtype": dtype}
    if isinstance(inputs, Mapping):
        return {name: _described(value) for name, value in inputs.items()}
    if isinstance(inputs, Sequence) and not isinstance(inputs, str):
        return [_described(value) for value in inputs]
    if isinstance(inputs, str | int | float | bool | None):
        return inputs
    raise MisconfiguredError(
        f"example_inputs holds a {type(inputs).__name__}: give tensors, numbers, strings, None, "
        "and lists and mappings of them"
    )


def _example(inputs: Any) -> Any:
    """Make inputs from what `_described` gave: zeros, and ones for indices and masks."""
    if isinstance(inputs, dict) and inputs.keys() == {"tensor", "dtype"}:
        dtype = getattr(torch, str(inputs["dtype"]), None)
        if not isinstance(dtype, torch.dtype):
            raise MisconfiguredError(
                f"{STRUCTURE} names the dtype {inputs['dtype']!r}, which PyTorch does not have: "
                "load it with the version that saved it"
            )
        fill = torch.zeros if dtype.is_floating_point else torch.ones
        return fill(inputs["tensor"], dtype=dtype)
    if isinstance(inputs, dict):
        return {name: _example(value) for name, value in inputs.items()}
    if isinstance(inputs, list):
        return tuple(_example(value) for value in inputs)
    return inputs
