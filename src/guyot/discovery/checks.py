"""What must be true of a user's model and run, with errors that say the way out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from guyot.core.errors import (
    MisconfiguredError,
    SequenceError,
)
from guyot.core.inputs import Inputs
from guyot.core.locate import named_tensors
from guyot.core.types import Structures
from guyot.core.warning import warn
from guyot.planning.config import DiscoveryConfig
from guyot.planning.dynamics import Phases
from guyot.planning.evidence import Told
from guyot.structures import find_structures


def check_copy(model: nn.Module, follower: nn.Module) -> None:
    """Refuse a copy whose parameters and buffers are not those of the model."""
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}
    others = {name: tuple(tensor.shape) for name, tensor in named_tensors(follower).items()}
    differing = sorted(
        name for name in shapes.keys() | others.keys() if shapes.get(name) != others.get(name)
    )
    if differing:
        name = differing[0]
        raise MisconfiguredError(
            f"{type(follower).__name__} is no copy of {type(model).__name__}: {name} has shape "
            f"{others.get(name)} there and {shapes.get(name)} in the model; copy the model before "
            "anything was removed"
        )


def prunable_structures(
    model: nn.Module, example_inputs: Inputs, config: DiscoveryConfig
) -> Structures:
    """Find what can go, with the settings of a configuration.

    Raises:
        MisconfiguredError: nothing can go, and why.
    """
    structures = find_structures(
        model,
        example_inputs,
        units=config.units,
        layers=config.layers,
        ignore=config.ignore,
        freeze=config.freeze,
        tie=config.tie,
    )
    if structures.index.total:
        return structures
    reasons = "; ".join(f"{f.name}: {f.reason}" for f in structures.frozen[:5])
    raise MisconfiguredError(
        "the model has no prunable structure (no unit group and no residual branch)"
        + (f": {reasons}" if reasons else "")
        + "; a network needs at least one hidden layer between input and output"
    )


_NOT_FINITE = (
    "NaN or inf in the loss or its gradients",
    "lower the learning rate or clip gradients",
)
_NO_GRADIENT = (
    "no gradient reached the gates",
    "train in model.train(), and with a loss.backward() for every step()",
)


def warn_skipped(told: Told, before: int, span: tuple[int, int]) -> None:
    """Warn, the first time and then every hundredth, that steps taught the gates nothing.

    Args:
        told: of the latest steps.
        before: how many were skipped before these.
        span: the first and the last of these steps.
    """
    skipped = before + told.skipped
    if not told.skipped or (before and before // 100 == skipped // 100):
        return
    reason, way_out = _NO_GRADIENT if told.silent else _NOT_FINITE
    first, last = span
    where = f"at step {last}" if first == last else f"between steps {first} and {last}"
    warn(
        f"{reason} {where} ({skipped} {'step' if skipped == 1 else 'steps'} so far): these steps "
        f"do not move the keep probabilities; {way_out} if this continues",
    )


def warn_stale(step: int) -> None:
    """Warn that a captured CUDA graph is older than the tensors of the network.

    Args:
        step: optimiser steps so far.
    """
    warn(
        f"no gradient reached the gates up to step {step}, and the model was not called since its "
        "tensors were replaced: a CUDA graph that was captured before computes with the old ones, "
        "so capture it again whenever discovery.layout changes",
    )


_EVIDENCE = 0.1
"""Share of discovery's steps that must have measured something before a network is chosen."""


def check_measured(step: int, skipped: int, phases: Phases, removing: bool) -> None:
    """Refuse to choose a network when nearly nothing was measured: the choice would be arbitrary.

    Args:
        step: optimiser steps so far.
        skipped: steps with gates that taught the gates nothing.
        phases: of the run.
        removing: something would go; if not, one step that measured is enough.

    Raises:
        SequenceError: too few steps measured what structures earn.
    """
    total = step - max(1, phases.discovery_start)
    measured = max(0, total - skipped)
    enough = math.ceil(_EVIDENCE * phases.discovery_steps) if removing else 1
    if measured >= enough:
        return
    if skipped > total / 2:
        why = (
            f"{skipped} steps were skipped, because no gradient reached the gates, or because it "
            "was NaN or inf: call loss.backward() in every step, and train in model.train() (to "
            "freeze BatchNorm, set its modules alone to eval())"
        )
    else:
        why = f"discovery ends at step {phases.discovery_stop}: train until then"
    raise SequenceError(
        f"no network can be chosen at step {step}: {measured} of {phases.discovery_steps} steps of "
        f"discovery measured what units and layers are worth, and {enough} are needed; {why}. "
        "abandon() ends the run without a choice"
    )


