"""From measured networks to a latency table, and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guyot.core.axis import size_of
from guyot.core.errors import MisconfiguredError
from guyot.core.packages import needed
from guyot.core.types import Axis, Structures
from guyot.costs.latency.table import LatencyTable, Rate

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """One network that was timed: the full one, or one cut down to other widths.

    Attributes:
        widths: units kept, by group; groups that are whole may be left out.
        removed_layers: names of the layers it does not have.
        milliseconds: of one forward pass; None: not timed as a whole.
        operators: milliseconds by module, without the modules inside it; empty: not timed.
    """

    widths: Mapping[str, int] = field(default_factory=dict)
    removed_layers: tuple[str, ...] = ()
    milliseconds: float | None = None
    operators: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Measurement:
        """Return a measurement from JSON, with the attributes as keys.

        Raises:
            MisconfiguredError: other keys, or values of another type.

        Example:
            >>> Measurement.from_dict({"widths": {"conv1": 8}, "milliseconds": 4.5}).widths
            {'conv1': 8}
        """
        try:
            given: dict[str, Any] = {"removed_layers": (), **values}
            given["removed_layers"] = tuple(given["removed_layers"])
            made = cls(**given)
            times = [*made.operators.values(), made.milliseconds or 0.0]
            valid = all(math.isfinite(time) and time >= 0 for time in times)
        except (AttributeError, TypeError) as error:
            raise MisconfiguredError(
                f"this is no measurement ({error}): give {', '.join(cls.__annotations__)}"
            ) from error
        if not valid:
            raise MisconfiguredError(
                f"a measurement gives the times {times}: give milliseconds, 0 or more"
            )
        return made


@dataclass(frozen=True)
class CrossValidation:
    """Measured against predicted latency of networks that the prediction had not seen.

    Attributes:
        measured: milliseconds, one per network.
        predicted: by a table fitted to the other networks.

    Example:
        >>> found = CrossValidation(measured=(2.0, 4.0, 5.0), predicted=(2.2, 4.0, 4.5))
        >>> [round(error, 3) for error in found.errors], round(found.median_error, 3)
        ([0.1, 0.0, -0.1], 0.1)
        >>> round(found.correlation, 2)
        0.99
    """

    measured: tuple[float, ...]
    predicted: tuple[float, ...]

    @property
    def errors(self) -> tuple[float, ...]:
        """Predicted over measured, less 1."""
        pairs = zip(self.predicted, self.measured, strict=True)
        return tuple(predicted / measured - 1 for predicted, measured in pairs)

    @property
    def median_error(self) -> float:
        """Median of the absolute errors."""
        return median(map(abs, self.errors))

    @property
    def correlation(self) -> float:
        """Pearson's, of predicted with measured."""
        return float(np.corrcoef(self.measured, self.predicted)[0, 1])


def nonnegative(matrix: Array, values: Array) -> Array:
    """Return the x >= 0 that minimises |matrix x - values|.

    Args:
        matrix: shape (equations, unknowns).
        values: shape (equations,).

    Raises:
        MisconfiguredError: scipy is not installed.

    Example:
        >>> nonnegative(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([3.0, 2.0])).round(6)
        array([2.5, 0. ])
    """
    with needed("fitting a latency table needs", "latency"):
        from scipy.optimize import nnls
    scale = np.abs(matrix).max(axis=0, initial=0.0)
    scale[scale == 0] = 1.0
    solution, _ = nnls(matrix / scale, values)
    return solution / scale


Work = dict[str, tuple[float, float, float]]
"""Module -> (kernels, MACs, elements read and written) of one pass."""


def work_of(structures: Structures, network: Measurement, batch: int) -> Work:
    """Count exactly what the modules of a cut network compute and move.

    Args:
        structures: of the full network.
        network: which widths and layers it has.
        batch: samples per pass.

    Raises:
        MisconfiguredError: not this network.
    """
    sizes, gone = _sizes(structures, network), _gone(structures, network)
    axes = {tensor.name: tensor.axes for tensor in structures.tensors}

    def entries(shape: Sequence[Axis]) -> int:
        return prod(size_of(axis, sizes) for axis in shape)

    work: Work = {}
    for kernel in structures.kernels:
        if not gone.intersection(kernel.layers):
            macs = batch * sum(map(entries, kernel.macs))
            moved = batch * sum(map(entries, kernel.activations))
            moved += sum(entries(axes[name]) for name in kernel.tensors)
            before = work.get(kernel.name, (0, 0, 0))
            work[kernel.name] = (before[0] + 1, before[1] + macs, before[2] + moved)
    return work


def _time(work: Work, rates: Mapping[str, Rate]) -> float:
    """Return milliseconds of all modules with a rate."""
    return sum(
        count * rate.fixed + macs * rate.per_mac + moved * rate.per_element
        for name, (count, macs, moved) in work.items()
        if (rate := rates.get(name)) is not None
    )


def _sizes(structures: Structures, network: Measurement) -> list[int]:
    full = {group.name: group.size for group in structures.groups}
    for name, width in network.widths.items():
        if not 1 <= width <= full.get(name, 0):
            raise MisconfiguredError(
                f"a measurement gives {name} the width {width}, the network has "
                f"{full.get(name, 'no such group')}: measure this network"
            )
    return [network.widths.get(name, size) for name, size in full.items()]


