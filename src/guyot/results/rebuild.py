"""A found structure as plain data, and the way back from it to a smaller model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from guyot.core.contents import STRUCTURE
from guyot.core.errors import GuyotWarning, MisconfiguredError
from guyot.core.inputs import Inputs
from guyot.core.schema import misfit
from guyot.core.types import KeepPlan
from guyot.structures import find_structures
from guyot.surgery import operate


def rebuild(model: nn.Module, example_inputs: Inputs, structure: Mapping[str, Any]) -> nn.Module:
    """Cut a freshly made full model down to a structure that `Discovery.structure` described.

    Args:
        model: made by the same constructor as the model of the run; changed in place.
        example_inputs: arguments of its `forward`, or a mapping of keyword arguments.
        structure: `{"units": {group: kept indices}, "removed_layers": [names]}`.

    Returns:
        The model with the tensors' final shapes, ready for `load_state_dict`.

    Raises:
        MisconfiguredError: the structure names what the model does not have.

    Example:
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> found = {"units": {"0": [1, 5, 9]}, "removed_layers": []}
        >>> rebuild(mlp, (torch.ones(1, 8),), found)[2]
        Linear(in_features=3, out_features=4, bias=True)
    """
    if wrong := misfit(structure, STRUCTURE):
        raise MisconfiguredError(
            f"the structure is none that Discovery.structure gave: {wrong}; give it as it was"
        )
    with warnings.catch_warnings():  # the run said what cannot go
        warnings.simplefilter("ignore", GuyotWarning)
        structures = find_structures(model, example_inputs)  # verified: it tells what to restate
    groups = {group.name: (number, group) for number, group in enumerate(structures.groups)}
    layers = {layer.name: number for number, layer in enumerate(structures.layers)}
    kept: dict[int, torch.Tensor] = {}
    for name, indices in structure["units"].items():
        if name not in groups:
            raise MisconfiguredError(
                f"the structure names the group {name!r}, but {type(model).__name__} has "
                f"{sorted(groups)}: build the model as it was built for the run"
            )
        number, group = groups[name]
        if max(indices) >= group.size:
            raise MisconfiguredError(
                f"the structure keeps units {list(indices)[:3]}... of group {name!r}, which has "
                f"{group.size}: build the model as it was built for the run"
            )
        kept[number] = torch.tensor(sorted(indices), dtype=torch.int64)
    unknown = sorted(set(structure["removed_layers"]) - set(layers))
    if unknown:
        raise MisconfiguredError(
            f"the structure removes the layers {unknown}, but {type(model).__name__} has "
            f"{sorted(layers)}: build the model as it was built for the run"
        )
    gone = frozenset(layers[name] for name in structure["removed_layers"])
    operate(model, structures, KeepPlan(kept, gone))
    return model
