"""The table: every method of a task and target beside the best rival, paired by seed."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from arena.job import Json
from arena.methods import rivals
from arena.paired import Difference, paired

Cell = tuple[str, str, bool, float]
"""Task, start, rounded widths, target."""
BEGINNINGS = {
    "scratch": "from scratch",
    "checkpoint": "from the dense checkpoint",
    "distilled": "from the dense checkpoint, which also teaches",
}
BySeed = dict[int, Json]


def load(results: Path) -> list[Json]:
    """All results."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*/*.json"))]


def cells(results: Iterable[Json]) -> dict[Cell, dict[str, BySeed]]:
    """Results by cell, method and seed; the dense network stands in every cell of its task."""
    found: dict[Cell, dict[str, BySeed]] = defaultdict(lambda: defaultdict(dict))
    dense: dict[tuple[str, str], BySeed] = defaultdict(dict)
    for result in results:
        run = result["run"]
        if run["method"] == "dense":
            dense[run["task"], run["start"]][run["seed"]] = result
            continue
        cell = (run["task"], run["start"], run["rounded"], run["target"])
        found[cell][run["method"]][run["seed"]] = result
    for (task, start, _, _), methods in found.items():
        if (task, start) in dense:
            methods["dense"] = dense[task, start]
    return {cell: with_grid(methods) for cell, methods in sorted(found.items())}


def with_grid(methods: dict[str, BySeed]) -> dict[str, BySeed]:
    """Put one method in place of all hand-cut ones: of every seed the best on validation data.

    Its name says of how many runs it was the best; the uniform and the half as deep network are
    among them.
    """
    hand_cut = [name for name in methods if name.startswith("grid-")]
    if not hand_cut:
        return dict(methods)
    tried = [*hand_cut, *(name for name in ("uniform", "half-depth") if name in methods)]
    seeds = set.intersection(*(set(methods[name]) for name in tried))
    best = {
        seed: min((methods[name][seed] for name in tried), key=validation_loss) for seed in seeds
    }
    rest = {name: found for name, found in methods.items() if name not in hand_cut}
    return rest | {f"best of {len(tried)} by hand": best} if best else rest


def average(found: BySeed, value: Callable[[Json], float]) -> float:
    """Mean over seeds."""
    return mean(value(result) for result in found.values())


def validation_loss(result: Json) -> float:
    """Mean cross entropy, nats."""
    return result["validation"]["loss"]


def test_loss(result: Json) -> float:
    """Mean cross entropy, nats."""
    return result["test"]["loss"]


def test_accuracy(result: Json) -> float:
    """Right answers, %."""
    return 100 * result["test"]["accuracy"]


def best_rival(methods: dict[str, BySeed]) -> str | None:
    """The rival with the least validation loss, among those with most seeds."""
    known = {name: found for name, found in methods.items() if rivals(name) and found}
    if not known:
        return None
    most = max(len(found) for found in known.values())
    full = [name for name, found in known.items() if len(found) == most]
    return ranked({name: known[name] for name in full})[0]


def ranked(methods: dict[str, BySeed]) -> list[str]:
    """The names of methods, the best on validation data first."""
    return sorted(methods, key=lambda name: average(methods[name], validation_loss))


def difference(ours: BySeed, theirs: BySeed, value: Callable[[Json], float]) -> Difference:
    """Over the seeds that both have."""
    seeds = sorted(set(ours) & set(theirs))
    return paired([value(ours[s]) for s in seeds], [value(theirs[s]) for s in seeds])


def interval(found: Difference, digits: int) -> str:
    """A difference with its interval and p."""
    if not found.count:
        return ""
    if found.count < 2:
        return f"{found.mean:+.{digits}f}"
    p = f"p = {found.p:.2g}" if found.p >= 1e-4 else "p < 0.0001"
    return f"{found.mean:+.{digits}f} ± {found.half:.{digits}f}, {p}"


TITLES = (
    "method | seeds | MACs kept | cost | parameters | training loss | validation loss | test loss "
    "| test accuracy, % | test loss − {0} | accuracy − {0}"
)


def spread(found: BySeed, value: Callable[[Json], float], digits: int) -> str:
    """Mean and standard deviation over seeds."""
    values = [value(result) for result in found.values()]
    known = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{known}"


def rows(methods: dict[str, BySeed], against: str | None) -> list[str]:
    """One row per method, the best on validation data first."""
    reference = against if against in methods else best_rival(methods)
    lines = [f"| {TITLES.format(reference)} |", "|---" * 11 + "|"]
    for name in ranked(methods):
        found = methods[name]
        versus = ["", ""]
        if reference is not None and name != reference:
            versus = [
                interval(difference(found, methods[reference], value), digits)
                for value, digits in ((test_loss, 4), (test_accuracy, 2))
            ]
        params = average(found, lambda r: r["params"])
        columns: list[Any] = [
            f"**{name}**" if name.startswith("guyot") else name,
            len(found),
            f"{average(found, lambda r: r['share']):.4f}",
            f"{average(found, lambda r: r['cost']):.2f}",
            f"{params:,.0f}",
            spread(found, lambda r: r["training_loss"], 4),
            spread(found, validation_loss, 4),
            spread(found, test_loss, 4),
            spread(found, test_accuracy, 2),
            *versus,
        ]
        lines.append("| " + " | ".join(map(str, columns)) + " |")
    return lines


