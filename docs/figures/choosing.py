"""Measure what the dials do on scikit-learn's digits and draw docs/figures/choosing.svg.

    python docs/figures/choosing.py [--draw]

Writes every run to choosing.json beside this file as it ends and skips what is there; `--draw`
only draws. 42 runs of a digits ResNet-14, about ten seconds each on one core.
"""

import argparse
import json
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from guyot import Discovery
from guyot.app.data import Batches, load_dataset
from guyot.app.models import digits_resnet
from guyot.app.training import Recipe, make_optimizer, make_scheduler, score, train_epoch

HERE = Path(__file__).parent
STORE = HERE / "choosing.json"
SEEDS = range(3)
DIALS: dict[str, list[dict[str, float]]] = {
    "nu": [{"nu": nu} for nu in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)],
    "alpha": [{"target": 0.5, "alpha": a} for a in (0.0, 0.25, 0.5, 1.0)],
    "beta": [{"target": 0.5, "beta": beta} for beta in (0.0, 0.5, 0.8, 1.0)],
}
RECIPE = Recipe(epochs=40, batch_size=64, bf16=False)


def run(dials: dict[str, float], seed: int) -> dict[str, Any]:
    """One training run with these dials."""
    torch.manual_seed(seed)
    data = load_dataset("digits")
    model = digits_resnet()
    batches = Batches(data, data.train, RECIPE.batch_size, augment=True, seed=seed)
    test = Batches(data, data.test, 256, augment=False)
    optimizer = make_optimizer(model, RECIPE)
    scheduler = make_scheduler(optimizer, RECIPE, len(batches))
    steps = RECIPE.epochs * len(batches)
    discovery = Discovery(model, (torch.zeros(2, 1, 8, 8),), optimizer, total_steps=steps, **dials)
    for epoch in range(RECIPE.epochs):
        train_epoch(model, batches.epoch(epoch), optimizer, scheduler, RECIPE, discovery=discovery)
    model = discovery.finish()
    return {
        "macs": discovery.macs / discovery.full_macs,
        "params": discovery.params / discovery.full_params,
        "layers": len(discovery.structures.layers) / len(discovery.original.layers),
        "error": 1 - score(model, test.epoch(0), bf16=False).value,
    }


def name(dials: dict[str, float], seed: int) -> str:
    """The key of a run in the store."""
    return ", ".join(f"{key}={value:g}" for key, value in dials.items()) + f", seed={seed}"


def draw(store: dict[str, Any]) -> None:
    """Means over the seeds as lines, the runs as dots."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "guyot"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
    titles = ("ν in nats", "α at target 0.5", "β at target 0.5")
    for axis, (dial, settings), title in zip(axes, DIALS.items(), titles, strict=True):
        x = [setting[dial] for setting in settings]
        for key, style in (("macs", "o-"), ("params", "s--"), ("layers", "^:")):
            rows = [[store[name(setting, seed)][key] for seed in SEEDS] for setting in settings]
            (line,) = axis.plot(x, [mean(row) for row in rows], style, label=f"{key} kept")
            for at, row in zip(x, rows, strict=True):
                axis.plot([at] * len(row), row, style[0], ms=3, alpha=0.4, color=line.get_color())
        errors = [mean(store[name(setting, s)]["error"] for s in SEEDS) for setting in settings]
        for at, error in zip(x, errors, strict=True):
            axis.annotate(f"{100 * error:.1f} %", (at, 1.05), ha="center", size=8)
        axis.margins(x=0.1)
        axis.set(xlabel=title, ylim=(0, 1.12))
    axes[0].set(xscale="log", ylabel="share of the full network")
    axes[0].legend(loc="lower left", fontsize=8)
    figure.suptitle("ResNet-14 on digits; above: test error", fontsize=9)
    figure.savefig(HERE / "choosing.svg", metadata={"Date": None})


def main() -> None:
    """Run what is missing, then draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="only draw what was measured")
    options = parser.parse_args()
    store: dict[str, Any] = json.loads(STORE.read_text()) if STORE.exists() else {}
    for seed, settings in product(SEEDS, DIALS.values()):
        for dials in settings:
            key = name(dials, seed)
            if key not in store and not options.draw:
                store[key] = run(dials, seed)
                STORE.write_text(json.dumps(store, indent=1) + "\n")
                print(key, store[key], flush=True)
    draw(store)


if __name__ == "__main__":
    main()
