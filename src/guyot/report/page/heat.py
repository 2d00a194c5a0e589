"""Keep probabilities over time: a row per unit, a column per snapshot, and when units went.

Rows are sorted by fate: those that stay on top, then those that went, the last to go first. So what
is gone is a staircase at the lower right.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guyot.report.history import History
from guyot.report.page.curves import Tick
from guyot.report.page.scale import Scale, path, ticks

WIDTH, HEIGHT, SETTLED, LABELS = 250, 76, 9, 15
"""Of one map, pixels: the plot, the strip that shows what was settled, the axis."""


@dataclass(frozen=True)
class Heat:
    """Keep probabilities of the units of a group, or of all layers.

    Attributes:
        title: the group's name.
        before: units.
        after: units that are left.
        image: PNG as a data URI, white where a structure is kept surely.
        settled: PNG of one column: how the network was settled; empty while it is not.
        gone: SVG path of the region after removal.
        edge: SVG path of the moments of removal.
        moments: horizontal places at which something went.
        data: what the tooltip needs.
    """

    title: str
    before: int
    after: int
    image: str
    settled: str
    gone: str
    edge: str
    moments: Sequence[float]
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Heats:
    """All maps of a run and their common axis of optimiser steps."""

    maps: Sequence[Heat]
    ticks: Sequence[Tick]
    steps: Sequence[int]


@dataclass(frozen=True)
class Rows:
    """Keep probabilities in percent, -1: gone; shape (rows, snapshots); sorted by fate.

    Attributes:
        title: what the rows are the units of.
        theta: keep probabilities.
        names: of the rows.
        went: step at which each went, or None.
        before: how many there are in all.
        after: how many are left in all.
    """

    title: str
    theta: NDArray[np.int16]
    names: Sequence[str]
    went: Sequence[int | None]
    before: int
    after: int


def rows_of(run: History) -> list[Rows]:
    """Return the layers, then every group."""
    if not run.snapshots:
        return []
    result: list[Rows] = []
    if run.layers:
        theta = [line["layers"]["theta"] for line in run.snapshots]
        went = [run.gone_layers.get(name) for name in run.layers]
        left = sum(step is None for step in went)
        result.append(_sorted("layers", theta, run.layers, went, (len(went), left)))
    for number, group in enumerate(run.groups):
        theta = [line["theta"][number] for line in run.snapshots]
        went = [run.gone[group["name"]].get(unit) for unit in group["rows"]]
        names = [f"unit {unit}" for unit in group["rows"]]
        sizes = group["size"], run.width(group)
        result.append(_sorted(group["name"], theta, names, went, sizes))
    return result


def _sorted(
    title: str,
    theta: Sequence[Sequence[int]],
    names: Sequence[str],
    went: Sequence[int | None],
    sizes: tuple[int, int],
) -> Rows:
    values = np.array(theta, dtype=np.int16).T
    total = np.maximum(values, 0).sum(axis=1)
    fate = [float("inf") if step is None else step for step in went]
    order = sorted(range(len(names)), key=lambda row: (-fate[row], -total[row]))
    return Rows(
        title,
        values[order],
        [names[row] for row in order],
        [went[row] for row in order],
        *sizes,
    )


def heats(run: History) -> Heats | None:
    """Lay out the maps of a run; None without discovery."""
    found = rows_of(run)
    if not found:
        return None
    steps = [line["step"] for line in run.snapshots]
    settled = run.status == "finished" and len(steps) > 1
    if len(steps) == 1:
        steps = [steps[0], steps[0] + 1]
    across = Scale(steps[0], steps[-1], 0, WIDTH)
    return Heats(
        [_heat(rows, across, settled) for rows in found],
        [Tick(across(value), f"{value:g}") for value in ticks(steps[0], steps[-1], 4)],
        [line["step"] for line in run.snapshots],
    )


def _heat(rows: Rows, across: Scale, settled: bool) -> Heat:
    theta = np.maximum(rows.theta, 0)
    moving = theta[:, :-1] if theta.shape[1] > 1 else theta
    corners: list[tuple[float, float]] = []
    height = HEIGHT / len(rows.names)
    for row, step in enumerate(rows.went):
        if step is not None:
            x = min(across(step), WIDTH)
            corners += [(x, row * height), (x, (row + 1) * height)]
    outline = [*corners, (WIDTH, HEIGHT), (WIDTH, corners[0][1])] if corners else []
    codes = np.where(rows.theta < 0, 255, rows.theta).astype(np.uint8)
    return Heat(
        rows.title,
        rows.before,
        rows.after,
        png(moving),
        png(theta[:, -1:]) if settled else "",
        path(outline) + "Z" if outline else "",
        path(corners),
        sorted({x for x, _ in corners}),
        {
            "title": rows.title,
            "names": rows.names,
            "went": rows.went,
            "theta": base64.b64encode(codes.tobytes()).decode(),
        },
    )


def png(percent: NDArray[np.int16]) -> str:
    """Draw shares in percent as a grey image, 255 for 100 %, a pixel each; a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    grey = np.rint(percent * 2.55).astype(np.uint8)
    Image.fromarray(grey).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
