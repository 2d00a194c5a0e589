"""The plots of the report as SVG and PNG for papers, drawn with matplotlib."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from guyot.core.errors import MisconfiguredError
from guyot.core.packages import needed
from guyot.report.history import History
from guyot.report.page.curves import (
    Quantity,
    limits,
    percent,
    phases,
    points,
    quantities,
    unit_of,
)
from guyot.report.page.drawing import change
from guyot.report.page.heat import rows_of
from guyot.report.page.network import blocks
from guyot.report.page.planes import COSTS, cost_scale, cost_title, ends, fronts, score_title
from guyot.report.page.style import DASHES, HUES, MATPLOTLIB_MARKERS
from guyot.report.page.style import marker as marker_of
from guyot.report.table import count_text

_WIDTH = 6.9
"""Inches: the text width of a page with one column."""
_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": False,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "savefig.dpi": 300,
    "savefig.bbox": "tight",
    "svg.hashsalt": "guyot",
}
_INK, _SOFT, _ACCENT, _GONE = "#1c1e21", "#8a8f95", "#1d6b48", "#a8572b"


def write_plots(runs: Sequence[History], folder: str | Path) -> list[Path]:
    """Write every plot of a report as SVG and as PNG with 300 dots per inch.

    Curves of all runs; with two runs or more both planes; for every run with discovery the network
    and its keep probabilities. What is there under the same name is replaced.

    Args:
        runs: as `guyot.report.read_runs` gives them.
        folder: made if it does not exist.

    Returns:
        The files.

    Raises:
        MisconfiguredError: matplotlib is not installed, or the folder cannot be made.
    """
    with needed(f"plots={str(folder)!r} needs", "report"):
        import matplotlib
        from matplotlib.figure import Figure
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MisconfiguredError(
            f"plots={str(folder)!r} cannot be made ({error.strerror}): give another folder"
        ) from error
    files: list[Path] = []
    with matplotlib.rc_context(_STYLE):
        for name, height, draw in _plots(runs):
            figure = Figure(figsize=(_WIDTH, height), layout="constrained")
            draw(figure)
            for ending in ("svg", "png"):
                file = folder / f"{name}.{ending}"
                figure.savefig(file, metadata={"Date": None} if ending == "svg" else None)
                files.append(file)
    return files


def _plots(runs: Sequence[History]) -> Iterator[tuple[str, float, Callable[[Any], None]]]:
    """Yield a plot's name, its height in inches, and what draws it."""
    shown = [q for q in quantities(runs[0].metric) if any(points(run, q) for run in runs)]
    if shown:
        height = 1.25 * len(shown) + 0.3 + 0.17 * -(-len(runs) // 4)
        yield "curves", height, lambda figure: _curves(figure, runs, shown)
    for key in COSTS:
        if len(ends(runs, key)) > 1:
            yield f"{runs[0].metric.key}-{key}", 3.2, lambda f, k=key: _plane(f, runs, k)
    for run in runs:
        name = re.sub(r"[^\w.-]+", "-", run.name)
        if found := blocks(run):
            height = 0.14 * sum(map(_lines, found)) + 0.6
            yield f"{name}-network", height, lambda f, b=found: _network(f, b)
        if maps := rows_of(run):
            height = 0.85 * -(-len(maps) // 4) + 0.2
            yield f"{name}-keep-probabilities", height, lambda f, r=run, m=maps: _maps(f, r, m)


def _dash(number: int) -> Any:
    numbers = [float(text) / 2 for text in DASHES[number % len(DASHES)].split()]
    return (0, numbers) if numbers else "-"


def _curves(figure: Any, runs: Sequence[History], shown: Sequence[Quantity]) -> None:
    axes = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axis, quantity in zip(axes, shown, strict=True):
        lines = [points(run, quantity) for run in runs]
        for number, (run, found) in enumerate(zip(runs, lines, strict=True)):
            look = {"color": HUES[number % len(HUES)], "linestyle": _dash(number)}
            style = "steps-post" if quantity.stepped else "default"
            marker = MATPLOTLIB_MARKERS[marker_of(number)]
            axis.plot(
                *zip(*found, strict=True) if found else ([], []),
                drawstyle=style,
                label=run.name,
                marker=marker,
                markevery=max(1, len(found) // 6),
                markersize=3,
                **look,
            )
        low, high, log = limits(quantity, lines)
        axis.set(ylim=(low, high), yscale="log" if log else "linear", title=quantity.title)
        if quantity.text is percent:
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    if len(runs) == 1:
        for _, start, stop in phases(runs[0])[1:2]:
            for axis in axes:
                axis.axvspan(start, stop, color="#f0eee8", zorder=0)
    else:
        figure.legend(*axes[0].get_legend_handles_labels(), ncols=4, loc="outside upper left")
    axes[-1].set_xlabel(unit_of(runs))


def _plane(figure: Any, runs: Sequence[History], cost: str) -> None:
    axis, found = figure.subplots(), ends(runs, cost)
    unit = 100 if runs[0].metric.percent else 1
    for best in fronts(found, runs):
        _, costs, scores = zip(*best, strict=True)
        look = {"where": "post", "color": _SOFT, "linestyle": ":", "linewidth": 0.8}
        axis.step(costs, [unit * score for score in scores], **look)
    for end in found:
        look = {"color": HUES[end.run % len(HUES)], "label": runs[end.run].name, "markersize": 6}
        axis.plot(end.cost, unit * end.score, MATPLOTLIB_MARKERS[marker_of(end.run)], **look)
    percents = ", %" if unit > 1 else ""
    axis.set(xlabel=cost_title(runs, cost), ylabel=score_title(runs) + percents)
    if cost_scale([end.cost for end in found], 0, 1).log:
        axis.set_xscale("log")
    else:
        axis.set_xlim(0, None)
    axis.xaxis.set_major_formatter(_short)
    figure.legend(loc="outside right upper")


def _network(figure: Any, found: Sequence[Any]) -> None:
    left, right = figure.subplots(1, 2, sharey=True)
    places: list[float] = []
    bottom = 0.0
    for block in found:
        edge, top, bottom = _GONE if block.gone else _SOFT, bottom, bottom + _lines(block)
        places.append((top + bottom) / 2)
        for number, box in enumerate(block.boxes):
            y, share = top + number + 0.5, box.after / max(1, box.before)
            _bar(left, y, 0.7, (1.0, 0.0 if box.group is None else share), edge)
            if box.stride > 1:
                cuts = [unit / box.before for unit in range(1, box.before)]
                left.vlines(cuts, y - 0.35, y + 0.35, color="white", linewidth=0.6)
            left.text(1.03, y, change(box.before, box.after), va="center", fontsize=6)
        _bar(right, places[-1], 0.7, (block.macs, block.left), edge)
    left.set(title="units before (outline) and after", xlim=(0, 1.35), xticks=[])
    left.spines["bottom"].set_visible(False)
    left.set_yticks(places, [block.title for block in found], fontsize=6)
    left.set_ylim(bottom + 0.2, -0.2)
    right.set(title="MACs before (outline) and after", xlim=(0, None))
    right.xaxis.set_major_formatter(_short)


def _short(value: float, _: object) -> str:
    return count_text(round(value))


def _lines(block: Any) -> int:
    return max(1, len(block.boxes))


def _end(name: str, letters: int) -> str:
    """Return the end of a long name, which tells it from its neighbours.

    Example:
        >>> _end("features.denseblock1.denselayer12.conv1", 28)
        '…seblock1.denselayer12.conv1'
    """
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def _bar(axis: Any, y: float, height: float, lengths: tuple[float, float], edge: str) -> None:
    axis.barh(y, lengths[0], height, facecolor="none", edgecolor=edge, linewidth=0.6)
    axis.barh(y, lengths[1], height, color=_ACCENT)


def _maps(figure: Any, run: History, maps: Sequence[Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    paint = LinearSegmentedColormap.from_list("keep", ["#ffffff", _ACCENT])
    steps = [line["step"] for line in run.snapshots]
    extent = (steps[0], max(steps[-1], steps[0] + 1))
    axes = list(figure.subplots(-(-len(maps) // 4), 4, squeeze=False, sharex=True).flat)
    for axis in axes:
        axis.set_axis_off()
    for place, (axis, rows) in enumerate(zip(axes, maps, strict=False)):
        axis.set_axis_on()
        count = len(rows.names)
        axis.imshow(
            rows.theta.clip(0, 100),
            cmap=paint,
            vmin=0,
            vmax=100,
            aspect="auto",
            interpolation="nearest",
            extent=(*extent, count, 0),
        )
        for row, step in enumerate(rows.went):
            if step is not None:
                axis.plot([step, step], [row, row + 1], color=_GONE, linewidth=1)
                axis.fill_between([step, extent[1]], row, row + 1, color="#e4e1d9", linewidth=0)
        counts = change(rows.before, rows.after)
        axis.set_title(f"{_end(rows.title, 38 - len(counts))}  {counts}", fontsize=5)
        axis.set(yticks=[], xlim=extent, ylim=(count, 0))
        axis.tick_params(labelsize=6, labelbottom=place + 4 >= len(maps))
