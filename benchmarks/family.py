"""One run for four sizes, against one run per size, at equal total cost of training.

    python benchmarks/family.py --data-dir DIR [RUN ...]
    python benchmarks/family.py --list

ResNet-20 in four sizes on CIFAR-10 shrunk to 16x16 pixels (averages of 2x2). Every named run writes
``benchmarks/results/family/<method><target>-<epochs>e-s<seed>.json``; runs that are there are
skipped. The cost of training is counted in MACs of one image times images, over all steps:

- ``family``: `guyot.Family`, every member as long as ``epochs`` says, what they share counted once;
- ``separate``: a discovery per size;
- ``uniform``: a network with uniformly fewer channels per size.

The last two are as long as makes all four networks together as expensive as the family
(``LENGTH``). 5,000 training images, the same for all runs, are held out for choices; the test
images are read once, after the last step of a network.
"""

import itertools
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from runs import ROOT, Json, arguments, carry_out, cifar10, select, smaller
from torch import nn

from guyot import Discovery, DiscoveryConfig, Family
from guyot.app.allocator import restart_with_fast_allocator
from guyot.app.data import Batches, Dataset, load_dataset
from guyot.app.models import count_macs, resnet
from guyot.app.training import Recipe, lr_factor, make_optimizer, score, train_epoch

RESULTS = ROOT / "results" / "family"
TARGETS = (0.7, 0.5, 0.35, 0.25)
LENGTH = {"family": 1.0, "separate": 0.62, "uniform": 0.885}
"""Steps of a network, as a share of the steps of a member of the family."""
DEPTH = 20
PIXELS = 16
WIDTHS = (16, 32, 64)


@dataclass(frozen=True)
class Run:
    """A family, or one network; ``epochs`` are those of every member of the family."""

    method: str
    target: float | None = None
    seed: int = 0
    epochs: int = 4
    batch_size: int = 128

    @property
    def name(self) -> str:
        """Unique, and the stem of the result file."""
        goal = "" if self.target is None else f"{self.target:g}"
        return f"{self.method}{goal}-{self.epochs}e-s{self.seed}"

    @property
    def recipe(self) -> Recipe:
        """Half an epoch of growing learning rate, which suits short runs."""
        return Recipe(epochs=self.epochs, batch_size=self.batch_size, warmup_epochs=0.5)


def all_runs() -> list[Run]:
    """One seed after the other."""
    runs: list[Run] = []
    for seed in range(3):
        runs.append(Run("family", seed=seed))
        runs += [Run(m, target, seed) for m in ("separate", "uniform") for target in TARGETS]
    return runs


def image() -> torch.Tensor:
    """Inputs of the right size."""
    return torch.zeros(2, 3, PIXELS, PIXELS).contiguous(memory_format=torch.channels_last)


def network(seed: int, widths: tuple[int, ...] = WIDTHS) -> nn.Module:
    """A ResNet-20 with weights drawn from a seed."""
    torch.manual_seed(seed)
    return resnet(DEPTH, widths=widths).to(memory_format=torch.channels_last)


FULL_MACS = count_macs(resnet(DEPTH), image())


