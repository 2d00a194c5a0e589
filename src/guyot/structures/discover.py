"""From a model and example inputs to its structures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import nn

from guyot.core.errors import NoWeightsError
from guyot.core.inputs import Inputs, check_module, on_meta
from guyot.core.locate import unwrap
from guyot.core.patterns import Patterns
from guyot.core.randomness import isolated
from guyot.core.reasons import Reason, ReasonKind
from guyot.core.types import Frozen, Structures
from guyot.core.warning import warn
from guyot.gates.checks import check_whole
from guyot.structures.axes import Length, own_length
from guyot.structures.axis_graph import AxisGraph
from guyot.structures.branches import Branch, find_branches
from guyot.structures.control import Ignored, by_user, frozen_by, tie_groups
from guyot.structures.inference import Inference, infer, name_groups
from guyot.structures.rules import rule_for
from guyot.structures.trace import Trace, trace, trace_of_training
from guyot.structures.verify.narrow import narrow_twins
from guyot.structures.verify.remedies import Remedies
from guyot.structures.verify.verify import Verifier
from guyot.structures.ways import Callers, ways_of


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
    """Find the groups of units and the residual branches of a model, without annotations.

    Args:
        model: any module that `torch.export` can trace; it is not changed. It may be on the meta
            device: lengths of dims say what can go, and weights need no memory.
        example_inputs: the arguments of its `forward`, or a mapping of keyword arguments;
            dimension 0 of each tensor is the batch.
        units: look for units (channels, neurons).
        layers: look for removable residual branches.
        ignore: patterns (`guyot.core.patterns`) of names of modules that stay whole: none of their
            tensors shrinks, and no residual branch that uses one is removed.
        freeze: patterns of names of groups and layers that stay as they are.
        tie: sets of patterns of names of groups; the groups of a set lose the same units.
        verify: check every group and layer numerically; those that fail are excluded with a
            `GuyotWarning` that names them and says why. Networks of more than 4 million numbers are
            checked on a narrow twin, which lengths in these messages are of.

    Returns:
        The structures; `frozen` lists what stays and why.

    Raises:
        MisconfiguredError: the inputs do not fit the model, a pattern matches nothing, groups of
            several sizes are tied, or a model on the meta device cannot be verified.
        UnsupportedError: the model cannot be traced.

    Examples:
        >>> import torch
        >>> mlp = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> found = find_structures(mlp, (torch.ones(2, 8),))
        >>> {group.name: group.size for group in found.groups}
        {'0': 16}
    """
    check_module(model)
    model = unwrap(model)
    check_whole(model, "find its structures before fully_shard, or make a Discovery of it")
    with isolated():  # a forward that draws random numbers gives the same structures each time
        exported = trace(model, example_inputs)
        graph = AxisGraph(exported, model, rule_for)
        graph.run()
        training = trace_of_training(model, example_inputs, exported)
        if training is not None:
            AxisGraph(training, model, rule_for, beside=graph).run()
        ignored = Ignored(graph, model, ignore)
        names = name_groups(graph)
        tie_groups(names, tie)
        trainable = {graph.canonical[name] for name, _ in model.named_parameters()}
        branches, impossible = find_branches(exported, graph.canonical, trainable)
        stays = frozen_by(freeze, names, [*(b.layer.name for b in branches), *impossible])
        choices = _choices(model, exported, branches, ignored, stays, impossible)
        if not layers:
            choices, impossible = [], {}
        excluded = stays if units else dict.fromkeys(names.of.values(), by_user("left alone"))
        refused: dict[str, Reason] = {}
        remedies = Remedies(excluded, _called_once(model, exported))

        def build(length: Length = own_length) -> Inference:
            return infer(graph, names, [ways[0] for ways in choices], model, remedies, length)

        if verify:
            verifier, length = _verifier(model, example_inputs, graph, training, build)
            inference = build(length)
            while bad := verifier.bad_groups(
                inference, remedies.retryable(inference.structures, inference.stating)
            ):
                remedies.after(inference.structures, inference.stating, bad)
                inference = build(length)
            while bad := verifier.bad_layers(inference, [ways[0] for ways in choices]):
                for number, reason in bad.items():
                    name = choices[number].pop(0).layer.name
                    refused[name] = Reason(ReasonKind.VERIFICATION, reason)
                choices = [ways for ways in choices if ways]
                inference = build(length)
        inference = build()
        for name in (ways[0].layer.name for ways in choices):
            refused.pop(name, None)
    _warn(excluded, refused)
    _warn_unknown(inference.structures.frozen)
    frozen = inference.structures.frozen + Frozen.of(impossible | refused)
    return replace(inference.structures, frozen=frozen)


def _verifier(
    model: nn.Module,
    example_inputs: Inputs,
    graph: AxisGraph,
    training: Trace | None,
    build: Callable[[Length], Inference],
) -> tuple[Verifier, Length]:
    """Return what verifies structures, and how long dims are there: a narrow twin if there is one.

    Raises:
        NoWeightsError: the model is on the meta device and has no narrow twin.
    """
    if training is None:
        for twin in narrow_twins(model, example_inputs, graph):
            verifier = Verifier(twin.model, twin.inputs, graph.trace, narrow=True)
            if verifier.as_in_graph(build(twin.length)):
                return verifier, twin.length
    if on_meta(model):
        raise NoWeightsError(
            "the model is on the meta device and has no weights to check, nor could a narrower "
            'one be made of it; give it weights with model.to_empty(device="cpu") and initialise '
            "them, or pass verify=False"
        )
    return Verifier(model, example_inputs, graph.trace, training), own_length


def _choices(
    model: nn.Module,
    exported: Trace,
    branches: Sequence[Branch],
    ignored: Ignored,
    stays: dict[str, Reason],
    impossible: dict[str, Reason],
) -> list[list[Branch]]:
    """Return the ways to remove every residual branch, best first; note those without any."""
    callers = Callers(exported)
    found: list[list[Branch]] = []
    for branch in branches:
        name = branch.layer.name
        if kept := ignored.keeps(branch) or stays.get(name):
            impossible[name] = kept
            continue
        possible = ways_of(model, callers, branch)
        if isinstance(possible, str):
            impossible[name] = Reason(ReasonKind.BRANCH, possible)
        else:
            found.append(possible)
    return found


def _called_once(model: nn.Module, trace: Trace) -> dict[str, type[nn.Module]]:
    """Return the classes of the modules that are called once."""
    once = {name for name, calls in trace.calls.items() if name and len(calls) == 1}
    return {name: type(module) for name, module in model.named_modules() if name in once}


def _warn(groups: dict[str, Reason], layers: dict[str, Reason]) -> None:
    for kind, found in (("units of", groups), ("layer", layers)):
        for name, reason in found.items():
            if reason.kind is not ReasonKind.BY_USER:
                warn(f"{kind} {name} cannot be removed: {reason}")


def _warn_unknown(frozen: Sequence[Frozen]) -> None:
    """Name the operators that no rule covers, once."""
    unknown = dict.fromkeys(f.reason for f in frozen if f.kind is ReasonKind.NO_RULE)
    if unknown:
        warn(
            f"the dims that these operators touch cannot shrink: {'; '.join(unknown)}; "
            "guyot.structures.rules.rule registers a rule for an operator",
        )
