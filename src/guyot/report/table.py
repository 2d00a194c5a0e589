"""The table before => after, as lines of text of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from guyot.costs.timing import Latency
from guyot.report.describe import Width
from guyot.report.outcome import Network, Outcome

_COLUMNS = 80


def lines(outcome: Outcome) -> list[str]:
    """The report of a run.

    Args:
        outcome: of the run.

    Returns:
        Lines without line ends: title, figures, widths, notes.
    """
    shape = "x".join(str(n) for n in outcome.image_shape)
    title = f"model {outcome.model}, data {outcome.data}, images {shape}"
    if outcome.interrupted is not None:
        title += f"; interrupted during {outcome.interrupted}"
    rows = list(_figures(outcome))
    left = max(len(row[0]) for row in rows)
    middle = max(len(row[1]) for row in rows)
    right = max(len(row[2]) for row in rows)
    table = [
        f"{name:<{left}}  {before:>{middle}}  {'=>' if before else '  '}  "
        f"{after:>{right}}  {share:>5}".rstrip()
        for name, before, after, share in rows
    ]
    return [title, "", *table, "", *_structure(outcome), *_notes(outcome)]


def _figures(outcome: Outcome) -> Iterator[tuple[str, str, str, str]]:
    before, after = outcome.before, outcome.after
    yield "", "before", "after", "share"
    yield "MACs of one image", *_pair(before.macs, after.macs, count_text)
    yield "parameters", *_pair(before.params, after.params, count_text)
    for batch in before.latency:
        was, now = before.latency[batch], after.latency[batch]
        share = f"{now.median / was.median:.2f}"
        yield f"latency, batch {batch}", _milliseconds(was), _milliseconds(now), share
    yield "test accuracy", _accuracy(before), _accuracy(after), ""
    if outcome.validation_accuracy is not None:
        yield "validation accuracy", "", f"{outcome.validation_accuracy:.2%}", ""
    if count := len(outcome.layers):
        yield "residual branches", str(count), str(count - len(outcome.removed_layers)), ""


def member_lines(members: Sequence[Mapping[str, Any]]) -> list[str]:
    """A row for every member of a family.

    Args:
        members: `target` and `folder`, and what `result.json` of a member holds, if it does.
    """
    rows = [["target", "MACs", "share", "parameters", "test", "batch 1", "folder"]]
    for member in members:
        figures = ["", "", "", "", "", member["status"]]
        if "after" in member:
            before, after = member["before"], member["after"]
            accuracy, latency = after["test_accuracy"], after["latency"].get("1")
            figures = [
                *_pair(before["macs"], after["macs"], count_text)[1:],
                count_text(after["params"]),
                "-" if accuracy is None else f"{accuracy:.2%}",
                "-" if latency is None else f"{latency['median']:.2f} ms",
                member["folder"] if member["status"] == "finished" else member["status"],
            ]
        rows.append([f"{member['target']:g}", *figures])
    wide = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    return [
        "  ".join([*(f"{cell:>{w}}" for cell, w in zip(row, wide, strict=False)), row[-1]]).rstrip()
        for row in rows
    ]


def _pair(before: int, after: int, text: Callable[[int], str]) -> tuple[str, str, str]:
    return text(before), text(after), f"{after / before:.2f}"


def count_text(number: int) -> str:
    """Three significant digits.

    Example:
        >>> [count_text(n) for n in (512, 40_813_184, 1_730_714, 4_089_184_256)]
        ['512', '40.8 M', '1.73 M', '4.09 G']
    """
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            value = number / unit
            return f"{value:.{max(0, 3 - len(str(int(value))))}f} {name}"
    return str(number)


def _milliseconds(latency: Latency) -> str:
    return f"{latency.median:.2f} ms ({latency.low:.2f}-{latency.high:.2f})"


def _accuracy(network: Network) -> str:
    return "-" if network.test_accuracy is None else f"{network.test_accuracy:.2%}"


def _structure(outcome: Outcome) -> list[str]:
    """Widths, one paragraph per block, and the layers that went."""
    whole = all(width.before == width.after for width in outcome.widths)
    if whole and not outcome.removed_layers:
        return ["every unit and layer is still there", ""]
    blocks: dict[str, list[Width]] = {}
    for width in outcome.widths:
        blocks.setdefault(width.name.rpartition(".")[0], []).append(width)
    names = [name or "(root)" for name in blocks]
    indent = min(max((len(name) for name in names), default=0), 40) + 2
    result = ["widths per block"]
    for name, found in zip(names, blocks.values(), strict=True):
        text = ", ".join(_width(width) for width in found)
        result += textwrap.wrap(
            f"{name:<{indent - 2}}  {text}", _COLUMNS, subsequent_indent=" " * indent
        )
    if outcome.removed_layers:
        text = f"removed layers: {', '.join(outcome.removed_layers)}"
        result += textwrap.wrap(text, _COLUMNS, subsequent_indent="  ")
    return [*result, ""]


def _width(width: Width) -> str:
    name = width.name.rpartition(".")[2]
    if width.after == width.before:
        return f"{name} {width.before}"
    return f"{name} {width.before} => {width.after or 'gone'}"


def _notes(outcome: Outcome) -> Sequence[str]:
    notes = ["1 MAC = 1 multiply-accumulate = 2 FLOPs."]
    if outcome.before.latency:
        passes = min(item.repetitions for item in outcome.before.latency.values())
        notes.append(
            f"Latency: one forward pass in float32 on {outcome.device}, {outcome.threads} "
            f"thread{'s' * (outcome.threads > 1)}; median and quartiles of at least {passes} "
            "passes, both networks in turns."
        )
    if outcome.before.test_accuracy is None and outcome.after.test_accuracy is not None:
        notes.append("The network before was never trained alone (--no-discovery does that).")
    return textwrap.wrap(" ".join(notes), _COLUMNS)
