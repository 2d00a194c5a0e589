"""What the benchmarks share: named runs whose results are kept, and what they train on.

A benchmark that trains has a list of runs, each with a unique name. Its command trains those that
have no result yet and writes one JSON file per run as it ends. An interrupted command
continues another day.
"""

import argparse
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from guyot.app.data import Batches, Dataset, load_dataset
from guyot.app.training import Recipe, make_optimizer, make_scheduler

ROOT = Path(__file__).parent
VALIDATION = 5_000
"""Training images of CIFAR-10 held out for choices, the same for all runs."""

Json = dict[str, Any]


class Named(Protocol):
    """A run, whose name is unique and the stem of its result file."""

    @property
    def name(self) -> str: ...


R = TypeVar("R", bound=Named)


def machine() -> Json:
    """What the timings belong to."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = lines[0].partition(":")[2].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The options that benchmarks with named runs have in common."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="*", help="names; default: every run, in order")
    parser.add_argument("--data-dir", help="folder with CIFAR-10's parquet files")
    parser.add_argument("--cache-dir", help="where decoded images are kept")
    parser.add_argument("--list", action="store_true", help="name the runs and end")
    return parser


def select(
    runs: Iterable[R], folder: Path, parser: argparse.ArgumentParser, options: argparse.Namespace
) -> list[R]:
    """The runs that were asked for and have no result; with --list, name all and end."""
    known = {run.name: run for run in runs}
    if options.list:
        for name in known:
            print(name, "done" if (folder / f"{name}.json").exists() else "open")
        sys.exit()
    if unknown := sorted(set(options.runs) - set(known)):
        parser.error(f"unknown runs {', '.join(unknown)}; --list names them")
    asked = [known[name] for name in options.runs or known]
    return [run for run in asked if not (folder / f"{run.name}.json").exists()]


def carry_out(runs: Iterable[R], folder: Path, train: Callable[[R], Json]) -> None:
    """Train one run after the other; each result is on disk before the next begins."""
    folder.mkdir(parents=True, exist_ok=True)
    program = f"benchmarks/{Path(sys.argv[0]).name}"
    for run in runs:
        started = time.time()
        result = train(run)
        result |= {
            "seconds": time.time() - started,
            "machine": machine(),
            "command": shlex.join(["python", program, run.name]),
        }
        (folder / f"{run.name}.json").write_text(json.dumps(result, indent=1) + "\n")
        found = [f"{key} {result[key]:.4f}" for key in result if key.endswith("_accuracy")]
        print(run.name, *found, flush=True)


def cifar10(options: argparse.Namespace) -> Dataset:
    """CIFAR-10 with `VALIDATION` training images held out."""
    return load_dataset("cifar10", options.data_dir, cache_dir=options.cache_dir).hold_out(
        VALIDATION
    )


def smaller(dataset: Dataset, pixels: int) -> Dataset:
    """The images averaged down to so many pixels a side."""

    def shrunk(images: Tensor) -> Tensor:
        factor = images.shape[1] // pixels
        count, _, _, channels = images.shape
        blocks = images.reshape(count, pixels, factor, pixels, factor, channels)
        means = [chunk.float().mean((2, 4)).round().byte() for chunk in blocks.split(4096)]
        return torch.cat(means)

    if dataset.train.images.shape[1] == pixels:
        return dataset
    splits = {
        name: replace(split, images=shrunk(split.images))
        for name in ("train", "test", "validation")
        if (split := getattr(dataset, name)) is not None
    }
    return replace(dataset, **splits, pad=max(1, dataset.pad * pixels // 32))


@dataclass(frozen=True)
class Training:
    """Batches, optimiser and schedule of one network."""

    batches: Batches
    held_out: Batches
    test: Batches
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    total_steps: int


def prepare(model: nn.Module, dataset: Dataset, recipe: Recipe, seed: int) -> Training:
    """What training ``model`` by ``recipe`` takes; ``seed`` orders and augments the images."""
    assert dataset.validation is not None
    batches = Batches(dataset, dataset.train, recipe.batch_size, augment=True, seed=seed)
    optimizer = make_optimizer(model, recipe)
    return Training(
        batches=batches,
        held_out=Batches(dataset, dataset.validation, 500, augment=False),
        test=Batches(dataset, dataset.test, 500, augment=False),
        optimizer=optimizer,
        scheduler=make_scheduler(optimizer, recipe, len(batches)),
        total_steps=recipe.epochs * len(batches),
    )
