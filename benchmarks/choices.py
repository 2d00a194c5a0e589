"""What defaults are chosen by: small CIFAR-10 runs, judged by training loss and held-out images.

    python benchmarks/choices.py --data-dir DIR [RUN ...]
    python benchmarks/choices.py --list

ResNet-20 in 24 epochs on images averaged down to 16x16 pixels; networks without a discovery have
no fewer MACs than the target. Each named run writes
``benchmarks/results/choices/<variant>-<target>-s<seed>.json`` when it ends; runs that are already
there are skipped. Test images are never used.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from cifar import DENSE_WIDTHS, narrowest
from runs import ROOT, Json, arguments, carry_out, cifar10, prepare, select, smaller
from torch import nn

from guyot import Discovery, DiscoveryConfig
from guyot.app.allocator import restart_with_fast_allocator
from guyot.app.data import Dataset
from guyot.app.models import count_macs, resnet
from guyot.app.training import Recipe, score, train_epoch

RESULTS = ROOT / "results" / "choices"
PIXELS = 16
IMAGE = (3, PIXELS, PIXELS)
DEPTH = 20
RECIPE = Recipe(epochs=24)


@dataclass(frozen=True)
class Variant:
    """A discovery with its settings, or without one a network of fixed structure.

    ``blocks`` are those that each stage keeps; widths follow from the target. ``beta`` None is the
    library's default.
    """

    discovery: DiscoveryConfig | None = None
    beta: float | None = None
    blocks: tuple[int, int, int] = (3, 3, 3)


VARIANTS = {
    "uniform": Variant(),
    "guyot": Variant(DiscoveryConfig()),
    "blocks-1-2-2": Variant(blocks=(1, 2, 2)),
    "blocks-1-1-3": Variant(blocks=(1, 1, 3)),
    "steps-40-70": Variant(DiscoveryConfig(warmup=0.4, discovery_end=0.7)),
    "beta-0": Variant(DiscoveryConfig(), beta=0.0),
    "beta-1": Variant(DiscoveryConfig(), beta=1.0),
    "steps-5-25": Variant(DiscoveryConfig(warmup=0.05, discovery_end=0.25)),
    "steps-5-30": Variant(DiscoveryConfig(warmup=0.05, discovery_end=0.3)),
    "taylor": Variant(DiscoveryConfig(estimator="taylor")),
}


@dataclass(frozen=True)
class Run:
    """One cell of the table. ``target`` is the share of the dense network's MACs to keep."""

    variant: str
    target: float
    seed: int

    @property
    def name(self) -> str:
        """Unique, and the stem of the result file."""
        return f"{self.variant}-{self.target:g}-s{self.seed}"


def all_runs() -> list[Run]:
    """Every run, in the order in which they are worth having."""
    targets = {0.5: tuple(VARIANTS), 0.3: ("uniform", "guyot", "beta-0", "beta-1")}
    return [
        Run(variant, target, seed)
        for seed in range(2)
        for target, variants in targets.items()
        for variant in variants
    ]


def cut(blocks: Sequence[int], seed: int, widths: Sequence[int]) -> nn.Module:
    """A CIFAR ResNet that keeps the first so many blocks of its stages."""
    torch.manual_seed(seed)
    model = resnet(DEPTH, widths=widths)
    stages = [stage[:kept] for stage, kept in zip(model.stages, blocks, strict=True)]
    model.stages = nn.Sequential(*stages)
    return model


def network(run: Run) -> nn.Module:
    """The narrowest network of the variant that has the MACs of the target, or the full one."""
    image = torch.zeros(1, *IMAGE)
    variant = VARIANTS[run.variant]
    if variant.discovery is not None:
        return cut(variant.blocks, run.seed, DENSE_WIDTHS)
    least = run.target * count_macs(resnet(DEPTH), image)
    made = partial(cut, variant.blocks, run.seed)
    return made(narrowest(made, image, least))


def train(run: Run, dataset: Dataset) -> Json:
    """Train one network to its end."""
    model = network(run).to(memory_format=torch.channels_last)
    training = prepare(model, dataset, RECIPE, run.seed)
    variant, discovery = VARIANTS[run.variant], None
    if variant.discovery is not None:
        discovery = Discovery(
            model,
            (torch.zeros(2, *IMAGE),),
            training.optimizer,
            total_steps=training.total_steps,
            target=run.target,
            config=replace(variant.discovery, seed=run.seed),
            **({} if variant.beta is None else {"beta": variant.beta}),
        )
    losses: list[float] = []
    for epoch in range(RECIPE.epochs):
        batches = training.batches.epoch(epoch)
        result = train_epoch(
            model, batches, training.optimizer, training.scheduler, RECIPE, discovery=discovery
        )
        losses.append(result.loss)
        print(f"{run.name} epoch {epoch + 1}/{RECIPE.epochs} {result}", flush=True)
    gone: list[str] | None = None
    if discovery is not None:
        discovery.finish()
        gone = discovery.structure["removed_layers"]
    return {
        "run": asdict(run),
        "recipe": asdict(RECIPE),
        "losses": losses,
        "validation_accuracy": score(model, training.held_out.epoch(0)).value,
        "macs": count_macs(model, torch.zeros(1, *IMAGE)),
        "input_shape": list(IMAGE),
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "removed_layers": gone,
    }


def main() -> None:
    """Train the runs named on the command line (default: all) that have no result yet."""
    parser = arguments(__doc__)
    options = parser.parse_args()
    todo = select(all_runs(), RESULTS, parser, options)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    carry_out(todo, RESULTS, partial(train, dataset=smaller(cifar10(options), PIXELS)))


if __name__ == "__main__":
    restart_with_fast_allocator()
    main()
