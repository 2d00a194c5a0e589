"""Write docs/benchmarks.md from the results that are there.

python benchmarks/table.py
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

ROOT = Path(__file__).parent
PAGE = ROOT.parent / "docs" / "benchmarks.md"

INTRODUCTION = """# Benchmarks

Written by `python benchmarks/table.py` from the JSON files in `benchmarks/results/`, which hold
the command, the machine, the seed and every epoch of each run. Cells that are missing have not
been run.

## Accuracy at equal MACs

CIFAR-10 from a JPEG re-encoded copy of the images, so figures compare with each other and not
with published ones. 45,000 training images, the same recipe and number of steps for all; test
accuracy of the last epoch, on test images that were read once, after it. *uniform* is the same
architecture with all stage widths multiplied by one number, trained from scratch, at no fewer
MACs than the target. MACs are multiply-accumulates of one 3x32x32 image at physical widths.
Spread is the standard deviation over seeds; with one seed it is unknown, expect some tenths of a
point.

"""


def load(folder: str) -> list[dict[str, Any]]:
    """All results of one benchmark."""
    return [json.loads(path.read_text()) for path in sorted((ROOT / "results" / folder).glob("*"))]


def cifar() -> str:
    """One row per model, method and target."""
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for result in load("cifar"):
        run = result["run"]
        cells[run["model"], run["epochs"], run["method"], run["target"]].append(result)
    full = {
        key[0]: (found[0]["macs"], found[0]["params"])
        for key, found in cells.items()
        if key[2] == "dense"
    }
    lines = [
        "| model | epochs | method | target | MACs kept | params kept | test accuracy | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, found in sorted(cells.items(), key=lambda item: (*item[0][:2], -item[0][3], item[0])):
        model, epochs, method, target = key
        macs, params = full.get(model, (None, None))
        accuracy = [100 * result["test_accuracy"] for result in found]
        spread = f" ± {stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
        kept = [
            f"{mean(r[name] for r in found) / whole:.3f}" if whole else f"{found[0][name]:,}"
            for name, whole in (("macs", macs), ("params", params))
        ]
        goal = "" if method == "dense" else f"{target:g}"
        lines.append(
            f"| {model} | {epochs} | {method} | {goal} | {kept[0]} | {kept[1]} "
            f"| {mean(accuracy):.2f}{spread} | {len(found)} |"
        )
    machines = {f"{r['machine']['cpu']}, torch {r['machine']['torch']}" for r in load("cifar")}
    command = "python benchmarks/cifar.py --data-dir DIR"
    return "\n".join(lines) + f"\n\n`{command}`, {'; '.join(sorted(machines))}.\n"


def costs() -> str:
    """The recorded cost results, as they are."""
    parts: list[str] = []
    for result in load("costs"):
        machine = result["machine"]
        parts.append(
            f"`{result['command']}`: {machine['cpu']}, {machine['threads']} thread(s), "
            f"torch {machine['torch']}, {result['data']} data.\n\n"
            f"```json\n{json.dumps(result['results'], indent=1)}\n```\n"
        )
    return "\n## Costs\n\n" + "\n".join(parts) if parts else ""


if __name__ == "__main__":
    PAGE.write_text(INTRODUCTION + cifar() + costs())
