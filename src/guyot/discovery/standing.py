"""How a discovery looks: one line, a table by block, figures for a logger."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

from guyot.core.axis import size_of
from guyot.core.types import Axis, Structures
from guyot.planning.dynamics import Phase

_HEAD = ("block", "units", "MACs", "share", "parameters", "share")


@dataclass(frozen=True)
class Standing:
    """Where a run is.

    Attributes:
        phase: of the run.
        step: optimiser steps so far.
        steps: of the whole run.
        macs: of one sample at the present widths.
        full_macs: of the full network.
        params: at the present widths.
        full_params: of the full network.
        expected: share of the complexity that the keep probabilities expect.
        undecided: gates that are neither 0 nor 1.
        nu: the multiplier in force, nats.
        skipped: steps whose gradients were NaN, inf or missing.
    """

    phase: Phase
    step: int
    steps: int
    macs: int
    full_macs: int
    params: int
    full_params: int
    expected: float
    undecided: int
    nu: float
    skipped: int

    def __str__(self) -> str:
        """Return one line.

        Example:
            >>> print(Standing(Phase.DISCOVERY, 40, 100, 60, 80, 9, 12, 0.7, 3, 0.01, 0))
            discovery, step 40 of 100, MACs 60 (75.0 %), parameters 9 (75.0 %), 3 undecided
        """
        return (
            f"{self.phase.value}, step {self.step} of {self.steps}, "
            f"MACs {self.macs:,} ({_share(self.macs, self.full_macs)}), "
            f"parameters {self.params:,} ({_share(self.params, self.full_params)}), "
            f"{self.undecided} undecided"
        )

    def log(self) -> dict[str, float]:
        """Return the figures by name; the phase is 0, 1 or 2."""
        return {
            "guyot/phase": float(list(Phase).index(self.phase)),
            "guyot/macs": float(self.macs),
            "guyot/params": float(self.params),
            "guyot/expected_complexity": float(self.expected),
            "guyot/undecided": float(self.undecided),
            "guyot/nu": float(self.nu),
            "guyot/skipped": float(self.skipped),
        }


@dataclass(frozen=True)
class BlockTable:
    """A table of what is left of every block.

    `print` shows it as text, a notebook as HTML.

    Attributes:
        title: one line.
        rows: block, units, MACs with their share, parameters with their share; the last row is
            the sum.
    """

    title: str
    rows: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        wide = [max(map(len, column)) for column in zip(_HEAD, *self.rows, strict=True)]
        lines = [self.title, ""]
        for first, *others in (_HEAD, *self.rows):
            cells = [f"{first:<{wide[0]}}", *map(str.rjust, others, wide[1:])]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return self.html

    @property
    def html(self) -> str:
        """The table as HTML."""
        head, *body = [_row(cells) for cells in (_HEAD, *self.rows)]
        return (
            f"<p>{html.escape(self.title)}</p>"
            f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"
        )


def by_block(standing: Standing, full: Structures, left: Structures) -> BlockTable:
    """Compare the blocks of a network with those of the full one.

    A block is a module that holds the modules with the weights.

    Args:
        standing: for the title.
        full: structures of the full network.
        left: what is left of them.
    """
    before, after = _counts(full), _counts(left)
    order = dict.fromkeys(_block(tensor.name.rpartition(".")[0]) for tensor in full.tensors)
    names = [name for name in order if any(counts[name] for counts in before)]
    rows = [
        _figures(name or "(root)", [c[name] for c in after], [c[name] for c in before])
        for name in names
    ]
    total = _figures("all", [sum(c.values()) for c in after], [sum(c.values()) for c in before])
    return BlockTable(str(standing), (*rows, total))


def _figures(name: str, after: Sequence[int], before: Sequence[int]) -> tuple[str, ...]:
    units, macs, params = after
    return (
        name,
        f"{units} of {before[0]}" if before[0] else "",
        f"{macs:,}",
        _share(macs, before[1]),
        f"{params:,}",
        _share(params, before[2]),
    )


def _counts(structures: Structures) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Count units, MACs and parameters by block."""
    sizes = [group.size for group in structures.groups]

    def product(axes: Iterable[Axis]) -> int:
        return prod(size_of(axis, sizes) for axis in axes)

    units, macs, params = Counter[str](), Counter[str](), Counter[str]()
    for group in structures.groups:
        units[_block(group.name)] += group.size
    for operation in structures.operations:
        macs[_block(operation.name)] += product(operation.axes)
    for tensor in structures.tensors:
        if tensor.trainable:
            params[_block(tensor.name.rpartition(".")[0])] += product(tensor.axes)
    return units, macs, params


def _block(module: str) -> str:
    return module.rpartition(".")[0]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def _row(cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
