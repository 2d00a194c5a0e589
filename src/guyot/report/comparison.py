"""Runs of one task side by side: what each costs, and how sure their accuracies are."""

from __future__ import annotations

import json
import math
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from guyot.core.metric import ACCURACY, Metric
from guyot.costs.timing import Latency
from guyot.report.columns import USUAL, aligned
from guyot.report.history import History
from guyot.report.table import UNKNOWN, count_text, latency_notes, latency_text, machine_text

_Z = 1.959964
"""Of the normal distribution, for 95 %."""
_INTERVALS = (
    "The interval is that of Wilson. That of the difference is Newcombe's: where it holds 0, these "
    "test samples do not tell the two apart."
)


@dataclass(frozen=True)
class Hits:
    """An accuracy on so many test images.

    Attributes:
        right: predictions that are right.
        images: how many there are.
    """

    right: int
    images: int

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.right / self.images

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of Wilson (1927) for the accuracy on images like these.

        Example:
            >>> [round(bound, 3) for bound in Hits(356, 359).interval]
            [0.976, 0.997]
        """
        n, p = self.images, self.accuracy
        middle = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        wide = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
        return max(0.0, min(p, middle - wide)), min(1.0, max(p, middle + wide))  # not by rounding

    def above(self, other: Hits) -> tuple[float, float, float]:
        """Return by how much it is better, and the 95 % interval of Newcombe (1998), method 10.

        It takes the two as independent; on the same images it is a little too wide.

        Example:
            >>> [round(bound, 3) for bound in Hits(56, 70).above(Hits(48, 80))]
            [0.2, 0.052, 0.334]
        """
        (low, high), (less, more) = self.interval, other.interval
        p, q = self.accuracy, other.accuracy
        down, up = math.hypot(p - low, more - q), math.hypot(high - p, q - less)
        return p - q, p - q - down, p - q + up


@dataclass(frozen=True)
class Compared:
    """The figures of one run.

    Attributes:
        name: of the run.
        goal: what it was asked for; runs that differ in the seed only have the same.
        metric: of the score.
        score: on test data; None: not tested.
        hits: an accuracy and how many images it counts; None: other scores, or not counted.
        above: difference to the score of the run it is compared with; None: no score to compare.
        between: interval of the difference of two accuracies.
        macs: of one sample.
        share: of the full network's MACs.
        params: trainable parameters.
        latency: by batch size.
        seconds: of training with validation; None: it is not over.
    """

    name: str
    goal: str
    metric: Metric
    score: float | None
    hits: Hits | None
    above: float | None
    between: tuple[float, float] | None
    macs: int
    share: float
    params: int
    latency: dict[int, Latency]
    seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        hits, latency = self.hits, self.latency
        return {
            "name": self.name,
            "goal": self.goal,
            f"test_{self.metric.key}": self.score,
            "test_images": None if hits is None else hits.images,
            "interval": None if hits is None else list(hits.interval),
            "difference": None if self.above is None else [self.above, *(self.between or ())],
            "macs": self.macs,
            "share": self.share,
            "params": self.params,
            "latency": {batch: vars(found) for batch, found in latency.items()},
            "seconds": self.seconds,
        }


def compare(runs: Sequence[History]) -> list[Compared]:
    """Return the figures of runs, each beside the one that `reference` names."""
    found: list[Compared] = []
    for number, run in enumerate(runs):
        other = runs[reference(runs, number)]
        score, hits, others = run.test_score, hits_of(run), hits_of(other)
        above: float | None = None
        between: tuple[float, float] | None = None
        if other is not run and hits is not None and others is not None:
            above, *bounds = hits.above(others)
            between = bounds[0], bounds[1]
        elif other is not run and score is not None and other.test_score is not None:
            above = score - other.test_score
        found.append(
            Compared(
                name=run.name,
                goal=_kind(run),
                metric=run.metric,
                score=score,
                hits=hits,
                above=above,
                between=between,
                macs=run.macs,
                share=run.macs / run.before.macs,
                params=run.params,
                latency=dict(run.after.latency),
                seconds=None if run.result is None else run.result["seconds"],
            )
        )
    return found


def reference(runs: Sequence[History], number: int) -> int:
    """Return with which run one is compared: a full network, best of the same seed, or the first.

    Args:
        runs: all of them.
        number: of the run.
    """
    seed = runs[number].config["seed"]
    full = [n for n, run in enumerate(runs) if run.full_network]
    same = [n for n in full if runs[n].config["seed"] == seed]
    return (same or full or [0])[0]


def hits_of(run: History) -> Hits | None:
    """Return how many of its test images a run has right, if it counted them."""
    images = 0 if run.result is None else run.result.get("test_images", 0)
    if run.test_score is None or not images or run.metric is not ACCURACY:
        return None
    return Hits(round(run.test_score * images), images)


def _kind(run: History) -> str:
    """Name what a run shares with those that differ in the seed only."""
    config = {k: v for k, v in run.config.items() if k not in ("seed", "baseline", "keep")}
    slim = config.get("slim") is not None  # how much follows from the run it is compared with
    return json.dumps(config | {"slim": slim, "latency_table": None}, sort_keys=True)


def compare_lines(runs: Sequence[History], *, notes: bool = True, width: int = USUAL) -> list[str]:
    """Return the comparison as lines of text, mean and spread of several seeds included.

    Args:
        runs: side by side.
        notes: say how to read it, too.
        width: of the terminal.
    """
    found = compare(runs)
    full = any(run.full_network for run in runs)
    against = f"against {'full network' if full else runs[0].name}"
    counted = runs[0].metric is ACCURACY
    middle = ["95 % interval", "wrong"] if counted else []
    rows = [[f"{runs[0].metric.name} on test data", "", *middle, against]]
    rows += [[one.name, *_score(one, counted)] for one in found]
    costs = [["cost", "MACs", "share", "parameters", "latency, batch 1", "training"]]
    costs += [[one.name, *_costs(one)] for one in found]
    lines = [*aligned(rows, width), "", *aligned(costs, width)]
    if spread := _spread(found):
        head = ["over seeds", "runs", "mean", "from", "to", "deviation"]
        lines += ["", *aligned([head, *spread], width)]
    return [*lines, "", *_notes(runs, width)] if notes else lines


def _notes(runs: Sequence[History], width: int) -> list[str]:
    found = [_INTERVALS if runs[0].metric is ACCURACY else _better(runs[0].metric)]
    if len({(run.config["model"], run.config["data"]) for run in runs}) > 1:
        found.append("These runs differ in model or data: their scores do not compare.")
    machines = (machine_text(run.config["device"], run.config["threads"]) for run in runs)
    where = "; ".join(dict.fromkeys(machines))
    found += latency_notes([run.after.latency for run in runs], where)
    return textwrap.wrap(" ".join(found), min(width, USUAL))


def _better(metric: Metric) -> str:
    """Say how to read scores that have no interval."""
    which = "higher" if metric.higher else "lower"
    best = f", at most {metric.high:g}" if metric.high is not None else ""
    return (
        f"Scores are {metric.name}{best}: {which} is better. They have no interval: compare "
        "several seeds."
    )


def _score(one: Compared, counted: bool) -> list[str]:
    if one.score is None:
        return [UNKNOWN] * (2 + 2 * counted)
    middle = [UNKNOWN, UNKNOWN] if counted else []
    if one.hits is not None:
        low, high = (100 * bound for bound in one.hits.interval)
        wrong = one.hits.images - one.hits.right
        middle = [f"{low:.1f}-{high:.1f}", f"{wrong} of {one.hits.images}"]
    return [one.metric.text(one.score), *middle, difference_text(one)]


def difference_text(one: Compared) -> str:
    """Write by how much a run is above the one it is compared with; empty if nobody knows."""
    if one.above is None:
        return ""
    text = one.metric.difference(one.above)
    if one.between is None:
        return text
    low, high = (100 * bound for bound in one.between)
    return f"{text} ({low:+.1f} to {high:+.1f})"


def _costs(one: Compared) -> list[str]:
    latency = one.latency.get(1)
    return [
        count_text(one.macs),
        f"{one.share:.2f}",
        count_text(one.params),
        UNKNOWN if latency is None else latency_text(latency),
        UNKNOWN if one.seconds is None else f"{one.seconds:.0f} s",
    ]


def _spread(found: Sequence[Compared]) -> list[list[str]]:
    """Return a row for all runs that differ in the seed only, where there are several."""
    groups: dict[str, list[Compared]] = {}
    for one in found:
        if one.score is not None:
            groups.setdefault(one.goal, []).append(one)
    rows: list[list[str]] = []
    for group in groups.values():
        values = [one.score for one in group if one.score is not None]
        if len(values) > 1:
            name = group[0].name.rpartition(": ")[2]
            spread = statistics.stdev(values)
            figures = [statistics.fmean(values), min(values), max(values)]
            metric = group[0].metric
            cells = [metric.text(value) for value in figures]
            deviation = f"{100 * spread:.2f} points" if metric.percent else f"{spread:.4f}"
            rows.append([name, str(len(values)), *cells, deviation])
    return rows
