"""A drawing of a discovery with matplotlib: how wide every group of units is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from guyot.core.packages import needed
from guyot.core.types import Structures

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LEFT, _EXPECTED, _EDGE = "#1d6b48", "#8fc7ab", "#5c6168"
_ROW, _WIDTH = 0.24, 6.9
"""Inches: the height of a group, and the width of the drawing."""


def plot_widths(
    title: str,
    full: Structures,
    expected: Mapping[str, float],
    left: Mapping[str, int],
    axes: Axes | None = None,
) -> Axes:
    """Draw a bar for every group: outline before, light what is left, dark what is expected.

    Args:
        title: above it.
        full: structures of the full network.
        expected: units that the keep probabilities expect, by group; a missing one is gone.
        left: units that are physically there, by group.
        axes: to draw on; None: new ones.

    Raises:
        MisconfiguredError: matplotlib is not installed.
    """
    with needed("plot() needs", "report"):
        from matplotlib import pyplot
    groups = full.groups
    if axes is None:
        size = (_WIDTH, 1.0 + _ROW * len(groups))
        axes = pyplot.subplots(figsize=size, layout="constrained")[1]
    places = range(len(groups))
    names = [group.name for group in groups]
    shares = [left.get(group.name, 0) / group.size for group in groups]
    likely = [expected.get(group.name, 0.0) / group.size for group in groups]
    axes.barh(places, [1.0] * len(groups), facecolor="none", edgecolor=_EDGE, linewidth=0.8)
    axes.barh(places, shares, color=_EXPECTED, label="units that are there")
    axes.barh(places, likely, color=_LEFT, label="units that are expected to stay")
    for place, group in enumerate(groups):
        axes.text(1.02, place, f"{left.get(group.name, 0)} of {group.size}", va="center")
    axes.set_yticks(places, names)
    axes.set(xlim=(0, 1.3), ylim=(len(groups) - 0.4, -0.6), xlabel="share of the units")
    axes.set_title(title.replace(", MACs", "\nMACs", 1), loc="left", fontsize="medium")
    axes.legend(loc="upper left", bbox_to_anchor=(0, -0.12), ncols=2, frameon=False)
    return axes
