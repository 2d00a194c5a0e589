"""CIFAR-10: structure discovery against dense and uniformly slimmer networks.

    python benchmarks/cifar.py --data-dir DIR [RUN ...]
    python benchmarks/cifar.py --list

Each named run trains one network for a fixed number of epochs and writes
``benchmarks/results/cifar/<model>-<epochs>e-<method><target>-s<seed>.json`` when it ends; runs
that are already there are skipped. After every epoch of a dense or uniform run a checkpoint goes
to ``--scratch``, from which it continues exactly; an interrupted discovery starts again. 5,000
training images, the same for all runs, are held out for validation; the test images are read
once, after the last epoch.
"""

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from runs import ROOT, Training, arguments, carry_out, cifar10, prepare, select
from torch import Tensor, nn

from guyot import Discovery, DiscoveryConfig
from guyot.app.allocator import restart_with_fast_allocator
from guyot.app.data import Dataset
from guyot.app.models import build, count_macs, resnet
from guyot.app.training import Recipe, score, train_epoch

RESULTS = ROOT / "results" / "cifar"
DENSE_WIDTHS = (16, 32, 64)
IMAGE = (3, 32, 32)
DISCOVERIES: dict[str, DiscoveryConfig] = {
    "guyot": DiscoveryConfig(estimator="two-sided"),
    "layers-only": DiscoveryConfig(estimator="two-sided", units=False),
    "units-only": DiscoveryConfig(estimator="two-sided", layers=False),
    "straight-through": DiscoveryConfig(estimator="straight-through"),
    "exact-widths": DiscoveryConfig(estimator="two-sided", round_to=1),
    "beta0": DiscoveryConfig(estimator="two-sided"),
    "fisher": DiscoveryConfig(),
}
"""The methods with a discovery: "fisher" has today's defaults, "guyot" those of version 0.1."""
WITHOUT_BETA = ("beta0", "fisher")
"""Methods with beta = 0; the others have 0.8."""


@dataclass(frozen=True)
class Run:
    """One cell of the table. ``target`` is the share of the dense network's MACs to keep."""

    method: str
    target: float
    seed: int
    epochs: int = 24
    model: str = "resnet20"

    @property
    def name(self) -> str:
        """Unique, and the stem of the result file."""
        goal = "" if self.method == "dense" else f"{self.target:g}"
        return f"{self.model}-{self.epochs}e-{self.method}{goal}-s{self.seed}"


def all_runs() -> list[Run]:
    """Every run of the comparison, in the order in which they are worth having."""
    runs: list[Run] = []
    for seed in range(3):
        runs += [Run("dense", 1.0, seed), Run("uniform", 0.5, seed), Run("uniform", 0.3, seed)]
        runs += [Run("guyot", 0.5, seed), Run("guyot", 0.3, seed)]
    ablations = ("layers-only", "units-only", "straight-through", "beta0")
    runs += [Run(method, 0.5, 0) for method in ablations]
    runs += [Run(m, 0.5, 0, 30, "resnet56") for m in ("guyot", "uniform")]
    runs += [Run("dense", 1.0, 0, 30, "resnet56"), Run("exact-widths", 0.5, 0)]
    return runs


def narrowest(
    build: Callable[[Sequence[int]], nn.Module], image: Tensor, least: float
) -> tuple[int, ...]:
    """Stage widths ``round(m * (16, 32, 64))`` of the smallest network that has so many MACs.

    A rival is thus never smaller than what it is compared with.
    """
    tried: set[tuple[int, ...]] = set()
    for step in range(1, 257):
        widths = tuple(max(1, round(width * step / 256)) for width in DENSE_WIDTHS)
        if widths not in tried and count_macs(build(widths), image) >= least:
            return widths
        tried.add(widths)
    raise ValueError(f"least={least}: full width has fewer MACs; give a smaller target")


def uniform_widths(model: str, target: float) -> tuple[int, ...]:
    """Stage widths of the uniformly slimmer network for a share of the full one's MACs."""
    depth, image = int(model.removeprefix("resnet")), torch.zeros(1, *IMAGE)
    least = target * count_macs(resnet(depth), image)
    return narrowest(lambda widths: resnet(depth, widths=widths), image, least)


def build_model(run: Run) -> nn.Module:
    """The network of ``run`` with weights drawn from its seed."""
    torch.manual_seed(run.seed)
    if run.method == "dense" or run.method in DISCOVERIES:
        model = build(run.model)
    elif run.method == "uniform":
        depth = int(run.model.removeprefix("resnet"))
        model = resnet(depth, widths=uniform_widths(run.model, run.target))
    else:
        known = ["dense", "uniform", *DISCOVERIES]
        raise ValueError(f"method={run.method!r} is unknown; choose one of {known}")
    return model.to(memory_format=torch.channels_last)