def summary(results: list[Json]) -> str:
    """One table per start, one row per cell: the best rival, and how far guyot is from it."""
    tables: dict[str, list[str]] = defaultdict(list)
    for (task, start, rounded, target), methods in cells(results).items():
        name = best_rival(methods)
        ours = methods.get("guyot")
        if name is None or not ours:
            continue
        rival, beside = methods[name], methods.get(BESIDE[start][1], {})
        last = (ours, beside) if start == "scratch" else (beside, rival)
        versus = difference(ours, rival, test_loss)
        columns = [
            task + ", rounded" * rounded,
            f"{target:g}",
            versus.count,
            name,
            spread(rival, test_loss, 4),
            spread(ours, test_loss, 4),
            interval(versus, 4),
            ", ".join(f"{average(found, test_accuracy):.1f}" for found in (ours, rival)),
            interval(difference(*last, test_loss), 4),
        ]
        tables[start].append("| " + " | ".join(map(str, columns)) + " |")
    titles = "task | target | seeds | best rival | its test loss | guyot's | guyot − rival"
    return "\n".join(
        f"{BEGINNINGS[start].capitalize()}:\n\n| {titles} | accuracy, %: guyot, rival | "
        f"{BESIDE[start][0]} |\n{'|---' * 9}|\n" + "\n".join(tables[start]) + "\n"
        for start in BESIDE
        if tables[start]
    )


BESIDE = {
    "checkpoint": ("guyot.shrink − rival", "guyot-shrink"),
    "distilled": ("guyot.shrink − rival", "guyot-shrink"),
    "scratch": ("guyot − planted", "planted"),
}
"""What the last column of a summary is called, and the method that it is about."""


FIGURES: dict[str, Callable[[BySeed], object]] = {
    "seeds": len,
    "macs_kept": lambda found: f"{average(found, lambda r: r['share']):.4f}",
    "cost": lambda found: f"{average(found, lambda r: r['cost']):.3f}",
    "params": lambda found: f"{average(found, lambda r: r['params']):.0f}",
    "training_loss": lambda found: f"{average(found, lambda r: r['training_loss']):.4f}",
    "validation_loss": lambda found: f"{average(found, validation_loss):.4f}",
    "test_loss": lambda found: spread(found, test_loss, 4),
    "test_accuracy": lambda found: f"{average(found, test_accuracy):.2f}",
}
"""Columns of the file with all methods: means over seeds."""


def lines(results: list[Json]) -> list[str]:
    """Comma-separated values: one line per method of a cell, the best on validation data first."""
    found = [",".join(("task", "start", "widths", "target", "method", *FIGURES))]
    for (task, start, rounded, target), methods in cells(results).items():
        cell = [task, start, "rounded" if rounded else "exact", f"{target:g}"]
        for name in ranked(methods):
            figures = [str(figure(methods[name])) for figure in FIGURES.values()]
            found.append(",".join((*cell, name, *figures)))
    return found


def machines(results: list[Json]) -> str:
    """The processors and the version of torch that results are from."""
    found = {f"{r['machine']['cpu']}, torch {r['versions']['torch']}" for r in results}
    return "; ".join(sorted(found))


def page(results: list[Json], against: str | None = None) -> str:
    """All tables as Markdown."""
    parts = [INTRODUCTION]
    for (task, start, rounded, target), methods in cells(results).items():
        widths = "multiples of eight" if rounded else "exact"
        begun = BEGINNINGS[start]
        parts.append(f"## {task}, {begun}, {target:g} of the MACs, widths {widths}\n")
        parts.append("\n".join(rows(methods, against)) + "\n")
    return "\n".join([*parts, f"Measured on: {machines(results)}.\n"])


INTRODUCTION = """# Arena

Written by `python benchmarks/arena.py table` from `benchmarks/results/arena/`. Losses are in nats.
All methods of a table have the same recipe and the same number of steps. *cost* is the sum of the
MACs over all steps as a share of the dense run's. ± behind a mean is the standard deviation over
seeds. A difference is the mean of the differences of runs with the same seed, ± half of its 95 %
interval, with p by Student's t; below 0 in loss is better. What it is taken against is the rival
with the least validation loss, chosen before test data are looked at. Rivals are what a user can do
without guyot; neither the dense network nor the planted structure, which a user does not know, is
one.
"""
