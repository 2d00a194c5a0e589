"""The lines of `metrics.jsonl`, made as a network trains; `docs/runs.md` is their reference.

The size is bounded however long the run and however large the network: about `_INTERVALS` lines of
figures, `_SNAPSHOTS` of gates with `_ROWS` units in all, and one per removal.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

from torch import Tensor

from guyot.core.axis import groups_in, size_of
from guyot.core.metric import ACCURACY, Metric, filed
from guyot.core.types import Axis, Concat, Fixed, Product, Structures, Units, Within
from guyot.discovery.discovery import Discovery
from guyot.planning.dynamics import Phase
from guyot.surgery.record import Removal

Write = Callable[[str, Mapping[str, Any]], None]
"""Takes an event and its values."""

_INTERVALS = 200
_SNAPSHOTS = 60
_ROWS = 2048
_ROWS_OF_A_GROUP = (4, 64)


@dataclass(frozen=True)
class Extent:
    """How long a run is, and how large its networks.

    Attributes:
        steps: optimiser steps of the whole run.
        full: MACs and parameters of the full network.
        trained: those of the network that trains without a discovery.
        metric: of the scores.
    """

    steps: int
    full: tuple[int, int]
    trained: tuple[int, int]
    metric: Metric = ACCURACY


class Lines:
    """Make the lines of a run.

    Args:
        write: takes each line.
        discovery: None without one.
        extent: of the run.
    """

    def __init__(self, write: Write, discovery: Discovery | None, extent: Extent) -> None:
        self._write, self._discovery, self._extent = write, discovery, extent
        self._interval = ceil(extent.steps / _INTERVALS)
        self._losses: list[float | Tensor] = []
        self._times: list[float] = []
        self._clock: float | None = None
        self._gates = None if discovery is None else _Gates(discovery)
        self._told = 0

    def began(self, steps_per_epoch: int | None) -> None:
        """Write the first line: what there is.

        Args:
            steps_per_epoch: None if nobody knows.
        """
        values: dict[str, Any] = {
            "steps": self._extent.steps,
            "steps_per_epoch": steps_per_epoch,
            "macs": self._extent.full[0],
            "params": self._extent.full[1],
            "metric": self._extent.metric.key,
        }
        if self._discovery is not None and self._gates is not None:
            values["discovery"] = self._gates.window
            values |= describe_structures(self._discovery.original, self._gates.rows)
        self._write("network", values)

    def pause(self) -> None:
        """Stop the clock of the steps: something else than training comes next."""
        self._clock = None

    def loss(self, value: float | Tensor) -> None:
        """Take the loss of a batch; it is read when the next figures are written."""
        self._losses.append(value)

    def stepped(self, step: int) -> None:
        """Another optimiser step is over.

        Args:
            step: counted from 1 over the whole run.
        """
        now = time.perf_counter()
        if self._clock is not None:
            self._times.append(now - self._clock)
        self.removals()
        if step % self._interval == 0 or step == self._extent.steps:
            self._figures(step)
        if self._gates is not None:
            self._gates.write(self._write, step)
        self._clock = time.perf_counter()

    def removals(self) -> list[Removal]:
        """Write a line for every removal that has none; return these removals."""
        if self._discovery is None:
            return []
        found = self._discovery.removals[self._told :]
        for removal in found:
            left = self._discovery.structures
            after = {
                "params": self._discovery.params,
                "widths": {group.name: group.size for group in left.groups},
                "operations": _macs(left),
            }
            self._write("removal", dataclasses.asdict(removal) | after)
            self._told += 1
        return found

    def epoch(self, values: Mapping[str, Any]) -> None:
        """Another epoch is complete."""
        self._write("epoch", filed(values, self._extent.metric))

    def ended(self, step: int) -> None:
        """Training is over; what happened since the last step."""
        self.removals()
        if self._gates is not None:
            self._gates.write(self._write, step)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next lines are made of: plain values for a checkpoint."""
        gates = self._gates
        return {
            "losses": [float(loss) for loss in self._losses],
            "times": list(self._times),
            "told": self._told,
            "gates": None if gates is None else gates.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the lines that were written when `state_dict` was called."""
        self._losses, self._times = list(state["losses"]), list(state["times"])
        self._told = int(state["told"])
        if self._gates is not None:
            self._gates.load_state_dict(state["gates"])

    def _figures(self, step: int) -> None:
        macs, params = self._extent.trained
        expected = 1.0
        if self._discovery is not None:
            macs, params = self._discovery.macs, self._discovery.params
            expected = self._discovery.expected_complexity
        values: dict[str, Any] = {
            "step": step,
            "seconds": statistics.median(self._times) if self._times else None,
            "macs": macs,
            "params": params,
            "expected_complexity": expected,
        }
        if self._losses:
            values["loss"] = statistics.fmean(map(float, self._losses))
        self._write("steps", values)
        self._losses.clear()
        self._times.clear()


def describe_structures(structures: Structures, rows: Sequence[Sequence[int]]) -> dict[str, Any]:
    """A network as plain data: its unit groups, layers and operators.

    Args:
        structures: of the full network.
        rows: for every group the units whose gates are written down.
    """
    inside = {tensor.name: set(tensor.layers) for tensor in structures.tensors}
    sizes = [group.size for group in structures.groups]
    return {
        "groups": [
            {
                "name": group.name,
                "size": group.size,
                "stride": group.stride,
                "layers": sorted(set.intersection(*(inside[m.tensor] for m in group.members))),
                "rows": list(units),
            }
            for group, units in zip(structures.groups, rows, strict=True)
        ],
        "layers": [layer.name for layer in structures.layers],
        "operations": [
            {
                "name": operation.name,
                "layers": list(operation.layers),
                "groups": list(dict.fromkeys(groups_in(operation.axes[0]))),
                "width": size_of(operation.axes[0], sizes),
                "macs": prod(size_of(axis, sizes) for axis in operation.axes),
            }
            for operation in structures.operations
        ],
    }


def _macs(structures: Structures) -> dict[str, int]:
    """MACs of one sample by operator; one that runs several times counts as often."""
    sizes = [group.size for group in structures.groups]
    total: dict[str, int] = {}
    for operation in structures.operations:
        macs = prod(size_of(axis, sizes) for axis in operation.axes)
        total[operation.name] = total.get(operation.name, 0) + macs
    return total


class _Gates:
    """Snapshots of keep probabilities, benefits and prices, in the full network's numbering."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery, phases = discovery, discovery.phases
        self.window = [phases.discovery_start, phases.discovery_stop]
        self._interval = ceil(phases.discovery_steps / _SNAPSHOTS)
        sizes = [group.size for group in discovery.original.groups]
        least, most = _ROWS_OF_A_GROUP
        bound = min(most, max(least, _ROWS // max(1, len(sizes))))
        self.rows = [_spread(size, bound) for size in sizes]
        self._next = 0
        self._settled = False

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next, "settled": self._settled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._next, self._settled = int(state["next"]), bool(state["settled"])

    def write(self, write: Write, step: int) -> None:
        """A line, if it is time for one: during discovery, and once when it has ended."""
        phase = self._discovery.phase
        if phase is Phase.WARM_UP or self._settled:
            return
        self._settled = phase is Phase.FINE_TUNE
        if self._settled or step >= self._next:
            self._next = step + self._interval
            write("gates", {"step": step, "nu": self._discovery.nu, **self._snapshot()})

    def _snapshot(self) -> dict[str, Any]:
        discovery = self._discovery
        thetas, benefits, prices = discovery.keep_probs, discovery.benefits, discovery.prices
        gone = self._gone()
        result: dict[str, list[Any]] = {
            name: [] for name in ("theta", "benefit", "price", "expected", "earned")
        }
        for group, rows in zip(discovery.original.groups, self.rows, strict=True):
            if group.name not in thetas:
                values: list[Any] = [[-1] * len(rows), [0] * len(rows), 0, 0, 0]
            else:
                theta, benefit = thetas[group.name], benefits[group.name]
                left = [unit for unit in range(group.size) if unit not in gone[group.name]]
                where = {unit: place for place, unit in enumerate(left)}
                percent = [round(100 * value) for value in theta.tolist()]
                earned = [_short(value) for value in benefit.tolist()]
                values = [
                    [percent[where[unit]] if unit in where else -1 for unit in rows],
                    [earned[where[unit]] if unit in where else 0 for unit in rows],
                    _short(float(prices[group.name].mean())),
                    round(float(theta.sum()), 2),
                    _short(float(benefit.sum())),
                ]
            for name, value in zip(result, values, strict=True):
                result[name].append(value)
        layers = self._layers(thetas, benefits, prices)
        expected = _expected_macs(discovery.original, result["expected"], layers["theta"])
        return result | {"macs": expected, "layers": layers}

    def _layers(self, *quantities: dict[str, Tensor]) -> dict[str, list[float]]:
        keys = [f"layer {layer.name}" for layer in self._discovery.original.layers]
        thetas, benefits, prices = quantities
        return {
            "theta": [round(100 * float(thetas[k])) if k in thetas else -1 for k in keys],
            "benefit": [_short(float(benefits[k])) if k in benefits else 0 for k in keys],
            "price": [_short(float(prices[k])) if k in prices else 0 for k in keys],
        }

    def _gone(self) -> dict[str, set[int]]:
        gone: dict[str, set[int]] = {g.name: set() for g in self._discovery.original.groups}
        for removal in self._discovery.removals:
            for name, units in removal.units.items():
                gone[name].update(units)
        return gone


def _expected_macs(
    full: Structures, units: Sequence[float], layers: Sequence[float]
) -> list[float]:
    """Return the MACs of one sample that each operator is expected to take, in their order.

    Args:
        full: structures of the full network.
        units: that are expected in each group.
        layers: keep probability of each layer in percent; -1: it is gone.
    """
    return [
        _short(
            prod(_expected_size(axis, units) for axis in operation.axes)
            * prod(max(0.0, layers[number]) / 100 for number in operation.layers)
        )
        for operation in full.operations
    ]


def _expected_size(axis: Axis, units: Sequence[float]) -> float:
    """Return the length of a dimension when group `g` has `units[g]` units in expectation."""
    match axis:
        case Fixed(size):
            return size
        case Units(group):
            return units[group]
        case Within(group, block):
            return units[group] / _expected_size(block, units)
        case Product(parts):
            return prod(_expected_size(part, units) for part in parts)
        case Concat(parts):
            return sum(_expected_size(part, units) for part in parts)


def _spread(size: int, bound: int) -> list[int]:
    """At most `bound` indices below `size`, evenly spaced.

    Example:
        >>> _spread(3, bound=5), _spread(9, bound=3)
        ([0, 1, 2], [0, 3, 6])
    """
    count = min(size, bound)
    return [place * size // count for place in range(count)]


def _short(value: float) -> float:
    """Three significant digits.

    Example:
        >>> _short(0.000123456)
        0.000123
    """
    return float(f"{value:.3g}")
