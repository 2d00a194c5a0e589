"""A network with three blocks of each run of equal blocks, in the place of the whole."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from guyot.core.inputs import Inputs, call_model, changed, on_meta
from guyot.core.locate import named_tensors
from guyot.core.randomness import isolated
from guyot.structures.depth.expand import expanded
from guyot.structures.depth.ledger import Ledger, same
from guyot.structures.depth.runs import Run, ShortNames, running_copy, runs_of, shortened
from guyot.structures.trace import Trace, trace, trace_of_training, watched
from guyot.structures.verify.behaviour import Calm

WORTH = 2
"""So many times the tensors of the short network a network must have: else little is saved."""


@dataclass(frozen=True)
class Short:
    """A short network and what it says of the whole one.

    Attributes:
        model: the network with three blocks of each run.
        trace: its graph.
        whole: the graph of the whole network.
        names: of things in the short network.
    """

    model: nn.Module
    trace: Trace
    whole: Trace
    names: ShortNames


def short_of(model: nn.Module, inputs: Inputs) -> Short | None:
    """Return the short network of a model; None where it has no runs of equal blocks.

    Args:
        model: the network; it is not changed.
        inputs: its arguments.
    """
    if on_meta(model):
        return None
    try:
        return _short(model, inputs)
    except Exception:  # noqa: BLE001  (whatever a user's forward raises: the whole network says it)
        return None


def _short(model: nn.Module, inputs: Inputs) -> Short | None:
    runs = runs_of(model)
    if not runs:
        return None
    few, names = [Run(run.kept) for run in runs], ShortNames(runs)
    short = shortened(model, runs)
    if len(named_tensors(model)) < WORTH * len(named_tensors(short)):
        return None
    copy, ran, ran_short = running_copy(model, runs), Ledger(runs), Ledger(few)
    calls, events = watched(copy, inputs, ran.around)
    if not ran.chained:
        return None
    found = trace(short, inputs, ran_short.around)
    if trace_of_training(short, inputs, found) is not None or not same(ran, ran_short):
        return None
    if not _train_alike(copy, runs, running_copy(short, few), few, inputs):
        return None
    whole = expanded(found, model, runs, names)
    return whole and Short(short, found, replace(whole, calls=calls, events=events), names)


def _train_alike(
    model: nn.Module, runs: Sequence[Run], short: nn.Module, few: Sequence[Run], inputs: Inputs
) -> bool:
    """Say whether a network and the short one compute the same in training mode, block by block."""
    ran = _training(model, runs, inputs)
    ran_short = _training(short, few, inputs) if ran else None
    return ran is not None and ran_short is not None and same(ran, ran_short)


def _training(model: nn.Module, runs: Sequence[Run], inputs: Inputs) -> Ledger | None:
    """Return what a copy computes in training mode; None where it does not run."""
    ledger = Ledger(runs)
    try:
        with isolated(), torch.no_grad(), Calm(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with ledger.around(model):
                call_model(model.train(), changed(inputs, Tensor.clone))
    except Exception:  # noqa: BLE001  (whatever a user's forward raises)
        return None
    return ledger
