"""What structure discovery costs, and what it pays back in time.

    python benchmarks/costs.py gates
    python benchmarks/costs.py surgery
    python benchmarks/costs.py structure
    python benchmarks/costs.py training-time --data-dir DIR --epochs 6
    python benchmarks/costs.py widths

Every subcommand prints a table and writes ``benchmarks/results/costs/<name>.json``. What is
compared is measured in one process, in turns and in alternating order, and ratios are medians
of the ratios of neighbours. Besides wall-clock seconds there are CPU seconds of the process,
which other programs on the machine hardly change while torch uses one thread (``--threads 1``).
"""

import argparse
import copy
import json
import math
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import torchvision
from runs import machine
from torch import Tensor, nn

from guyot import Discovery, DiscoveryConfig
from guyot.app.allocator import restart_with_fast_allocator
from guyot.app.data import Batches, load_dataset
from guyot.app.models import build, count_macs
from guyot.app.training import Recipe, make_optimizer, make_scheduler, train_step
from guyot.core.types import KeepPlan, Structures
from guyot.costs.complexity import Complexity
from guyot.costs.quantum import POWERS, WIDTHS, decide, efficiency, measure_quantum, timing_table
from guyot.costs.timing import measure
from guyot.gates.bank import Gates
from guyot.structures import find_structures
from guyot.surgery import operate

RESULTS = Path(__file__).parent / "results" / "costs"
BATCH = {"resnet50": (32, 64)}  # images, pixels
RECIPE = Recipe()
LONG = 1000
"""Epochs, and steps of an epoch, of runs of which only the beginning is measured."""

Json = dict[str, Any]
Batch = tuple[Tensor, Tensor]


