"""What the user decides: modules that are left alone, groups that stay, groups that go together.

Names are chosen by glob patterns; those of groups and layers are the ones that `guyot inspect`
and `find_structures` show, and no wish of the user changes one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from guyot.core.condition import require
from guyot.core.errors import MisconfiguredError
from guyot.core.patterns import SETS_OF_PATTERNS, Patterns, chosen
from guyot.core.reasons import Reason, ReasonKind
from guyot.structures.axes import DimVar, freeze, root_of, unify
from guyot.structures.axis_graph import AxisGraph
from guyot.structures.branches import Branch
from guyot.structures.inference import GroupNames
from guyot.structures.trace import module_of
from guyot.surgery import above


def by_user(what: str) -> Reason:
    """Return the reason of what the user decided."""
    return Reason(ReasonKind.BY_USER, f"{what} by the user")


class Ignored:
    """Modules that are left alone: none of their tensors shrinks.

    Args:
        graph: after `run()`; its dims are frozen.
        model: whose modules they are.
        patterns: of the modules' names; what is inside of them is ignored, too.

    Raises:
        MisconfiguredError: a pattern matches no module.
    """

    def __init__(self, graph: AxisGraph, model: nn.Module, patterns: Patterns) -> None:
        names = [name for name, _ in model.named_modules(remove_duplicate=False) if name]
        self._modules = frozenset(chosen("ignore", patterns, names, "module"))
        self._tensors: dict[str, Reason] = {}
        for name, first in graph.canonical.items():
            if (reason := self._reason(name)) is not None:
                self._tensors[first] = reason
                for dim in graph.tensors[first]:
                    freeze(dim, reason)

    def _reason(self, name: str) -> Reason | None:
        """Return why something of that name, inside a module, is left alone."""
        module = next((module for module in above(name) if module in self._modules), None)
        return None if module is None else by_user(f"{module} is ignored")

    def keeps(self, branch: Branch) -> Reason | None:
        """Return why a residual branch stays; None if it may be removed."""
        places = (f"{module_of(node)}." for node in (*branch.nodes, branch.addition))
        reasons = (
            *(self._tensors.get(name) for name in branch.layer.tensors),
            *(self._reason(place) for place in places),
        )
        return next((reason for reason in reasons if reason is not None), None)


def tie_groups(names: GroupNames, sets: Sequence[Patterns]) -> None:
    """Make the groups of every set one: they lose the same units.

    Args:
        names: of all groups; those that are tied share the name of the first from here on.
        sets: patterns of the names of groups.

    Raises:
        MisconfiguredError: a pattern matches no group that can shrink, or a set is of one group
            only or of groups of several sizes, or the sets are no patterns.
    """
    require("tie", sets, SETS_OF_PATTERNS)
    leaf_of = {name: leaf for leaf, name in names.of.items()}
    for patterns in sets:
        tied = _tied(patterns, leaf_of)
        if len(tied) < 2:
            raise MisconfiguredError(
                f"tie={list(sets)!r}: {patterns!r} chooses {', '.join(tied) or 'nothing'}; a set "
                "is of two groups or more, as in tie=[('first', 'second')]"
            )
        leaves = [root_of(leaf_of[name]) for name in tied]
        if len({leaf.size for leaf in leaves}) > 1:
            sizes = ", ".join(f"{n} has {leaf.size}" for n, leaf in zip(tied, leaves, strict=True))
            raise MisconfiguredError(
                f"tie={patterns!r} chooses groups of several sizes ({sizes}): only groups with as "
                "many units can lose the same ones"
            )
        for name, leaf in zip(tied, leaves, strict=True):
            if leaf.reason is not None:
                for other in leaves:
                    freeze(other, leaf.reason.because(f"it is tied to {name}, which cannot shrink"))
        for leaf in leaves[1:]:
            unify(leaf, leaves[0])
    united: dict[DimVar, list[str]] = defaultdict(list)
    for name, leaf in leaf_of.items():
        united[root_of(leaf)].append(name)
    names.of = {leaf: together[0] for leaf, together in united.items()}
    names.tied = {first: tuple(rest) for first, *rest in united.values() if rest}


def _tied(patterns: Patterns, leaf_of: Mapping[str, DimVar]) -> list[str]:
    """Return the groups of a set, without those that could never shrink (classes, pixels)."""
    reasons = {name: root_of(leaf).reason for name, leaf in leaf_of.items()}
    free = [n for n, r in reasons.items() if r is None or r.kind is ReasonKind.BY_USER]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        every = chosen("tie", pattern, leaf_of, "group")
        if not set(every) & set(free):
            raise MisconfiguredError(
                f"tie={pattern!r} chooses {every[0]}, which cannot shrink: {reasons[every[0]]}"
            )
    return chosen("tie", patterns, free, "group")


def frozen_by(patterns: Patterns, names: GroupNames, layers: Iterable[str]) -> dict[str, Reason]:
    """Return the names of the groups and layers that the user wants to stay, with the reason.

    Raises:
        MisconfiguredError: a pattern matches no group and no layer.
    """
    stands_for = {name: name for name in names.of.values()}
    for name, others in names.tied.items():
        stands_for |= dict.fromkeys(others, name)
    found = chosen("freeze", patterns, [*stands_for, *layers], "group and no layer")
    return {stands_for.get(name, name): by_user("frozen") for name in found}
