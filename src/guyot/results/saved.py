"""A finished network in a folder: its weights and its structure, without any code.

model.safetensors   the state dict
structure.json      what it kept and the shapes of example inputs, for `guyot.results.rebuild`, and
                    a fingerprint of its outputs
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from guyot.core.condition import Condition, require
from guyot.core.contents import NETWORK
from guyot.core.errors import MisconfiguredError, StorageError
from guyot.core.inputs import Inputs, check_module
from guyot.core.schema import misfit
from guyot.core.storage import read_json, read_tensors, write_tensors
from guyot.core.trees import difference, json_text
from guyot.core.warning import warn
from guyot.gates.checks import check_whole
from guyot.results.fingerprint import described, fingerprint_of, inputs_like, unlike
from guyot.results.rebuild import rebuild

WEIGHTS, STRUCTURE = "model.safetensors", "structure.json"


_STRUCTURE = Condition(
    lambda structure: isinstance(structure, Mapping) and "units" in structure,
    "give discovery.structure, or the structure of what guyot.shrink returned",
)


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
        MisconfiguredError: the folder holds a network, the structure is none, or the example
            inputs are neither tensors nor plain data.
        StorageError: the folder cannot be written.
        UnsupportedError: the model is sharded.

    Examples:
        >>> import tempfile, guyot, torch
        >>> mlp = nn.Sequential(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 4))
        >>> found = {"units": {"0": [1, 5, 9]}, "removed_layers": []}
        >>> folder = Path(tempfile.mkdtemp(), "mlp")
        >>> guyot.save(folder, mlp, (torch.ones(2, 8),), found)
        >>> def factory():
        ...     return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> guyot.load(folder, factory)[0]
        Linear(in_features=8, out_features=3, bias=True)
    """
    check_module(model)
    check_whole(model)
    require("structure", structure, _STRUCTURE)
    folder = Path(folder)
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    description = described(inputs)
    if (folder / STRUCTURE).exists():
        raise MisconfiguredError(
            f"folder={str(folder)!r} holds a network already: give another one, nothing is "
            "overwritten"
        )
    found = fingerprint_of(model, description)
    text = json_text({**structure, "inputs": description, "fingerprint": found})
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
        MisconfiguredError: a file is missing or damaged, or the factory makes another network, if
            only by what it computes.

    Warns:
        GuyotWarning: the folder has no fingerprint, so that outputs were not compared.
    """
    structure, state = read(folder)
    model = model_factory()
    rebuild(model, inputs_like(structure["inputs"]), structure)
    if found := difference(model.state_dict(), state):
        raise MisconfiguredError(
            f"the weights in {Path(folder) / WEIGHTS} do not fit what model_factory makes: {found};"
            " build the model as it was built for the run"
        )
    model.load_state_dict(state)
    saved = structure.get("fingerprint")
    if saved is None:
        warn(
            f"{Path(folder) / STRUCTURE} has no fingerprint of outputs: compare some outputs "
            "of the network with known ones, or save it again",
        )
    elif gap := unlike(model, structure["inputs"], saved):
        raise MisconfiguredError(
            f"what was rebuilt from folder={str(folder)!r} is not the network that was saved: "
            f"{gap}; build the model as it was built for the run, with the same version of guyot"
        )
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
    if wrong := misfit(structure, NETWORK):
        raise MisconfiguredError(
            f"{folder / STRUCTURE} describes no network ({wrong}): give a folder that guyot.save "
            "or `guyot train` wrote"
        )
    return structure, state