def warn_missed(target: float | None, attained: float, quanta: Sequence[int], left: bool) -> None:
    """Warn that a target was not met, and say why.

    Args:
        target: of the run.
        attained: share of the complexity that is left.
        quanta: of the groups that are left, what their widths are multiples of.
        left: whether something more could have stayed.
    """
    steps = sorted(set(quanta))
    why = f"{attained:.4f} is the closest that "
    if not left and target is not None and attained < target:
        why = (
            f"{attained:.4f} was all that was left when discovery ended, since units and layers "
            "raised the loss more than they lowered it; that happens by noise when the learning "
            "rate is high or discovery has few steps: lower the rate, or train for longer"
        )
    elif any(step > 1 for step in steps):
        multiples = " or ".join(map(str, steps))
        why += f"the widths allow (multiples of {multiples}); a smaller round_to comes closer"
    else:
        why += "the units and layers that are left come to: each is a step as large as that"
    warn(f"target={target} was not met: {why}")


def warn_early(step: int, undecided: int, phases: Phases) -> None:
    """Warn of a run that ended while it still looked for its structure.

    Args:
        step: optimiser steps so far.
        undecided: gates that nothing but the end decided.
        phases: of the run.
    """
    if undecided:
        warn(
            f"finish() came at step {step:,} of total_steps={phases.total_steps:,}: discovery was "
            f"to run until step {phases.discovery_stop:,}, so {undecided:,} undecided gates were "
            "decided at once, and nothing was trained after that; train for total_steps, or "
            "announce fewer"
        )


NO_PRICE = 1e-7
"""Nats below which the price of a whole network is lost in a float32 loss: gates stay off."""


def warn_extreme(
    nu: float | None,
    steps: int,
    phases: Phases,
    removed: bool,
    attained: float | None,
    least: float,
) -> None:
    """Warn that nothing was removed, or all that can be, and say why; except for nu = 0.

    Args:
        nu: of the run; None with a target.
        steps: optimiser steps so far.
        phases: of the run.
        removed: something was removed.
        attained: share of the complexity that is left; None if discovery did not end.
        least: the smallest share that can be.
    """
    if nu == 0:
        return  # plain training was asked for
    if not removed:
        text = f"nothing was removed{_why_nothing(nu, steps, phases)}"
    elif nu is not None and attained is not None and attained <= 1.05 * least:
        text = (
            f"everything that could go is gone: {attained:.4f} of the complexity is left and "
            f"{least:.4f} is the floor that keeps a path from input to output (all layers gone, "
            f"the least width in every group); nu={nu:g} asks for more: lower nu"
        )
    else:
        return
    warn(text)


def _why_nothing(nu: float | None, steps: int, phases: Phases) -> str:
    """Say why nothing was removed, and what would help."""
    if nu is not None and nu < NO_PRICE:
        return (
            f", no gate ever came on: nu={nu:g} is less than a float32 loss can "
            f"show ({NO_PRICE:g}); raise nu, or give 0 for training without discovery"
        )
    if steps == 0:
        return ": step() was never called; call it once after every optimizer.step()"
    start = max(1, phases.discovery_start)
    if steps < start:
        return (
            f": gates begin at step {start:,} of total_steps={phases.total_steps:,}, and training "
            f"ended after {steps:,}; train for total_steps, or announce fewer"
        )
    return f" in {steps:,} steps: every structure earned its price; " + (
        "give a target below 1" if nu is None else f"raise nu={nu:g}, or give a target"
    )
