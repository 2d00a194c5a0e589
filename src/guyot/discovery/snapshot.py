"""The state of a `Discovery` as a tree of tensors and plain values, and which states are refused.

Weights and the optimiser's state are not in it: loops, Lightning and others save those themselves.
It is small: some vectors over gates, and the record of removals. It is the same on all ranks. Each
rank samples gates of its own, so it holds the state of their generator, and every rank draws its
own again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from guyot.core.contents import CONTROLLER, COUNTERS
from guyot.core.errors import MisconfiguredError, SequenceError
from guyot.core.schema import Fields, misfit
from guyot.core.trees import difference, mapped
from guyot.core.types import Structures
from guyot.planning.config import DiscoveryConfig
from guyot.planning.controller import Controller
from guyot.planning.dynamics import Phases
from guyot.planning.evidence import Evidence
from guyot.planning.vectors import GateState
from guyot.surgery import shrink_structures
from guyot.surgery.record import Record, Removal

STATE_VERSION = 5
"""Of the tree."""

_NUMBERS = Fields({"counters": COUNTERS, "controller": CONTROLLER})

_DO = "build the model and the Discovery as for the first start"


@dataclass(frozen=True)
class DiscoveryState(GateState):
    """Keep what a `Discovery` knows of itself: plain values.

    Attributes:
        step: optimiser steps so far.
        skipped: steps whose gradients were NaN, inf or missing.
        settled: discovery is over, or never begins.
        finished: the run is over.
        attained: share of the complexity that was kept; None before discovery is over.
        polarised: share of the gates above 0 at 0.95 or more just before they were rounded.
    """

    step: int = 0
    skipped: int = 0
    settled: bool = False
    finished: bool = False
    attained: float | None = None
    polarised: float | None = None


class Drawn(NamedTuple):
    """Say where the gates are between two moves.

    Attributes:
        source: state of the generator before the present gates were drawn.
        evidence: what the steps since the last move told.
    """

    source: Tensor
    evidence: Evidence


def snapshot(
    original: Structures,
    controller: Controller,
    removals: Sequence[Removal],
    drawn: Drawn | None,
    own: DiscoveryState,
) -> dict[str, Any]:
    """Return the tree.

    Args:
        original: structures of the full network.
        controller: everything that is numbered by gates.
        removals: in order.
        drawn: where the gates are between two moves; None without gates.
        own: what the discovery knows of itself.
    """
    return {
        "version": STATE_VERSION,
        "run": identity(original, controller),
        "removals": [removal.to_dict() for removal in removals],
        "counters": own.state_dict(),
        "controller": controller.state_dict(),
        "generator": None if drawn is None else drawn.source,
        "evidence": None if drawn is None else drawn.evidence.state_dict(),
    }


def identity(original: Structures, controller: Controller) -> dict[str, Any]:
    """Return what must be the same when a run resumes, and on all its ranks."""
    return {
        "total_steps": controller.phases.total_steps,
        **dataclasses.asdict(controller.dials),
        "config": dataclasses.asdict(controller.config),
        "groups": {group.name: group.size for group in original.groups},
        "layers": [layer.name for layer in original.layers],
        "macs": round(controller.full.macs),
        "params": round(controller.full.params),
    }


def branched(state: Mapping[str, Any], target: float) -> dict[str, Any]:
    """Return the state of a run with a larger target that went this way and settles here.

    With `target=0.25` and a most probable network of 0.7 just now, this is a state of a run with
    `target=0.7` that has come to its end of discovery: the next step is the last with gates.

    Args:
        state: of a run during discovery.
        target: share of the complexity to keep.

    Raises:
        SequenceError: the gates are not on.
        MisconfiguredError: `target` is not above that of the run.
    """
    run, step = state["run"], state["counters"]["step"]
    if state["generator"] is None:
        raise SequenceError(
            f"target={target} at step {step}: branch off while the gates are on, between warm-up "
            "and fine-tuning"
        )
    if run["target"] is None or not run["target"] < target < 1:
        raise MisconfiguredError(
            f"target={target} from a run with target={run['target']}: branch off towards a target "
            "between that of the run and 1"
        )
    total = run["total_steps"]
    phases = Phases(total, *DiscoveryConfig(**run["config"]).shares(total))
    skip = phases.ending(step).skip
    return {
        **state,
        "run": {**run, "target": target},
        "controller": {**state["controller"], "skip": skip, "plan": None},
    }


def checked(
    state: Mapping[str, Any], fresh: Mapping[str, Any], original: Structures
) -> list[Removal]:
    """Return the removals of a state that fits; change nothing.

    Args:
        state: was read from somewhere.
        fresh: the `snapshot` of the run before its first step.
        original: structures of the full network.

    Raises:
        MisconfiguredError: another version, another model or other settings, or a part that is
            missing, unexpected, or of the wrong shape; names the difference.
    """
    if not isinstance(state, Mapping) or state.get("version") != STATE_VERSION:
        found = state.get("version") if isinstance(state, Mapping) else state
        raise MisconfiguredError(
            f"the state of the discovery has version {found!r} and this guyot reads "
            f"{STATE_VERSION}: use the version of guyot that wrote it"
        )
    if found := difference(fresh["run"], state.get("run"), values=True):
        raise MisconfiguredError(f"the state is of another run: {found}; {_DO}")
    if not isinstance(state.get("removals"), list):
        raise MisconfiguredError("the state of the discovery does not fit: removals is no list")
    removals = [Removal.from_dict(values) for values in state["removals"]]
    total = _left(original, removals).index.total
    expected: dict[str, Any] = {**fresh, "removals": state["removals"], "run": state["run"]}
    expected["controller"] = mapped(fresh["controller"], lambda vector: vector.new_empty(total))
    if state.get("generator") is not None:
        expected["generator"] = torch.Generator().get_state()
        expected["evidence"] = Evidence(total, "cpu").state_dict()
    if isinstance(state.get("controller"), Mapping) and state["controller"].get("plan") is not None:
        expected["controller"]["plan"] = torch.empty(total, dtype=torch.bool)
    found = difference(expected, state)
    found = found or misfit({n: state[n] for n in ("counters", "controller")}, _NUMBERS)
    if found is None and state["generator"] is not None:
        found = _unusable(state["generator"])
    if found:
        raise MisconfiguredError(f"the state of the discovery does not fit: {found}; {_DO}")
    return removals


def _left(original: Structures, removals: Sequence[Removal]) -> Structures:
    """Return what would be left after some removals.

    Raises:
        MisconfiguredError: they name what the network does not have.
    """
    record, structures = Record(original), original
    for removal in removals:
        keep = record.plan(structures, removal)
        left = shrink_structures(structures, keep)
        record.add(removal.step, structures, keep, left, removal.macs)
        structures = left.structures
    return structures


def _unusable(source: Tensor) -> str | None:
    """Say why a generator cannot have a state; None if it can."""
    try:
        torch.Generator().set_state(source.cpu())
    except RuntimeError as error:
        return f"generator is no state of a generator ({str(error).splitlines()[0]})"
    return None
