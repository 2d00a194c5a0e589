"""What a user sets, where it is checked, and how exactly a target is met; needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from guyot.core.condition import Condition
from guyot.core.errors import MisconfiguredError
from guyot.core.patterns import Patterns

if TYPE_CHECKING:
    from guyot.costs.complexity import Cost

DIALS = ("target", "nu", "alpha", "beta")
"""Names of the fields of `Dials`."""

ESTIMATORS = ("two-sided", "fisher", "straight-through", "taylor")
"""Names of the estimators in `guyot.planning.benefits`."""

BASELINES = ("full", "slim")
"""Networks that a run may be compared with; each trains in a folder of this name in the run's."""

TARGET_TOLERANCE = 0.01
"""Relative distance from a target at which it counts as met."""

SHORTEST = 10
"""Steps that every phase of a run needs."""

_SHARES = {False: (0.1, 0.4), True: (0.02, 0.2)}
"""Warm-up and end of discovery as shares of the steps, for weights that are trained or not."""

MOST_PROBABLE = (float("inf"), 0.0)
_AT_RANDOM = (4.0, 0.01)
"""Sharpness and epsilon that suit an estimator: `fisher` needs no other side of a gate."""


class Draw(NamedTuple):
    """Say how gates are drawn: sharpness and epsilon.

    Attributes:
        units: of units, and of layers that were measured.
        layers: of layers that are estimated.
    """

    units: tuple[float, float]
    layers: tuple[float, float]


CONDITIONS = {
    "nu": Condition(
        lambda nu: 0 <= nu < float("inf"),
        "give the nats of loss worth paying to remove all complexity, 0 or more, such as 0.3",
    ),
    "target": Condition(
        lambda target: 0 < target < 1,
        "give the share of the complexity to keep, between 0 and 1, such as 0.5",
    ),
    "alpha": Condition(
        lambda alpha: 0 <= alpha <= 1,
        "give a number from 0 to 1: 1 counts MACs only, 0 parameters only",
    ),
    "beta": Condition(
        lambda beta: 0 <= beta <= 1,
        "give a number from 0 to 1: 0 charges units and layers alike, 1 whole layers only",
    ),
    "theta0": Condition(lambda theta0: 0 < theta0 <= 1, "give a probability above 0, such as 0.9"),
    "epsilon": Condition(
        lambda epsilon: 0 <= epsilon < 0.5, "give a probability below 1/2, such as 0.01"
    ),
    "sharpness": Condition(lambda sharpness: sharpness >= 1, "give 1 or more, such as 4"),
    "patience": Condition(
        lambda patience: 0 < patience <= 1, "give a share of discovery, such as 0.05"
    ),
    "estimator": Condition(lambda name: name in ESTIMATORS, f"choose {', '.join(ESTIMATORS)}"),
    "decay": Condition(
        lambda decay: 0 <= decay < 1,
        "give 0 or more and below 1, such as 0.96 for a window of 25 samples",
    ),
    "max_speed": Condition(lambda speed: speed > 0, "give a positive bound, such as 2"),
    "total_steps": Condition(
        lambda steps: steps < float("inf"),
        "give the number of optimiser steps of the whole run, such as 1000",
    ),
    "removals": Condition(
        lambda removals: removals >= 1,
        "give how many times structures may be removed, such as 40",
    ),
}
"""What the value of a dial or setting must be, here and on the command line."""


def problem_of(setting: str, value: Any) -> str | None:
    """Return what is wrong with the value of a setting, and the way out; None if nothing is.

    Example:
        >>> problem_of("removals", 0)
        'removals=0: give how many times structures may be removed, such as 40'
    """
    condition = CONDITIONS[setting]
    try:
        fits = condition.fits(value)
    except TypeError:  # such as a text instead of a number
        fits = False
    return None if fits else f"{setting}={value!r}: {condition.advice}"


def problem_of_targets(targets: Sequence[float]) -> str | None:
    """Return what is wrong with the targets of a family, and the way out; None if nothing is."""
    shown = [f"{target:g}" if isinstance(target, Real) else repr(target) for target in targets]
    given = ",".join(shown)
    if len(targets) < 2:
        return f"targets={given}: give at least two sizes, such as 0.7,0.5, or one target"
    for target, text in zip(targets, shown, strict=True):
        if problem_of("target", target):
            return (
                f"targets={given}: {text} is out of range, give shares of the complexity to "
                "keep, between 0 and 1"
            )
    for larger, smaller in itertools.pairwise(targets):
        if larger < smaller:
            return (
                f"targets={given}: {smaller:g} after {larger:g} is out of order, give the largest "
                "first, as the network gets smaller"
            )
        if larger < (1 + 2 * TARGET_TOLERANCE) * smaller:
            return (
                f"targets={given}: {larger:g} and {smaller:g} are the same network, since a target "
                f"is met within {100 * TARGET_TOLERANCE:g} %; leave one out"
            )
    return None


