"""What a user sets, where it is checked, and how exactly a target is met; needs no torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from guyot.core.condition import SWITCH, Condition, is_number, is_whole, problem_of, require
from guyot.core.errors import MisconfiguredError
from guyot.core.patterns import ANY_PATTERNS, MULTIPLES, SETS_OF_PATTERNS, Patterns

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
        lambda nu: is_number(nu) and 0 <= nu < float("inf"),
        "give the nats of loss worth paying to remove all complexity, 0 or more, such as 0.3",
    ),
    "target": Condition(
        lambda target: is_number(target) and 0 < target < 1,
        "give the share of the complexity to keep, between 0 and 1, such as 0.5",
    ),
    "alpha": Condition(
        lambda alpha: is_number(alpha) and 0 <= alpha <= 1,
        "give a number from 0 to 1: 1 counts MACs only, 0 parameters only",
    ),
    "beta": Condition(
        lambda beta: is_number(beta) and 0 <= beta <= 1,
        "give a number from 0 to 1: 0 charges units and layers alike, 1 whole layers only",
    ),
    "total_steps": Condition(
        lambda steps: is_number(steps) and steps == int(steps),
        "give the number of optimiser steps of the whole run, such as 1000",
    ),
    "trained": SWITCH,
    "warmup": Condition(is_number, "give a share of the steps, such as 0.1"),
    "discovery_end": Condition(is_number, "give a share of the steps, such as 0.4"),
    "theta0": Condition(
        lambda theta0: is_number(theta0) and 0 < theta0 <= 1,
        "give a probability above 0, such as 0.9",
    ),
    "epsilon": Condition(
        lambda epsilon: is_number(epsilon) and 0 <= epsilon < 0.5,
        "give a probability below 1/2, such as 0.01",
    ),
    "sharpness": Condition(
        lambda sharpness: is_number(sharpness) and sharpness >= 1, "give 1 or more, such as 4"
    ),
    "patience": Condition(
        lambda patience: is_number(patience) and 0 < patience <= 1,
        "give a share of discovery, such as 0.05",
    ),
    "estimator": Condition(
        lambda name: isinstance(name, str) and name in ESTIMATORS,
        f"choose {', '.join(ESTIMATORS)}",
    ),
    "decay": Condition(
        lambda decay: is_number(decay) and 0 <= decay < 1,
        "give 0 or more and below 1, such as 0.96 for a window of 25 samples",
    ),
    "max_speed": Condition(
        lambda speed: is_number(speed) and speed > 0, "give a positive bound, such as 2"
    ),
    "round_to": MULTIPLES,
    "units": SWITCH,
    "layers": SWITCH,
    "ignore": ANY_PATTERNS,
    "freeze": ANY_PATTERNS,
    "tie": SETS_OF_PATTERNS,
    "removals": Condition(
        lambda removals: is_whole(removals) and removals >= 1,
        "give how many times structures may be removed, such as 40",
    ),
    "seed": Condition(
        lambda seed: is_whole(seed) and -(2**63) <= seed < 2**64, "give a whole number, such as 0"
    ),
}
"""What the value of a dial or setting must be, here and on the command line."""

_BY_ITSELF = ("warmup", "discovery_end", "epsilon", "sharpness")
"""Settings that may be None: other settings say then what they are."""


def problem_of_targets(targets: Sequence[float]) -> str | None:
    """Return what is wrong with the targets of a family, and the way out; None if nothing is."""
    shown = [f"{target:g}" if isinstance(target, Real) else repr(target) for target in targets]
    given = ",".join(shown)
    if len(targets) < 2:
        return f"targets={given}: give at least two sizes, such as 0.7,0.5, or one target"
    for target, text in zip(targets, shown, strict=True):
        if problem_of("target", target, CONDITIONS["target"]):
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
        MisconfiguredError: a value is out of range, or of another kind.
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
        given = {
            setting: value
            for setting, value in vars(self).items()
            if not (setting in _BY_ITSELF and value is None)
        }
        _check(given)

    @classmethod
    def given(cls, config: DiscoveryConfig | None) -> DiscoveryConfig:
        """Return a configuration that a user gave, or that of most runs for None.

        Raises:
            MisconfiguredError: it is something else, such as a dict.
        """
        if config is None:
            return cls()
        require("config", config, _CONFIG)
        return config

    def shares(self, total_steps: int) -> tuple[float, float]:
        """Return the warm-up and the end of discovery as shares of the steps of a run.

        Example:
            >>> DiscoveryConfig(trained=True, discovery_end=0.5).shares(1000)
            (0.02, 0.5)

        Raises:
            MisconfiguredError: the steps are not a number.
        """
        require("total_steps", total_steps, CONDITIONS["total_steps"])
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


_CONFIG = Condition(
    lambda config: isinstance(config, DiscoveryConfig),
    "give a guyot.DiscoveryConfig, such as guyot.DiscoveryConfig(round_to=8)",
)


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
            if not (dial in ("nu", "target") and value is None)
            and not (dial == "alpha" and _is_cost(value))
        }
        _check(given)


def _check(given: Mapping[str, Any]) -> None:
    """Refuse values that are no such settings, all in one error."""
    problems = [problem_of(name, value, CONDITIONS[name]) for name, value in given.items()]
    if found := [problem for problem in problems if problem is not None]:
        raise MisconfiguredError(*found)


def _is_cost(alpha: Any) -> bool:
    if is_number(alpha):
        return False
    from guyot.costs.complexity import Cost  # with it comes torch

    return isinstance(alpha, Cost)
