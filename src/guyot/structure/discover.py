"""From a model and example inputs to its structures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from guyot.errors import GuyotWarning
from guyot.patterns import Patterns
from guyot.structure.branches import find_branches
from guyot.structure.control import BY_USER, Ignored, frozen_by, tie_groups
from guyot.structure.inference import Inference, infer, name_groups
from guyot.structure.inputs import Inputs
from guyot.structure.trace import trace
from guyot.structure.verify import Verifier
from guyot.structure.walk import Walk
from guyot.surgery import unwrap
from guyot.types import Frozen, Structures


def find_structures(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    units: bool = True,
    layers: bool = True,
    ignore: Patterns = (),
    freeze: Patterns = (),
    tie: Sequence[Patterns] = (),
    verify: bool = True,
) -> Structures:
    """Find the unit groups and residual branches of a model, without any annotation.

    Args:
        model: any module that `torch.export` can trace; it is not changed.
        example_inputs: the arguments of its `forward`, or a mapping of keyword arguments;
            dimension 0 of each tensor is the batch.
        units: look for units (channels, neurons).
        layers: look for removable residual branches.
        ignore: patterns (`guyot.patterns`) of names of modules that are left alone: none of their
            tensors shrinks, and no residual branch that uses one goes.
        freeze: patterns of names of groups and layers that stay as they are.
        tie: sets of patterns of names of groups; the groups of a set lose the same units.
        verify: check every group and layer numerically; those that fail are excluded with a
            `GuyotWarning` that names them and says why.

    Returns:
        The structures; `frozen` lists what cannot go and why.

    Raises:
        MisconfiguredError: the inputs do not fit the model, a pattern matches nothing, or groups
            of several sizes are tied.
        UnsupportedError: the model cannot be traced.

    Example:
        >>> import torch
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> [(group.name, group.size) for group in find_structures(mlp, (torch.ones(2, 8),)).groups]
        [('0', 16)]
    """
    model = unwrap(model)
    graph = trace(model, example_inputs)
    walk = Walk(graph, model)
    walk.run()
    ignored = Ignored(walk, model, ignore)
    names = name_groups(walk)
    tie_groups(names, tie)
    branches, refused = find_branches(graph, walk.canonical)
    stays = frozen_by(freeze, names, [*(b.layer.name for b in branches), *refused])
    for branch in list(branches):
        name = branch.layer.name
        if not branch.layer.owner:
            refused["(root)"] = "its addition is in the root's forward: move it to a submodule"
            branches.remove(branch)
        elif (reason := ignored.keeps(branch) or stays.get(name)) is not None:
            refused[name] = reason
            branches.remove(branch)
    if not layers:
        branches, refused = [], {}
    trainable = {walk.canonical[name] for name, _ in model.named_parameters()}
    excluded = stays if units else dict.fromkeys(names.of.values(), f"left alone {BY_USER}")

    def build() -> Inference:
        return infer(walk, names, branches, trainable, excluded)

    inference = build()
    if verify and (inference.structures.groups or inference.structures.layers):
        verifier = Verifier(model, example_inputs, graph, inference, branches)
        bad_groups, bad_layers = verifier.failures()
        if bad_groups or bad_layers:
            for number, reason in bad_groups.items():
                excluded[inference.structures.groups[number].name] = reason
            for number, reason in bad_layers.items():
                refused[branches[number].layer.name] = reason
            branches = [b for n, b in enumerate(branches) if n not in bad_layers]
            _warn(excluded, refused)
            inference = build()
    _warn_unknown(inference.structures.frozen)
    frozen = inference.structures.frozen + tuple(
        Frozen(name, reason) for name, reason in refused.items()
    )
    return replace(inference.structures, frozen=frozen)


def _warn(groups: dict[str, str], layers: dict[str, str]) -> None:
    for kind, found in (("units of", groups), ("layer", layers)):
        for name, reason in found.items():
            if not reason.endswith(BY_USER):
                warnings.warn(
                    f"{kind} {name} cannot be removed: {reason}", GuyotWarning, stacklevel=4
                )


def _warn_unknown(frozen: Sequence[Frozen]) -> None:
    """Name the operators that no rule covers, once."""
    unknown = dict.fromkeys(f.reason for f in frozen if f.reason.endswith("has no rule"))
    if unknown:
        warnings.warn(
            f"the dims that these operators touch cannot shrink: {'; '.join(unknown)}; "
            "guyot.rules.rule registers a rule for an operator",
            GuyotWarning,
            stacklevel=3,
        )
