"""The table before => after, as lines of text of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from guyot.core.metric import ACCURACY, METRICS, Metric
from guyot.costs.timing import Latency
from guyot.report.columns import USUAL, aligned
from guyot.report.describe import Width
from guyot.report.outcome import Network, Outcome

UNKNOWN = "-"
"""Stands for a figure that nobody measured."""


@dataclass(frozen=True)
class Figure:
    """A line of the table before => after.

    Attributes:
        name: what it is a figure of.
        before: of the full network; empty when it has none.
        after: of the network of the run.
        share: after over before; None where that says nothing.
    """

    name: str
    before: str
    after: str
    share: float | None = None


def lines(outcome: Outcome, width: int = USUAL) -> list[str]:
    """Return the report of a run as lines without line ends: title, figures, widths, notes.

    Args:
        outcome: of the run.
        width: of the terminal.
    """
    width = min(width, USUAL)
    shape = "x".join(str(n) for n in outcome.image_shape)
    kind = sample_word(outcome.image_shape)
    title = f"model {outcome.model}, data {outcome.data}, {kind}s {shape}"
    if outcome.interrupted is not None:
        title += f"; interrupted during {outcome.interrupted}"
    found = figures(
        (outcome.before, outcome.after),
        outcome.metric,
        kind,
        outcome.device,
        outcome.validation_score,
        len(outcome.layers),
        len(outcome.removed_layers),
    )
    rows = [("", "before", "after", "share")]
    for figure in found:
        share = "" if figure.share is None else f"{figure.share:.2f}"
        rows.append((figure.name, figure.before, figure.after, share))
    left, middle, right, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    table = [
        f"{name:<{left}}  {before:>{middle}}  {'=>' if before else '  '}  "
        f"{after:>{right}}  {share:>5}".rstrip()
        for name, before, after, share in rows
    ]
    if max(map(len, table)) > width:
        table = ["before => after, share"]
        for name, before, after, share in rows[1:]:
            pair = f"{before} => {after}" if before else after
            table += [name, f"  {pair}{f', {share}' if share else ''}"]
    titles = textwrap.wrap(title, width)
    return [*titles, "", *table, "", *_structure(outcome, width), *_notes(outcome, width)]


def sample_word(shape: Sequence[int]) -> str:
    """Return what a sample of that shape is called.

    Example:
        >>> sample_word((3, 32, 32)), sample_word((13,))
        ('image', 'sample')
    """
    return "image" if len(shape) == 3 else "sample"


def figures(
    networks: tuple[Network, Network],
    metric: Metric,
    sample: str,
    device: str,
    validation: float | None,
    layers: int,
    removed: int,
) -> list[Figure]:
    """Return the figures of a run that the terminal and the page show.

    Args:
        networks: the full one and that of the run.
        metric: of their scores.
        sample: what a sample is called.
        device: where their latency was measured.
        validation: score of the second, on held-out training data.
        layers: how many residual branches could go.
        removed: how many of them went.
    """
    before, after = networks
    at_work = "CPU time" if device == "cpu" else "device time"
    found = [
        _figure(f"MACs of one {sample}", before.macs, after.macs, count_text),
        _figure("parameters", before.params, after.params, count_text),
    ]
    for batch, was in before.latency.items():
        if (now := after.latency.get(batch)) is None:
            continue
        share = now.median / was.median if was.steady and now.steady else None
        found.append(Figure(f"latency, batch {batch}", latency_text(was), latency_text(now), share))
        if was.busy and now.busy is not None:
            found.append(_figure(f"{at_work}, batch {batch}", was.busy, now.busy, _ms))
    was, now = (_score(network, metric) for network in networks)
    found.append(Figure(f"test {metric.name}", was, now))
    if validation is not None:
        found.append(Figure(f"validation {metric.name}", "", metric.text(validation)))
    if layers:
        found.append(_figure("residual branches", layers, layers - removed, str))
    return found


def _figure(name: str, before: float, after: float, text: Callable[[Any], str]) -> Figure:
    return Figure(name, text(before), text(after), after / before)


def latency_text(latency: Latency) -> str:
    """Return median and quartiles.

    Example:
        >>> latency_text(Latency(0.5, 0.4, 12.34, 50))
        '0.500 ms (0.400-12.3)'
    """
    return f"{_ms(latency.median)} ({_digits(latency.low)}-{_digits(latency.high)})"


def _ms(milliseconds: float) -> str:
    return f"{_digits(milliseconds)} ms"


def _digits(milliseconds: float) -> str:
    """Write three significant digits."""
    return f"{milliseconds:.0f}" if milliseconds >= 99.95 else f"{milliseconds:#.3g}"


def machine_text(device: str, threads: int | None) -> str:
    """Say where something ran.

    Example:
        >>> machine_text("cpu", 1), machine_text("cuda", None)
        ('cpu, 1 thread', 'cuda')
    """
    return device + (f", {threads} thread{'s' * (threads != 1)}" if threads else "")


def latency_notes(latencies: Iterable[Mapping[int, Latency]], where: str) -> list[str]:
    """Say how latencies were measured, and which of them not to rely on.

    Args:
        latencies: by batch size, of one or several networks.
        where: device and threads.

    Example:
        >>> latency_notes([{1: Latency(2.0, 1.5, 3.5, 50)}], "cpu, 2 threads")[1]
        'The quartiles at batch 1 are far apart: measure again when nothing else uses the machine.'
    """
    found = [(batch, latency) for one in latencies for batch, latency in one.items()]
    if not found:
        return []
    passes = min(latency.repetitions for _, latency in found)
    how = f"median and quartiles of at least {passes} passes, in turns"
    notes = [f"Latency: one forward pass in float32 on {where}; {how}."]
    if any(latency.busy is not None for _, latency in found):
        notes.append(
            "CPU or device time: how long it worked for a pass; other programs hardly change that."
        )
    if unsteady := sorted({batch for batch, latency in found if not latency.steady}):
        notes.append(
            f"The quartiles at batch {' and '.join(map(str, unsteady))} are far apart: measure "
            "again when nothing else uses the machine."
        )
    return notes


def member_lines(members: Sequence[Mapping[str, Any]], width: int = USUAL) -> list[str]:
    """Return a row for every member of a family.

    Args:
        members: `target` and `folder`, and what `result.json` of a member holds, if it does.
        width: of the terminal.
    """
    rows = [["target", "MACs", "share", "parameters", "test", "batch 1", "folder"]]
    for member in members:
        figures = ["", "", "", "", "", member["status"]]
        if "after" in member:
            before, after = member["before"], member["after"]
            metric = METRICS[member.get("metric", ACCURACY.key)]
            key = f"test_{metric.key}"
            score, latency = after[key], after["latency"].get("1")
            worse = score is not None and any(
                metric.better(other["after"][key], score)
                for other in members
                if other["target"] < member["target"] and other["status"] == "finished"
            )
            folder = f"{member['folder']}{', worse than a smaller one' * worse}"
            figures = [
                count_text(after["macs"]),
                f"{after['macs'] / before['macs']:.2f}",
                count_text(after["params"]),
                "-" if score is None else metric.text(score),
                "-" if latency is None else _ms(latency["median"]),
                folder if member["status"] == "finished" else member["status"],
            ]
        rows.append([f"{member['target']:g}", *figures])
    return aligned(rows, width, name=len(rows[0]) - 1)


def count_text(number: int) -> str:
    """Return three significant digits.

    Example:
        >>> [count_text(n) for n in (512, 40_813_184, 1_730_714, 4_089_184_256)]
        ['512', '40.8 M', '1.73 M', '4.09 G']
    """
    for unit, name in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            value = number / unit
            return f"{value:.{max(0, 3 - len(str(int(value))))}f} {name}"
    return str(number)


def _score(network: Network, metric: Metric) -> str:
    return UNKNOWN if network.test_score is None else metric.text(network.test_score)


def _structure(outcome: Outcome, columns: int) -> list[str]:
    """Return widths, one paragraph per block, and the layers that went."""
    whole = all(width.before == width.after for width in outcome.widths)
    if whole and not outcome.removed_layers:
        return ["every unit and layer is still there", ""]
    blocks: dict[str, list[Width]] = {}
    for width in outcome.widths:
        blocks.setdefault(width.name.rpartition(".")[0], []).append(width)
    names = [name or "(root)" for name in blocks]
    indent = min(max((len(name) for name in names), default=0), columns // 2) + 2
    result = ["widths per block"]
    for name, found in zip(names, blocks.values(), strict=True):
        text = ", ".join(_width(width) for width in found)
        result += textwrap.wrap(
            f"{name:<{indent - 2}}  {text}", columns, subsequent_indent=" " * indent
        )
    if outcome.removed_layers:
        text = f"removed layers: {', '.join(outcome.removed_layers)}"
        result += textwrap.wrap(text, columns, subsequent_indent="  ")
    return [*result, ""]


def _width(width: Width) -> str:
    name = width.name.rpartition(".")[2]
    if width.after == width.before:
        return f"{name} {width.before}"
    return f"{name} {width.before} => {width.after or 'gone'}"


def _notes(outcome: Outcome, width: int) -> Sequence[str]:
    where = machine_text(outcome.device, outcome.threads)
    latencies = (outcome.before.latency, outcome.after.latency)
    notes = ["1 MAC = 1 multiply-accumulate = 2 FLOPs.", *latency_notes(latencies, where)]
    if outcome.before.test_score is None and outcome.after.test_score is not None:
        notes.append("The network before was never trained alone (--baseline full does that).")
    return textwrap.wrap(" ".join(notes), width)