def make_model(name: str) -> nn.Module:
    """A CIFAR network, or torchvision's resnet50 with 1000 classes."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50() if name == "resnet50" else build(name)
    return model.to(memory_format=torch.channels_last).train()


def synthetic(name: str) -> Iterator[Batch]:
    """The same random batch again and again."""
    count, pixels = BATCH.get(name, (128, 32))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, pixels, pixels, generator=generator)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (count,), generator=generator)
    while True:
        yield images, labels


def example(name: str, pixels: int | None = None) -> tuple[Tensor]:
    """Example inputs for `find_structures`."""
    size = pixels or BATCH.get(name, (128, 32))[1]
    return (torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0)),)


def spread(values: list[float]) -> Json:
    """Median and quartiles."""
    low, _, high = quantiles(values, n=4) if len(values) > 1 else (values[0],) * 3
    return {"median": median(values), "quartiles": [low, high], "count": len(values)}


def now() -> tuple[float, float]:
    """Wall-clock and CPU seconds of this process."""
    return time.perf_counter(), time.process_time()


class Arm:
    """One network in training, with its own optimiser, schedule, batches, and discovery or not."""

    def __init__(
        self,
        name: str,
        batches: Iterator[Batch],
        epochs: int = LONG,
        per_epoch: int = LONG,
        config: DiscoveryConfig | None = None,
        target: float = 0.5,
    ) -> None:
        self.model = make_model(name)
        self.batches = batches
        recipe = Recipe(epochs=epochs, warmup_epochs=epochs / 30)
        self.optimizer = make_optimizer(self.model, recipe)
        self.scheduler = make_scheduler(self.optimizer, recipe, per_epoch)
        self.macs = count_macs(self.model, example(name)[0][:1])
        self.discovery: Discovery | None = None
        if config is not None:
            self.discovery = Discovery(
                self.model,
                example(name),
                self.optimizer,
                total_steps=epochs * per_epoch,
                target=target,
                config=config,
            )
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.inside: list[float] = []
        self.loss = float("nan")

    def run(self, steps: int) -> None:
        """Train, and note the seconds per step and those spent in `Discovery.step`."""
        self.model.train()
        (wall, cpu), inside = now(), 0.0
        for images, labels in islice(self.batches, steps):
            loss, _ = train_step(self.model, images, labels, RECIPE)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
            if self.discovery is not None:
                entered = time.perf_counter()
                self.discovery.step()
                inside += time.perf_counter() - entered
            self.loss = float(loss)
        end = now()
        self.seconds.append((end[0] - wall) / steps)
        self.cpu.append((end[1] - cpu) / steps)
        self.inside.append(inside / steps)


def ratios(first: list[float], second: list[float], skip: int = 1) -> Json:
    """Spread of first over second, neighbour by neighbour, without the warm-up."""
    return spread([a / b for a, b in zip(first[skip:], second[skip:], strict=True)])


def take_turns(arms: list[Arm], rounds: int, steps: int) -> None:
    """`rounds` times every arm runs `steps` steps; the order alternates."""
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else arms[::-1]:
            arm.run(steps)


def gates(options: argparse.Namespace) -> Json:
    """A training step during discovery against the plain step, at full width."""
    results: Json = {}
    print("model       plain ms  gated ms  ratio CPU ratio   step()")
    for name in options.models or ["resnet20", "resnet56", "resnet50"]:
        # The horizon of a million steps keeps every gate near its start: nothing is removed.
        config = DiscoveryConfig(warmup=0.0, patience=1.0)
        plain, gated = Arm(name, synthetic(name)), Arm(name, synthetic(name), config=config)
        take_turns([plain, gated], options.rounds + 1, options.steps)
        assert gated.discovery is not None and not gated.discovery.removals
        found = {
            "plain_ms": spread([1e3 * s for s in plain.seconds[1:]]),
            "gated_ms": spread([1e3 * s for s in gated.seconds[1:]]),
            "ratio": ratios(gated.seconds, plain.seconds),
            "cpu_ratio": ratios(gated.cpu, plain.cpu),
            "discovery_step_ms": spread([1e3 * s for s in gated.inside[1:]]),
            "gates": gated.discovery.structures.index.total,
        }
        results[name] = found
        print(
            f"{name:10} {found['plain_ms']['median']:9.1f} {found['gated_ms']['median']:9.1f} "
            f"{found['ratio']['median']:6.3f} {found['cpu_ratio']['median']:9.3f} "
            f"{found['discovery_step_ms']['median']:6.2f}ms",
            flush=True,
        )
    return results


def half_of_it(structures: Structures, quantum: int) -> KeepPlan:
    """Every second layer goes, and half of every group (whole quanta)."""
    kept = {
        number: torch.arange(max(quantum, group.size // 2 // quantum * quantum))
        for number, group in enumerate(structures.groups)
        if group.size >= 2 * quantum
    }
    return KeepPlan(kept, frozenset(range(1, len(structures.layers), 2)))


def surgery(options: argparse.Namespace) -> Json:
    """One removal of units and layers: modules and optimiser, then new polynomials and gates."""
    results: Json = {}
    print("model      surgery ms polynomials ms  gates ms")
    for name in options.models or ["resnet20", "resnet56", "resnet50"]:
        trained = Arm(name, synthetic(name))
        trained.run(1)
        structures = find_structures(trained.model, example(name))
        plan = half_of_it(structures, 8)
        times: dict[str, list[float]] = {"operate_ms": [], "complexity_ms": [], "gates_ms": []}
        for _ in range(options.rounds + 1):
            model, optimizer = copy.deepcopy((trained.model, trained.optimizer))
            moments = [time.perf_counter()]
            left = operate(model, structures, plan, [optimizer]).structures
            moments.append(time.perf_counter())
            Complexity(left)
            moments.append(time.perf_counter())
            Gates(left, torch.device("cpu")).attach(model)
            moments.append(time.perf_counter())
            for key, start, stop in zip(times, moments[:-1], moments[1:], strict=True):
                times[key].append(1e3 * (stop - start))
        found = {key: spread(values[1:]) for key, values in times.items()}
        results[name] = found | {"groups": len(plan.kept), "layers": len(plan.removed_layers)}
        operated, compiled, attached = (found[key]["median"] for key in times)
        print(f"{name:10} {operated:10.1f} {compiled:14.1f} {attached:9.1f}", flush=True)
    return results


def structure(options: argparse.Namespace) -> Json:
    """Discovery of units and layers with numerical verification."""
    results: Json = {}
    print("model      pixels  first s median s  CPU s structures")
    for name, pixels in (("resnet50", 64), ("resnet50", 224), ("resnet110", 32)):
        if options.models and name not in options.models:
            continue
        model = make_model(name)
        seconds: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            start = now()
            found = find_structures(model, example(name, pixels))
            seconds.append((now()[0] - start[0], now()[1] - start[1]))
        wall, cpu = ([pair[k] for pair in seconds] for k in range(2))
        results[f"{name}-{pixels}px"] = {
            "first_s": wall[0],
            "wall_s": spread(wall),
            "cpu_s": spread(cpu),
            "groups": len(found.groups),
            "layers": len(found.layers),
        }
        print(
            f"{name:10} {pixels:6} {wall[0]:8.2f} {median(wall):8.2f} {median(cpu):6.2f} "
            f"{len(found.groups)} groups, {len(found.layers)} layers",
            flush=True,
        )
    return results


def cifar_batches(options: argparse.Namespace, steps_per_epoch: int) -> Iterator[Batch]:
    """Augmented CIFAR-10, or synthetic batches without --data-dir."""
    if options.data_dir is None:
        return synthetic(options.model)
    dataset = load_dataset("cifar10", options.data_dir)
    batches = Batches(dataset, dataset.train, RECIPE.batch_size, augment=True)
    epochs = range(options.epochs)
    return (pair for e in epochs for pair in islice(batches.epoch(e), steps_per_epoch))


def training_time(options: argparse.Namespace) -> Json:
    """A whole guyot run against a dense one, step block by step block, and the latency after."""
    per_epoch = options.steps_per_epoch or 50_000 // RECIPE.batch_size
    total = options.epochs * per_epoch
    block = math.gcd(options.steps, total)
    quantum = measure_quantum("cpu", torch.bfloat16)
    batches = partial(cifar_batches, options, per_epoch)
    arms = {"dense": Arm(options.model, batches(), options.epochs, per_epoch)}
    for label, value in (("guyot", quantum), ("guyot-quantum1", 1)):
        arms[label] = Arm(
            options.model,
            batches(),
            options.epochs,
            per_epoch,
            DiscoveryConfig(round_to=value),
            options.target,
        )
    take_turns(list(arms.values()), total // block, block)
    dense = arms["dense"]
    results: Json = {"model": options.model, "total_steps": total, "quantum": quantum}
    print("run                time    CPU   MACs  speedup x MACs at batch 1 and 64")
    for label, arm in arms.items():
        found: Json = {
            "seconds": block * sum(arm.seconds),
            "ratio": sum(arm.seconds) / sum(dense.seconds),
            "cpu_ratio": sum(arm.cpu) / sum(dense.cpu),
            "ms_per_step": [1e3 * s for s in arm.seconds],
            "loss": arm.loss,
        }
        if arm.discovery is not None:
            model = arm.discovery.finish()
            found["macs"] = count_macs(model, example(options.model)[0][:1]) / dense.macs
            found["params"] = sum(p.numel() for p in model.parameters())
            found["removals"] = len(arm.discovery.removals)
            for batch in (1, 64):
                with torch.autocast("cpu", torch.bfloat16):
                    pair = {"dense": dense.model, "model": model}
                    timed = measure(pair, torch.randn(1, 3, 32, 32), batch)
                speedup = timed["dense"].median / timed["model"].median
                found[f"batch{batch}"] = {k: asdict(v) for k, v in timed.items()} | {
                    "share_of_promise": speedup * found["macs"]
                }
        results[label] = found
        shares = [found[f"batch{b}"]["share_of_promise"] for b in (1, 64) if "macs" in found]
        print(
            f"{label:16} {found['ratio']:6.3f} {found['cpu_ratio']:6.3f} "
            f"{found.get('macs', 1.0):6.3f}  {' '.join(f'{share:.2f}' for share in shares)}",
            flush=True,
        )
    return results


def widths(options: argparse.Namespace) -> Json:
    """The timing table behind the quantum."""
    results: Json = {}
    for dtype in (torch.bfloat16, torch.float32):
        rounds = timing_table(dtype, True, float(options.rounds))
        table = {w: spread([1e3 * t[w] for t in rounds]) for w in WIDTHS if rounds}
        name = str(dtype).removeprefix("torch.")
        results[name] = {"quantum": decide(rounds), "ms": table}
        print(f"{name}: quantum {decide(rounds)}, {len(rounds)} repetitions")
        for width, found in table.items():
            good = 1.0 if width in POWERS else median(efficiency(times, width) for times in rounds)
            print(f"  {width:3} {found['median']:8.2f} ms, efficiency {good:.2f}", flush=True)
    return results


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], Json], int, int]] = {
    "gates": (gates, 10, 10),
    "surgery": (surgery, 7, 1),
    "structure": (structure, 3, 1),
    "training-time": (training_time, 10, 10),
    "widths": (widths, 10, 1),
}
"""Function, and the default numbers of rounds and of steps per turn."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("name", choices=COMMANDS)
    parser.add_argument("--rounds", type=int, help="repetitions (widths: seconds)")
    parser.add_argument("--steps", type=int, help="training steps of one turn")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=int, default=cores, help="of torch")
    parser.add_argument("--models", nargs="*", help="only these (gates, surgery, structure)")
    parser.add_argument("--model", default="resnet56", help="of training-time")
    parser.add_argument("--target", type=float, default=0.5, help="of training-time")
    parser.add_argument("--epochs", type=int, default=6, help="of training-time")
    parser.add_argument("--steps-per-epoch", type=int, help="default: a whole epoch of CIFAR-10")
    parser.add_argument("--data-dir", help="folder with CIFAR-10's parquet files")
    parser.add_argument("--dry-run", action="store_true", help="write no result")
    options = parser.parse_args()
    _, rounds, steps = COMMANDS[options.name]
    options.rounds, options.steps = options.rounds or rounds, options.steps or steps
    return options


def main() -> None:
    """Run one benchmark and write its result."""
    options = arguments()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="nothing was removed")
    started = time.time()
    results = COMMANDS[options.name][0](options)
    versions = {"torchvision": torchvision.__version__, "guyot": version("guyot")}
    data = "CIFAR-10" if options.name == "training-time" and options.data_dir else "synthetic"
    sys.argv[1:] = [a if a != options.data_dir else "DIR" for a in sys.argv[1:]]
    record = {
        "results": results,
        "command": shlex.join(["python", "benchmarks/costs.py", *sys.argv[1:]]),
        "machine": machine() | versions | {"system": platform.system()},
        "data": data,
        "seconds": time.time() - started,
    }
    if not options.dry_run:
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{options.name}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    restart_with_fast_allocator()
    main()
