"""A budget of milliseconds against a budget of MACs: accuracy and measured latency.

    python benchmarks/latency.py --data-dir DIR [RUN ...]
    python benchmarks/latency.py --compare
    python benchmarks/latency.py --list

Each named run trains one network on CIFAR-10 within a budget and writes
``benchmarks/results/latency/<model>-<cost><target>-s<seed>.json``; runs that are there are skipped.
The latency table of a model is measured once, before its first run, and stored beside them. The
runs are short, so that both of a pair fit into some minutes of one core: 5 epochs of 20,000 images,
16x16 pixels for resnet56 (averages of 2x2), 32x32 for mobilenet_v2. ``--compare`` builds the
networks of all stored runs again and times them in one process, in turns: what is compared was
measured together.
"""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from runs import ROOT, arguments, carry_out, cifar10, machine, prepare, select, smaller
from torch import Tensor, nn

from guyot import Cost, Discovery, DiscoveryConfig
from guyot.app.allocator import restart_with_fast_allocator
from guyot.app.config import RunConfig
from guyot.app.data import Dataset, load_dataset
from guyot.app.models import build, count_macs
from guyot.app.training import Recipe, score, train_epoch
from guyot.costs.latency import LatencyTable
from guyot.costs.profiling import profile
from guyot.costs.timing import clock_of, rounds
from guyot.results import rebuild

RESULTS = ROOT / "results" / "latency"
PIXELS = {"resnet56": 16, "mobilenet_v2": 32}
BATCHES = (1, 64)


@dataclass(frozen=True)
class Run:
    """One network. ``target`` is the share of the full network's MACs or latency to keep."""

    model: str
    cost: str
    target: float
    seed: int = 0
    epochs: int = 5
    batch_size: int = 128
    images: int = 20_000
    beta: float = RunConfig.beta

    @property
    def name(self) -> str:
        """Unique, and the stem of the result file."""
        beta = "" if self.beta == RunConfig.beta else f"-beta{self.beta:g}"
        return f"{self.model}-{self.cost}{self.target:g}{beta}-s{self.seed}"


def all_runs() -> list[Run]:
    """Budgets whose accuracies are expected to be near to each other, then smaller ones.

    Those of resnet56 also with beta = 0, which charges what is counted and nothing else.
    """
    budgets = [("latency", 0.6), ("macs", 0.5), ("latency", 0.65)]
    near = [(cost, target, seed) for seed in range(2) for cost, target in budgets]
    small = [("latency", 0.45, 0), ("macs", 0.3, 0)]
    found = [
        Run(model, cost, target, seed)
        for these in (near, small)
        for model in PIXELS
        for cost, target, seed in these
    ]
    return found + [Run("resnet56", cost, target, seed, beta=0.0) for cost, target, seed in near]


def network(model: str, seed: int = 0) -> nn.Module:
    """The full network."""
    torch.manual_seed(seed)
    return build(model, 10).to(memory_format=torch.channels_last)


def image(model: str, batch: int = 1) -> Tensor:
    """Inputs of the right size."""
    pixels = PIXELS[model]
    drawn = torch.randn(batch, 3, pixels, pixels)
    return drawn.contiguous(memory_format=torch.channels_last)


def table_of(model: str, folder: Path, seconds: float) -> LatencyTable:
    """The latency table of a model, measured once."""
    path = folder / f"table-{model}.json"
    if not path.exists():
        found = profile(network(model), (image(model),), seconds=seconds)
        found.table.save(path)
        assert found.cross_validation is not None
        agreement = asdict(found.cross_validation) | {
            "median_error": found.cross_validation.median_error,
            "correlation": found.cross_validation.correlation,
            "full_measured": found.measurements[0].milliseconds,
            "full_predicted": found.table.full,
            "machine": machine(),
        }
        (folder / f"agreement-{model}.json").write_text(json.dumps(agreement, indent=1) + "\n")
    return LatencyTable.load(path)


def train(run: Run, dataset: Dataset, table: LatencyTable) -> dict[str, Any]:
    """Train ``run`` to its end."""
    recipe = Recipe(epochs=run.epochs, batch_size=run.batch_size)
    model = network(run.model, run.seed)
    training = prepare(model, dataset, recipe, run.seed)
    optimizer, scheduler = training.optimizer, training.scheduler
    discovery = Discovery(
        model,
        (image(run.model, 2),),
        optimizer,
        total_steps=training.total_steps,
        target=run.target,
        alpha=Cost(latency=1, table=table) if run.cost == "latency" else 1.0,
        beta=run.beta,
        config=DiscoveryConfig(seed=run.seed),
    )
    losses: list[float] = []
    for epoch in range(recipe.epochs):
        result = train_epoch(
            model, training.batches.epoch(epoch), optimizer, scheduler, recipe, discovery=discovery
        )
        losses.append(result.loss)
        print(f"{run.name} epoch {epoch + 1}/{recipe.epochs} loss {result.loss:.4f}", flush=True)
    discovery.finish()
    return {
        "run": asdict(run),
        "recipe": asdict(recipe),
        "losses": losses,
        "validation_accuracy": score(model, training.held_out.epoch(0)).value,
        "test_accuracy": score(model, training.test.epoch(0)).value,
        "attained": discovery.attained,
        "macs_share": discovery.macs / discovery.full_macs,
        "predicted_ms": table.milliseconds(discovery.structures),
        "predicted_share": table.milliseconds(discovery.structures) / table.full,
        "removed_layers": len(discovery.structure["removed_layers"]),
        "structure": discovery.structure,
    }


