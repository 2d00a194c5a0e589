"""How close estimated benefits are to exact differences of the loss, on networks that train.

    python benchmarks/benefits.py gpt2
    python benchmarks/benefits.py resnet20 --data-dir DIR

Trains the GPT-2 of the arena, or a ResNet-20 on images of 16x16 pixels, for some steps. Then it
measures for every layer, and for two units of every group, what the loss rises by without it, and
beside it what a backward pass tells: first order, Fisher per sample and per prediction, the
trapezoid and Simpson's rule along the gate. In every branch it also leaves one unit of a group,
the best one, and measures that. Writes `results/benefits/<network>.json`.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from arena.characters import Characters, definitions
from arena.real import gpt2_task
from runs import ROOT, Json, cifar10, machine, smaller
from torch import Tensor, nn
from torch.nn import functional as F

from guyot.app.data import Batches
from guyot.app.models import resnet
from guyot.app.training import Recipe, make_optimizer
from guyot.gates.bank import Gates
from guyot.gates.predictions import predictions_of
from guyot.structures import find_structures

RESULTS = ROOT / "results" / "benefits"
Batch = tuple[Tensor, Tensor]


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy per prediction, nats."""
    output = model(batch[0])
    logits = getattr(output, "logits", output)
    return F.cross_entropy(logits.flatten(0, -2), batch[1].flatten())


def made(options: argparse.Namespace) -> tuple[nn.Module, torch.optim.Optimizer, Iterator[Batch]]:
    """A network that is not trained yet, its optimiser and endless batches."""
    torch.manual_seed(0)
    if options.network == "gpt2":
        task = gpt2_task()
        model, recipe = task.make(task.full), task.recipe
        text = Characters(definitions()["train"], recipe.batch_size, 10**9)
        return model, recipe.make_optimizer(model, recipe.lr), text.epoch(0)
    model, recipe = resnet(20), Recipe(lr=0.05)
    dataset = smaller(cifar10(options), 16)
    batches = Batches(dataset, dataset.train, recipe.batch_size, augment=True, seed=0)
    endless = itertools.chain.from_iterable(map(batches.epoch, itertools.count()))
    return model, make_optimizer(model, recipe), endless


class Probe:
    """Measures single gates of a network on some batches; all other gates are on."""

    def __init__(self, model: nn.Module, gates: Gates, batches: list[Batch]) -> None:
        self._model, self._gates, self._batches = model, gates, batches
        self._full = self._losses()

    @torch.no_grad()
    def _losses(self) -> Tensor:
        return torch.stack([loss_of(self._model, batch) for batch in self._batches])

    def exact(self, gate: int) -> tuple[float, float]:
        """C(0) - C(1), nats, and its standard error over batches."""
        self._gates.sampled[gate] = 0
        rise = self._losses() - self._full
        self._gates.sampled[gate] = 1
        return float(rise.mean()), float(rise.std() / len(rise) ** 0.5)

    def last(self, units: slice, best: int, window: list[Batch], predictions: int) -> Json:
        """The best unit of a group without the others: what Fisher says, and C(0) - C(1)."""
        self._gates.sampled[units] = 0
        self._gates.sampled[best] = 1
        found = moments(self._model, self._gates, window)
        alone = self._losses()
        self._gates.sampled[best] = 0
        rise = self._losses() - alone
        self._gates.sampled[units] = 1
        return {
            "fisher": float(predictions * found[1][best] / 2 - found[0][best]),
            "exact": float(rise.mean()),
        }

    def slope(self, gate: int, t: float) -> float:
        """C'(t), nats."""
        self._gates.sampled[gate] = t
        self._gates.zero_grad()
        for batch in self._batches:
            loss_of(self._model, batch).backward()
        self._model.zero_grad()
        self._gates.sampled[gate] = 1
        return float(self._gates.gradient[gate]) / len(self._batches)


def moments(model: nn.Module, gates: Gates, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Mean and variance over batches of dC/dxi, nats, shape (gates,) each."""
    gradients: list[Tensor] = []
    for batch in batches:
        gates.zero_grad()
        loss_of(model, batch).backward()
        gradients.append(gates.gradient)
    model.zero_grad()
    every = torch.stack(gradients)
    return every.mean(0), every.var(0)


def measured(model: nn.Module, batches: Iterator[Batch], window: int, exact: int) -> Json:
    """Estimates over `window` batches and exact differences over other `exact` ones."""
    first = next(batches)[0]
    structures = find_structures(model, (first[:2],))
    gates = Gates(structures, first.device)
    gates.attach(model.train())
    seen = list(itertools.islice(batches, window))
    mean, variance = moments(model, gates, seen)
    with torch.no_grad():
        predictions = predictions_of(model(first))
    probe = Probe(model, gates, list(itertools.islice(batches, exact)))

    def row(name: str, gate: int) -> Json:
        difference, error = probe.exact(gate)
        return {
            "name": name,
            "exact": difference,
            "standard_error": error,
            "first_order": -float(mean[gate]),
            "fisher_per_sample": float(len(first) * variance[gate] / 2 - mean[gate]),
            "fisher": float(predictions * variance[gate] / 2 - mean[gate]),
        }

    index, rows, layers = structures.index, [], []
    for number, group in enumerate(structures.groups):
        where = index.units(number)
        rows += [row(group.name, gate) for gate in random.sample(range(where.start, where.stop), 2)]
    for number, layer in enumerate(structures.layers):
        gate = index.layer(number)
        ends = probe.slope(gate, 0.0), probe.slope(gate, 0.5), float(mean[gate])
        rules: dict[str, Callable[[float, float, float], float]] = {
            "trapezoid": lambda zero, _, one: -(zero + one) / 2,
            "simpson": lambda zero, half, one: -(zero + 4 * half + one) / 6,
        }
        found: Json = {name: rule(*ends) for name, rule in rules.items()}
        for inner, group in enumerate(structures.groups):
            if structures.home_of(group) == number:
                units = index.units(inner)
                best = units.start + int(variance[units].argmax())
                found |= {"last_unit": probe.last(units, best, seen[:20], predictions)}
        layers.append(row(layer.name, gate) | found)
    return {"units": rows, "layers": layers, "batch": len(first), "predictions": predictions}


def main() -> None:
    """Train, measure, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("network", choices=["gpt2", "resnet20"])
    parser.add_argument("--steps", type=int, default=200, help="of training before")
    parser.add_argument("--window", type=int, default=80, help="batches for estimates")
    parser.add_argument("--exact", type=int, default=10, help="batches for exact differences")
    parser.add_argument("--data-dir", help="folder with CIFAR-10's parquet files")
    parser.add_argument("--cache-dir", help="where decoded images are kept")
    options = parser.parse_args()
    random.seed(0)
    model, optimizer, batches = made(options)
    started, loss = time.time(), torch.zeros(())
    for batch in itertools.islice(batches, options.steps):
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    result: dict[str, Any] = measured(model, batches, options.window, options.exact)
    result |= {
        "steps": options.steps,
        "training_loss": loss.item(),
        "seconds": time.time() - started,
        "machine": machine(),
        "command": (
            f"python benchmarks/benefits.py {options.network} --steps {options.steps} "
            f"--window {options.window} --exact {options.exact}"
        ),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{options.network}.json").write_text(json.dumps(result, indent=1) + "\n")
    for layer in result["layers"]:
        print(layer)


if __name__ == "__main__":
    main()