@dataclass(frozen=True)
class DiscoveryConfig:
    """Hold the settings that need no change in most runs.

    Attributes:
        trained: the weights are trained already. Then discovery comes early, which leaves the
            steps for recovering; random weights have to learn first what is worth keeping.
        warmup: share of the steps before gates come on; None: 0.1, or with `trained` 0.02, and 0
            where that is below 10 steps.
        discovery_end: share of the steps after which undecided gates are rounded; None: 0.4, or
            with `trained` 0.2.
        theta0: initial keep probability.
        epsilon: least probability with which either side of a gate is sampled; None: 0.01, or
            with "fisher" 0.
        sharpness: 1: gates are sampled with their keep probabilities; larger: with these
            stretched about 1/2, see `guyot.planning.controller.Controller.sample`; infinite: a
            gate is 1 exactly where its probability is 1/2 or more. None: 4, or with "fisher"
            infinite.
        patience: share of discovery for which a probability must stay 0 before it is final.
        estimator: "two-sided", "fisher", "straight-through" or "taylor".
        decay: of the estimator's running means, per sample.
        max_speed: bound of the normalised drift.
        round_to: widths that are not full are multiples of this: one number, or one for every
            pattern of group names (1 for groups that none matches, of several the last).
            `guyot.costs.quantum.measure_quantum` finds out what suits a device.
        units: gate units.
        layers: gate residual branches.
        ignore: patterns (`guyot.core.patterns`) of names of modules that stay whole: none of their
            tensors shrinks, and no residual branch that uses one goes.
        freeze: patterns of names of groups and layers that stay as they are.
        tie: sets of patterns of names of groups; the groups of a set lose the same units.
        removals: how many times during discovery structures may be removed.
        seed: of the sampled gates.

    Raises:
        MisconfiguredError: a value is out of range.
    """

    trained: bool = False
    warmup: float | None = None
    discovery_end: float | None = None
    theta0: float = 0.9
    epsilon: float | None = None
    sharpness: float | None = None
    patience: float = 0.05
    estimator: str = "fisher"
    decay: float = 0.96
    max_speed: float = 2.0
    round_to: int | Mapping[str, int] = 8
    units: bool = True
    layers: bool = True
    ignore: Patterns = ()
    freeze: Patterns = ()
    tie: Sequence[Patterns] = ()
    removals: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        for setting, value in vars(self).items():
            by_itself = setting in ("epsilon", "sharpness") and value is None
            if setting in CONDITIONS and not by_itself and (problem := problem_of(setting, value)):
                raise MisconfiguredError(problem)

    def shares(self, total_steps: int) -> tuple[float, float]:
        """Return the warm-up and the end of discovery as shares of the steps of a run.

        Example:
            >>> DiscoveryConfig(trained=True, discovery_end=0.5).shares(1000)
            (0.02, 0.5)

        Raises:
            MisconfiguredError: the steps are not a number.
        """
        if problem := problem_of("total_steps", total_steps):
            raise MisconfiguredError(problem)
        warmup, end = _SHARES[self.trained]
        if self.trained and round(warmup * total_steps) < SHORTEST:
            warmup = 0.0
        return (
            warmup if self.warmup is None else self.warmup,
            end if self.discovery_end is None else self.discovery_end,
        )

    @property
    def draw(self) -> Draw:
        """Return how gates are drawn, as suits the estimator where it is not given.

        Example:
            >>> DiscoveryConfig(estimator="fisher").draw
            Draw(units=(inf, 0.0), layers=(4.0, 0.01))
            >>> DiscoveryConfig(estimator="two-sided", epsilon=0.02).draw.layers
            (4.0, 0.02)
        """

        def given(sharpness: float, epsilon: float) -> tuple[float, float]:
            return (
                sharpness if self.sharpness is None else self.sharpness,
                epsilon if self.epsilon is None else self.epsilon,
            )

        units = MOST_PROBABLE if self.estimator == "fisher" else _AT_RANDOM
        return Draw(given(*units), given(*_AT_RANDOM))


@dataclass(frozen=True)
class Dials:
    """Say what the user wants: `nu` or `target`, and what complexity means.

    Attributes:
        nu: nats of training loss worth paying to remove all complexity; None with a target.
        target: share of the complexity to keep; None with `nu`.
        alpha: 1: MACs ... 0: parameters; or a `Cost`, which may count latency.
        beta: 0: what each structure costs ... 1: whole layers only.

    Raises:
        MisconfiguredError: both or neither of `nu` and `target`, or a dial is out of range.
    """

    nu: float | None
    target: float | None
    alpha: float | Cost = 1.0
    beta: float = 0.0

    def __post_init__(self) -> None:
        if (self.nu is None) == (self.target is None):
            raise MisconfiguredError(
                f"nu={self.nu} and target={self.target}: give one of them, such as target=0.5 to "
                "keep half of the complexity"
            )
        given = {
            dial: value
            for dial, value in vars(self).items()
            if isinstance(value, int | float | str)  # neither None nor a Cost
        }
        if problems := [problem for dial in given if (problem := problem_of(dial, given[dial]))]:
            raise MisconfiguredError(*problems)
