"""From a model and example inputs to its structures."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from guyot.core.errors import GuyotError, NoWeightsError
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
from guyot.structures.depth.facts import same_facts
from guyot.structures.depth.runs import ShortNames
from guyot.structures.depth.short import Short, short_of
from guyot.structures.inference import Inference, infer, name_groups
from guyot.structures.rules import rule_for
from guyot.structures.trace import Trace, trace, trace_of_training
from guyot.structures.verify.narrow import narrow_twins
from guyot.structures.verify.remedies import Remedies
from guyot.structures.verify.verify import Verifier
from guyot.structures.ways import Callers, Edits, ways_of


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
    options = _Options(units, layers, ignore, freeze, tie)
    with isolated():  # a forward that draws random numbers gives the same structures each time
        short = short_of(model, example_inputs)
        exported = trace(model, example_inputs) if short is None else short.whole
        training = None if short else trace_of_training(model, example_inputs, exported)
        search = _Search(model, example_inputs, exported, training, options, short)
        found = search.follow(short) if verify and short else None
        if found is None:
            if verify:
                search.verify()
            found = search.build()
    search.warn()
    _warn_unknown(found.structures.frozen)
    frozen = found.structures.frozen + Frozen.of(search.impossible | search.refused)
    return replace(found.structures, frozen=frozen)


@dataclass(frozen=True)
class _Options:
    """What the user asks `find_structures` for."""

    units: bool
    layers: bool
    ignore: Patterns
    freeze: Patterns
    tie: Sequence[Patterns]


class _Search:
    """What is known of the structures of a network, and what verification has yet to say.

    Args:
        model: the network.
        inputs: its arguments.
        trace: its graph.
        training: that in training mode, where this has more.
        options: of the user.
        short: the short network, where there is one.

    Attributes:
        choices: for every branch the ways to remove it that are left, best first.
        impossible: name of a branch that has no way -> why.
        refused: name of a layer -> why verification refused it.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        trace: Trace,
        training: Trace | None,
        options: _Options,
        short: Short | None = None,
    ) -> None:
        self._model, self._inputs, self._training = model, inputs, training
        self._options = options
        self.graph = AxisGraph(trace, model, rule_for)
        self.graph.run()
        if training is not None:
            AxisGraph(training, model, rule_for, beside=self.graph).run()
        ignored = Ignored(self.graph, model, options.ignore)
        self.names = name_groups(self.graph)
        tie_groups(self.names, options.tie)
        trainable = {self.graph.canonical[name] for name, _ in model.named_parameters()}
        branches, self.impossible = find_branches(trace, self.graph.canonical, trainable)
        layers = [*(b.layer.name for b in branches), *self.impossible]
        stays = frozen_by(options.freeze, self.names, layers)
        edits = Edits(model, short.names.short) if short else Edits(model)
        self.choices = _choices(edits, trace, branches, ignored, stays, self.impossible)
        if not options.layers:
            self.choices, self.impossible = [], {}
        alone = dict.fromkeys(self.names.of.values(), by_user("left alone"))
        self.remedies = Remedies(stays if options.units else alone, _called_once(model, trace))
        self.refused: dict[str, Reason] = {}

    def build(self, length: Length = own_length) -> Inference:
        """Return the structures as far as they are known."""
        ways = [ways[0] for ways in self.choices]
        return infer(self.graph, self.names, ways, self._model, self.remedies, length)

    def verify(self) -> None:
        """Check every group and layer numerically; what fails goes another way, or stays."""
        verifier, length = self.verifier()
        inference = self.build(length)
        remedies = self.remedies
        while bad := verifier.bad_groups(
            inference, remedies.retryable(inference.structures, inference.stating)
        ):
            remedies.after(inference.structures, inference.stating, bad)
            inference = self.build(length)
        while bad := verifier.bad_layers(inference, [ways[0] for ways in self.choices]):
            for number, reason in bad.items():
                name = self.choices[number].pop(0).layer.name
                self.refused[name] = Reason(ReasonKind.VERIFICATION, reason)
            self.choices = [ways for ways in self.choices if ways]
            inference = self.build(length)
        for name in (ways[0].layer.name for ways in self.choices):
            self.refused.pop(name, None)

    def follow(self, short: Short) -> Inference | None:
        """Take over what verification says of the short network; return the structures.

        Returns:
            None where the structures are not the same, block by block: nothing was taken over then.
        """
        try:
            few = _Search(short.model, self._inputs, short.trace, None, self._options)
        except GuyotError:  # the user names a block that it has not
            return None
        found, found_in_few = self.build(), few.build().structures
        if not same_facts(found.structures, found_in_few, short.names.short):
            return None
        few.verify()
        after = few.build().structures
        if after == found_in_few:
            return found
        before = copy.deepcopy(self.remedies), self.choices, self.refused
        self._take(few, short.names)
        found = self.build()
        if same_facts(found.structures, after, short.names.short):
            return found
        self.remedies, self.choices, self.refused = before
        return None

    def _take(self, few: _Search, names: ShortNames) -> None:
        """Take over the verdicts on a short network."""
        short, old, new = names.short, self.remedies, few.remedies
        for name in self.names.of.values():
            reason = new.excluded.get(short(name))
            if reason is not None and name not in old.excluded:
                old.excluded[name] = replace(reason, text=names.in_whole(name, reason.text))
            if short(name) in new.together:
                old.together.add(name)
        old.rewritten = {module for module in old.kinds if short(module) in new.rewritten}
        left = {ways[0].layer.name: len(ways) for ways in few.choices}
        self.refused = {
            name: replace(reason, text=names.in_whole(name, reason.text))
            for name in (ways[0].layer.name for ways in self.choices)
            if (reason := few.refused.get(short(name))) is not None
        }
        self.choices = [
            ways[-left[name] :]
            for ways in self.choices
            if (name := short(ways[0].layer.name)) in left
        ]

    def verifier(self) -> tuple[Verifier, Length]:
        """Return what verifies structures, and how long dims are there: a narrow twin if possible.

        Raises:
            NoWeightsError: the model is on the meta device and has no narrow twin.
        """
        model, graph = self._model, self.graph
        if self._training is None:
            for twin in narrow_twins(model, self._inputs, graph):
                verifier = Verifier(twin.model, twin.inputs, graph.trace, narrow=True)
                if verifier.as_in_graph(self.build(twin.length)):
                    return verifier, twin.length
        if on_meta(model):
            raise NoWeightsError(
                "the model is on the meta device and has no weights to check, nor could a narrower "
                'one be made of it; give it weights with model.to_empty(device="cpu") and '
                "initialise them, or pass verify=False"
            )
        return Verifier(model, self._inputs, graph.trace, self._training), own_length

    def warn(self) -> None:
        """Name what verification excluded, with the reasons."""
        for kind, found in (("units of", self.remedies.excluded), ("layer", self.refused)):
            for name, reason in found.items():
                if reason.kind is not ReasonKind.BY_USER:
                    warn(f"{kind} {name} cannot be removed: {reason}")


def _choices(
    edits: Edits,
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
        possible = ways_of(edits, callers, branch)
        if isinstance(possible, str):
            impossible[name] = Reason(ReasonKind.BRANCH, possible)
        else:
            found.append(possible)
    return found


def _called_once(model: nn.Module, trace: Trace) -> dict[str, type[nn.Module]]:
    """Return the classes of the modules that are called once."""
    once = {name for name, calls in trace.calls.items() if name and len(calls) == 1}
    return {name: type(module) for name, module in model.named_modules() if name in once}


def _warn_unknown(frozen: Sequence[Frozen]) -> None:
    """Name the operators that no rule covers, once."""
    unknown = dict.fromkeys(f.reason for f in frozen if f.kind is ReasonKind.NO_RULE)
    if unknown:
        warn(
            f"the dims that these operators touch cannot shrink: {'; '.join(unknown)}; "
            "guyot.structures.rules.rule registers a rule for an operator",
        )