def timed(models: Mapping[str, nn.Module], inputs: Tensor, seconds: float) -> dict[str, Any]:
    """Forward passes of networks in turns: milliseconds, and shares of the full network's turn.

    The times are those that the device works, as for the latency table.
    """
    steps = {name: partial(model.eval(), inputs) for name, model in models.items()}
    with torch.inference_mode():
        spans = list(rounds(steps, clock_of(inputs.device), seconds))
    taken = {name: [1000 * times[name].busy for times in spans] for name in models}

    def quartiles(values: Sequence[float]) -> list[float]:
        return statistics.quantiles(values, n=4, method="inclusive")

    return {
        name: {
            "quartiles_ms": quartiles(times),
            "quartiles_of_full": quartiles(
                [one / full for one, full in zip(times, taken["full"], strict=True)]
            ),
            "passes": len(times),
        }
        for name, times in taken.items()
    }


def compare(folder: Path, seconds: float) -> None:
    """Time the networks of all stored runs of a model together; print and store."""
    for model in PIXELS:
        stored = [json.loads(p.read_text()) for p in sorted(folder.glob(f"{model}-*-s*.json"))]
        if not stored:
            continue
        models, full = {"full": network(model)}, count_macs(network(model), image(model))
        for entry in stored:
            cut = rebuild(network(model), (image(model),), entry["structure"])
            models[Run(**entry["run"]).name] = cut.to(memory_format=torch.channels_last)
        latency = {batch: timed(models, image(model, batch), seconds) for batch in BATCHES}
        rows = {
            Run(**entry["run"]).name: {
                "test_accuracy": entry["test_accuracy"],
                "macs_share": count_macs(models[Run(**entry["run"]).name], image(model)) / full,
                "predicted_ms": entry["predicted_ms"],
            }
            for entry in stored
        }
        result = {
            "command": "python benchmarks/latency.py --compare",
            "machine": machine(),
            "input_shape": list(image(model).shape[1:]),
            "runs": rows,
            "latency": latency,
        }
        (folder / f"compare-{model}.json").write_text(json.dumps(result, indent=1) + "\n")
        whole = latency[1]["full"]["quartiles_ms"][1]
        print(f"\n{model}: full network {whole:.3f} ms at batch 1")
        print(f"{'run':<28}{'accuracy':>9}{'MACs':>7}{'predicted':>11}{'ms':>7}{'of full':>9}")
        for name, row in rows.items():
            found = latency[1][name]
            print(
                f"{name:<28}{row['test_accuracy']:>9.2%}{row['macs_share']:>7.2f}"
                f"{row['predicted_ms']:>11.3f}{found['quartiles_ms'][1]:>7.3f}"
                f"{found['quartiles_of_full'][1]:>9.3f}"
            )


def synthetic() -> Dataset:
    """A little noise in the shape of CIFAR-10, for --dry-run."""
    small = load_dataset("digits")
    images = small.train.images.repeat_interleave(4, 1).repeat_interleave(4, 2)
    images = images.expand(-1, -1, -1, 3)[:192].contiguous()
    train = replace(small.train, images=images, labels=small.train.labels[:192])
    return replace(small, train=train, test=train, mean=(0.5,) * 3, std=(0.25,) * 3, pad=4)


def main() -> None:
    """Train the runs named on the command line (default: all) that have no result yet."""
    parser = arguments(__doc__)
    parser.add_argument("--compare", action="store_true", help="time the networks of stored runs")
    parser.add_argument("--seconds", type=float, default=20.0, help="per measurement")
    parser.add_argument("--dry-run", type=Path, metavar="FOLDER", help="tiny runs on digits, there")
    options = parser.parse_args()
    folder = options.dry_run or RESULTS
    todo = select(all_runs(), folder, parser, options)
    torch.set_num_threads(1 if options.dry_run else len(os.sched_getaffinity(0)))
    if not options.compare:
        full = synthetic().hold_out(64) if options.dry_run else cifar10(options)

        def go(run: Run) -> dict[str, Any]:
            table = table_of(run.model, folder, options.seconds)
            if options.dry_run:
                run = replace(run, epochs=15, batch_size=16)
            some = torch.arange(min(run.images, len(full.train)))
            few = replace(full, train=full.train.take(some))
            return train(run, smaller(few, PIXELS[run.model]), table)

        carry_out(todo, folder, go)
    compare(folder, options.seconds)


if __name__ == "__main__":
    restart_with_fast_allocator()
    main()