def _gone(structures: Structures, network: Measurement) -> set[int]:
    names = [layer.name for layer in structures.layers]
    if unknown := sorted(set(network.removed_layers) - set(names)):
        raise MisconfiguredError(
            f"a measurement has the layers {', '.join(unknown)} removed, which the network does "
            "not have: measure this network"
        )
    return {names.index(name) for name in network.removed_layers}


def fit(
    structures: Structures,
    networks: Sequence[Measurement],
    *,
    batch: int,
    quantum: int = 1,
    where: Mapping[str, str] | None = None,
) -> LatencyTable:
    """Fit a table to measured networks; see the formulas of `guyot.costs.latency`.

    Without times of single operators, all kernels share one rate, fitted to the times of the
    networks.

    Args:
        structures: of the full network.
        networks: what was measured; some eight of different widths, half of them without some
            layers, tell the coefficients apart.
        batch: samples per pass.
        quantum: multiple of channels below which the device hardly gets faster.
        where: what was measured on.

    Raises:
        MisconfiguredError: nothing was timed, or not this network, or all networks take the same
            time.
    """
    rates, constant = _fitted(structures, networks, batch)
    if not any(value > 0 for rate in rates.values() for value in vars(rate).values()):
        raise MisconfiguredError(
            f"the {len(networks)} measured networks do not take longer the wider they are: measure "
            "for longer, when nothing else uses the machine"
        )
    full = _time(work_of(structures, Measurement(), batch), rates) + constant
    return LatencyTable(
        rates, batch, full, constant, quantum, structures.input_shapes, dict(where or {})
    )


def _fitted(
    structures: Structures, networks: Sequence[Measurement], batch: int
) -> tuple[dict[str, Rate], float]:
    """Return the rates of the kernels and the constant, in milliseconds."""
    works = [work_of(structures, network, batch) for network in networks]
    names = {kernel.name for kernel in structures.kernels}
    timed = {name for network in networks for name in network.operators}
    if unknown := sorted(timed - names):
        raise MisconfiguredError(
            f"the measurements time {', '.join(unknown[:3])}, which this network does not have: "
            "name modules as `Structures.kernels` does"
        )
    whole = [
        (work, network.milliseconds)
        for work, network in zip(works, networks, strict=True)
        if network.milliseconds is not None
    ]
    if not timed and not whole:
        raise MisconfiguredError(
            f"none of the {len(networks)} measurements holds a time: give milliseconds or operators"
        )
    if not timed:
        return _shared(names, whole)
    rates = {name: _rate(name, networks, works) for name in sorted(timed)}
    return _calibrated(rates, whole)


def _rate(name: str, networks: Sequence[Measurement], works: Sequence[Work]) -> Rate:
    """Return one module's coefficients."""
    rows = [
        (*work[name], network.operators[name])
        for network, work in zip(networks, works, strict=True)
        if name in network.operators and name in work
    ]
    table = np.array(rows).reshape(-1, 4)
    return Rate(*nonnegative(table[:, :3], table[:, 3]).tolist())


def _calibrated(
    rates: Mapping[str, Rate], whole: Sequence[tuple[Work, float]]
) -> tuple[dict[str, Rate], float]:
    """Return rates that add up to the times of whole networks; three or fewer set the scale."""
    if not whole:
        return dict(rates), 0.0
    rows = [
        (_time(work, rates), sum(work[name][0] for name in work if name in rates), 1.0)
        for work, _ in whole
    ]
    columns = 3 if len(whole) > 3 else 1
    found = nonnegative(np.array(rows)[:, :columns], np.array([time for _, time in whole]))
    scale, call, constant = (*found.tolist(), 0.0, 0.0)[:3]
    return {
        name: Rate(scale * rate.fixed + call, scale * rate.per_mac, scale * rate.per_element)
        for name, rate in rates.items()
    }, constant


def _shared(names: set[str], whole: Sequence[tuple[Work, float]]) -> tuple[dict[str, Rate], float]:
    """Return one rate for all modules and the constant, from times of whole networks alone."""
    rows = [(*np.sum(list(work.values()), axis=0), 1.0) for work, _ in whole]
    *rate, constant = nonnegative(np.array(rows), np.array([time for _, time in whole])).tolist()
    return dict.fromkeys(sorted(names), Rate(*rate)), constant


def cross_validate(
    structures: Structures, networks: Sequence[Measurement], *, batch: int, folds: int = 4
) -> CrossValidation:
    """Predict every timed network, but the full one, from a fit to the others.

    Args:
        structures: of the full network.
        networks: what was measured.
        batch: samples per pass.
        folds: how many fits; each leaves out every `folds`-th network.

    Raises:
        MisconfiguredError: fewer than two networks to compare.
    """
    cut = [n for n in networks if n.milliseconds is not None and (n.widths or n.removed_layers)]
    uncut = [n for n in networks if n not in cut]
    if len(cut) < 2:
        raise MisconfiguredError(
            f"{len(cut)} of the {len(networks)} measurements are times of cut networks: measure at "
            "least 2 to compare predictions with"
        )
    measured: list[float] = []
    predicted: list[float] = []
    for fold in range(min(folds, len(cut))):
        seen = [n for number, n in enumerate(cut) if number % folds != fold]
        rates, constant = _fitted(structures, [*uncut, *seen], batch)
        for network in cut[fold::folds]:
            work = work_of(structures, network, batch)
            measured.append(network.milliseconds or 0.0)
            predicted.append(_time(work, rates) + constant)
    return CrossValidation(tuple(measured), tuple(predicted))