def start_discovery(
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, total_steps: int
) -> Discovery | None:
    """The discovery of a run that has one."""
    if run.method not in DISCOVERIES:
        return None
    config = replace(DISCOVERIES[run.method], seed=run.seed)
    example = torch.zeros(2, *IMAGE)
    return Discovery(
        model,
        (example,),
        optimizer,
        total_steps=total_steps,
        target=run.target,
        config=config,
        beta=0.0 if run.method in WITHOUT_BETA else 0.8,
    )


def progress_of(discovery: Discovery | None) -> dict[str, Any]:
    """What a discovery has to say at the end of an epoch."""
    if discovery is None:
        return {}
    theta = torch.cat([values.flatten() for values in discovery.keep_probs.values()])
    left = theta[theta > 0]
    return {
        "phase": discovery.phase.value,
        "macs": discovery.macs,
        "params": discovery.params,
        "expected": discovery.expected_complexity,
        "undecided": discovery.undecided,
        "above_0.95": float((left >= 0.95).float().mean()),
        "gates": len(theta),
        "nu": discovery.nu,
    }


def validate(
    model: nn.Module, discovery: Discovery | None, training: Training, epoch: int
) -> float:
    """Validation accuracy, during discovery that of the most probable network."""
    if discovery is None:
        return score(model, training.held_out.epoch(0)).value
    inputs = [images for images, _ in itertools.islice(training.batches.epoch(epoch), 5)]
    with torch.autocast("cpu", torch.bfloat16), discovery.evaluation(inputs):
        return score(model, training.held_out.epoch(0)).value


def train(run: Run, dataset: Dataset, scratch: Path) -> dict[str, Any]:
    """Train ``run`` to its end; without a discovery, continue from a checkpoint if there is one."""
    recipe = Recipe(epochs=run.epochs)
    model = build_model(run)
    training = prepare(model, dataset, recipe, run.seed)
    optimizer, scheduler = training.optimizer, training.scheduler
    discovery = start_discovery(run, model, optimizer, training.total_steps)
    history: list[dict[str, Any]] = []
    checkpoint = scratch / f"{run.name}.pt"
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        for key, part in parts.items():
            part.load_state_dict(state[key])
        history = state["history"]
    for epoch in range(len(history), recipe.epochs):
        result = train_epoch(
            model, training.batches.epoch(epoch), optimizer, scheduler, recipe, discovery=discovery
        )
        accuracy = validate(model, discovery, training, epoch)
        history.append(asdict(result) | {"validation": accuracy} | progress_of(discovery))
        print(f"{run.name} epoch {epoch + 1}/{recipe.epochs} {history[-1]}", flush=True)
        if discovery is None:
            state = {key: part.state_dict() for key, part in parts.items()} | {"history": history}
            torch.save(state, checkpoint.with_suffix(".part"))
            checkpoint.with_suffix(".part").replace(checkpoint)
    found: dict[str, Any] = {}
    if discovery is not None:
        discovery.finish()
        found = {
            "removals": [asdict(removal) for removal in discovery.removals],
            "attained": discovery.attained,
            "polarised": discovery.polarised,
            "structure": discovery.structure,
        }
    return {
        "run": asdict(run),
        "recipe": asdict(recipe),
        "test_accuracy": score(model, training.test.epoch(0)).value,
        "validation_accuracy": history[-1]["validation"],
        "macs": count_macs(model, torch.zeros(1, *IMAGE)),
        "input_shape": list(IMAGE),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "widths": {
            name: module.out_channels
            for name, module in model.named_modules()
            if isinstance(module, nn.Conv2d)
        },
        "training_images": len(dataset.train),
        "seconds_per_epoch": sorted(e["seconds"] for e in history)[len(history) // 2],
        "epochs": history,
        **found,
    }


def main() -> None:
    """Train the runs named on the command line (default: all) that have no result yet."""
    parser = arguments(__doc__)
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path(tempfile.gettempdir()) / "guyot-bench" / "checkpoints",
        help="folder for checkpoints of unfinished runs",
    )
    options = parser.parse_args()
    todo = select(all_runs(), RESULTS, parser, options)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dataset = cifar10(options)
    options.scratch.mkdir(parents=True, exist_ok=True)
    data = "CIFAR-10, JPEG re-encoded copy" if options.data_dir else "CIFAR-10"
    carry_out(todo, RESULTS, lambda run: train(run, dataset, options.scratch) | {"data": data})


if __name__ == "__main__":
    restart_with_fast_allocator()
    main()