class Training:
    """A network, its batches and its schedule; counts what training costs.

    ``steps`` of the whole training; ``cost`` so far, MACs of one image times images.
    """

    def __init__(self, run: Run, dataset: Dataset, widths: tuple[int, ...] = WIDTHS) -> None:
        assert dataset.validation is not None
        self.run, self.model, self.cost = run, network(run.seed, widths), 0
        self.batches = Batches(dataset, dataset.train, run.batch_size, augment=True, seed=run.seed)
        self.held_out = Batches(dataset, dataset.validation, 500, augment=False)
        self.test = Batches(dataset, dataset.test, 500, augment=False)
        self.steps = round(LENGTH[run.method] * run.epochs * len(self.batches))
        self.optimizer = make_optimizer(self.model, run.recipe)
        factor = lr_factor(run.recipe, self.steps, len(self.batches))
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)

    def go(
        self,
        name: str,
        discovery: Discovery | None = None,
        start: int = 0,
        stepped: Callable[[], object] = lambda: None,
    ) -> Json:
        """Train from a step to the end; what came out."""
        length, macs = len(self.batches), count_macs(self.model, image())

        def on_step(*_: object) -> None:
            self.cost += self.run.batch_size * (discovery.macs if discovery is not None else macs)
            stepped()

        loss = math.nan
        for epoch in range(start // length, math.ceil(self.steps / length)):
            first = start - epoch * length if epoch == start // length else 0
            batches = self.batches.epoch(epoch, start=first)
            left = self.steps - epoch * length - first
            loss = train_epoch(
                self.model,
                itertools.islice(batches, left),
                self.optimizer,
                self.scheduler,
                self.run.recipe,
                discovery=discovery,
                on_step=on_step,
            ).loss
            print(f"{self.run.name} {name} epoch {epoch + 1} loss {loss:.4f}", flush=True)
        if discovery is not None:
            discovery.finish()
        return {
            "first_step": start,
            "steps": self.steps,
            "cost": self.cost,
            "loss": loss,
            "validation_accuracy": score(self.model, self.held_out.epoch(0)).value,
            "test_accuracy": score(self.model, self.test.epoch(0)).value,
            "macs": count_macs(self.model, image()),
            "params": sum(parameter.numel() for parameter in self.model.parameters()),
        }


def discovered(training: Training, target: float) -> Discovery:
    """A discovery over the whole of a training."""
    return Discovery(
        training.model,
        (image(),),
        training.optimizer,
        total_steps=training.steps,
        target=target,
        config=DiscoveryConfig(seed=training.run.seed),
    )


def members(run: Run, dataset: Dataset) -> dict[float, Json]:
    """All members of a family."""
    found: dict[float, Json] = {}
    with tempfile.TemporaryDirectory() as scratch:
        family = Family(scratch, TARGETS)
        for target in family:
            training = Training(run, dataset)
            discovery = discovered(training, target)
            member = family.member(
                target,
                training.model,
                discovery,
                optimizer=training.optimizer,
                scheduler=training.scheduler,
            )
            found[target] = training.go(f"{target:g}", discovery, member.start, member.step)
    return found


def widths_of(target: float) -> tuple[int, ...]:
    """Widths m * (16, 32, 64) of the smallest MACs that are not below a share of the full ones."""
    for step in range(1, 257):
        widths = tuple(max(1, round(width * step / 256)) for width in WIDTHS)
        if count_macs(resnet(DEPTH, widths=widths), image()) >= target * FULL_MACS:
            return widths
    raise ValueError(f"target={target}: give a share of the full MACs in (0, 1]")


def train(run: Run, dataset: Dataset) -> Json:
    """Train ``run`` to its end."""
    if run.target is None:
        found = members(run, dataset)
    elif run.method == "separate":
        training = Training(run, dataset)
        found = {run.target: training.go("", discovered(training, run.target))}
    else:
        found = {run.target: Training(run, dataset, widths_of(run.target)).go("")}
    accuracies = [member["test_accuracy"] for member in found.values()]
    return {
        "run": asdict(run),
        "recipe": asdict(run.recipe),
        "full_macs": FULL_MACS,
        "input_shape": list(image().shape[1:]),
        "cost": sum(member["cost"] for member in found.values()),
        "members": {f"{target:g}": found[target] for target in TARGETS if target in found},
        "test_accuracy": sum(accuracies) / len(accuracies),
    }


def synthetic() -> Dataset:
    """scikit-learn's digits in the shape of the images, for --dry-run."""
    small = load_dataset("digits")
    images = small.train.images.repeat_interleave(2, 1).repeat_interleave(2, 2)
    images = images.expand(-1, -1, -1, 3)[:320].contiguous()
    split = replace(small.train, images=images, labels=small.train.labels[:320])
    whole = replace(small, train=split, test=split, mean=(0.5,) * 3, std=(0.25,) * 3, pad=2)
    return whole.hold_out(64)


def main() -> None:
    """Train the runs named on the command line (default: all) that have no result yet."""
    parser = arguments(__doc__)
    parser.add_argument("--dry-run", type=Path, metavar="FOLDER", help="tiny runs on digits, there")
    options = parser.parse_args()
    folder = options.dry_run or RESULTS
    runs = select(all_runs(), folder, parser, options)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if not runs:
        return
    dataset = synthetic() if options.dry_run else smaller(cifar10(options), PIXELS)
    carry_out(
        [replace(run, batch_size=16) for run in runs] if options.dry_run else runs,
        folder,
        lambda run: train(run, dataset),
    )


if __name__ == "__main__":
    restart_with_fast_allocator()
    main()
