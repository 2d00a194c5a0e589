"""Were removals right? Restore what a run removed, and measure what it would earn 200 steps later.

`python removals.py watch residual --seed 0` trains one run of the arena. It notes the keep
probability and the weights' norm of every structure, and by which condition each of them went. Then
it restores structures that went, one at a time, in the network as it was before. The gates of that
network stand still while it trains on the batches that the run saw. Afterwards the validation loss
with and without the structure says what it earns. A removal was premature if that is more than its
price. `python removals.py table` prints what was found, `python removals.py draw FILE` the paths.
"""

import argparse
import copy
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import torch
from arena.crew import Orders
from arena.job import Job, Json, Run
from arena.methods import Guyot, GuyotInProgress
from arena.tasks import task_of
from arena.training import begin
from runs import machine
from torch import Tensor
from torch.nn import functional as F

from guyot import Discovery, Removal
from guyot.core.types import Structures
from guyot.gates.bank import Gates
from guyot.gates.calibration import most_probable
from guyot.planning import dynamics
from guyot.planning.benefits import SideSums
from guyot.planning.controller import Controller
from guyot.planning.dynamics import Phase
from guyot.surgery import operate
from guyot.surgery.record import Record

RESULTS = Path(__file__).parent / "results" / "removals"
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "real_paths.svg"
STEPS = 200
"""Steps that a network with a restored structure trains."""
COUNT = 100
"""Structures that are restored."""
SAMPLES = 20_000
"""Validation samples that decide."""


@dataclass(frozen=True)
class Moment:
    """A run between two steps.

    Attributes:
        step: steps that are over.
        removals: how many there have been.
        structures: of the network.
        probable: gates of the most probable network, 0/1, shape (gates,).
        price: of every structure, nats, shape (gates,).
        names: of every structure: its group and its number in the full network, or its layer.
        model: weights and buffers.
        optimizer: state of the optimiser.
    """

    step: int
    removals: int
    structures: Structures
    probable: Tensor
    price: Tensor
    names: list[str]
    model: Mapping[str, Tensor]
    optimizer: Json


@dataclass
class Watched:
    """What a run showed.

    Attributes:
        moments: before every step that could remove something.
        paths: name -> [step, theta, norm of the weights] as they were noted.
        evidence: name -> "certified" or "observed", of what met a condition.
        doubted: what was certified while a later step raised its theta again.
    """

    moments: list[Moment] = field(default_factory=list)
    paths: dict[str, list[tuple[int, float, float]]] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)
    doubted: list[str] = field(default_factory=list)


def names_of(discovery: Discovery) -> list[str]:
    """Name every gate, in their order, by the full network's numbers."""
    kept, found = discovery.structure["units"], list[str]()
    for group in discovery.structures.groups:
        numbers = kept.get(group.name, range(group.size))
        found += [f"{group.name}:{number}" for number in numbers]
    return found + [f"layer {layer.name}" for layer in discovery.structures.layers]


def moment_of(job: Job, discovery: Discovery, controller: Controller) -> Moment:
    """Copy all that is needed to train on from here."""
    state = controller.state
    return Moment(
        step=job.step,
        removals=len(discovery.removals),
        structures=discovery.structures,
        probable=most_probable(state.theta, state.alive, discovery.structures),
        price=discovery.nu * state.prices,
        names=names_of(discovery),
        model={name: value.clone() for name, value in job.model.state_dict().items()},
        optimizer=copy.deepcopy(job.optimizer.state_dict()),
    )


def watch(discovery: Discovery, controller: Controller, weight_decay: float) -> Watched:
    """Note paths and evidence at every move of the gates from now on."""
    watched, advance, certain = Watched(), controller.advance, dict[str, float]()

    def noted(sums: SideSums, step: int) -> Tensor:
        removable = advance(sums, step)
        state, names = controller.state, names_of(discovery)
        price = controller.nu * state.prices
        known = (state.bound > 0) & state.alive
        inside = known & dynamics.certified(
            state.theta, state.norm, state.bound, price, weight_decay
        )
        for gate, name in enumerate(names):
            theta = float(state.theta[gate])
            if state.alive[gate]:
                point = (step, theta, float(state.norm[gate]))
                watched.paths.setdefault(name, []).append(point)
            if inside[gate]:
                if theta > certain.get(name, 1.0):
                    watched.doubted.append(name)
                certain[name] = theta
            if removable[gate]:
                watched.evidence[name] = "certified" if inside[gate] else "observed"
        return removable

    controller.advance = noted
    return watched


def train(job: Job) -> tuple[Discovery, Watched]:
    """Train a run from its first step to its last."""
    progress = Guyot({"trained": job.run.start != "scratch"}).begin(job)
    assert isinstance(progress, GuyotInProgress)
    discovery = progress.discovery
    controller = discovery._controller
    watched = watch(discovery, controller, job.task.recipe.weight_decay)
    for inputs, labels in batches(job):
        if discovery.phase is Phase.DISCOVERY and controller.removing(job.step):
            watched.moments.append(moment_of(job, discovery, controller))
        one_step(job, inputs, labels)
        progress.after_step(lambda: job.loss(inputs, labels))  # noqa: B023
    progress.finish()
    return discovery, watched


def batches(job: Job) -> Iterator[tuple[Tensor, Tensor]]:
    """The training batches from the job's step to its last."""
    each = job.task.recipe.epoch
    while job.step < job.total:
        epoch, skipped = divmod(job.step, each)
        yield from islice(job.batches(epoch), skipped, min(each, skipped + job.total - job.step))


def one_step(job: Job, inputs: Tensor, labels: Tensor) -> None:
    """Take a step of the optimiser."""
    job.set_rate()
    job.loss(inputs, labels).backward()
    job.optimizer.step()
    job.optimizer.zero_grad()
    job.step += 1


def restored(job: Job, moment: Moment, original: Structures, removals: list[Removal]) -> None:
    """Put a job where a run was at a moment.

    Args:
        job: of the same run, before its first step.
        original: structures of the full network.
        removals: those before the moment.
    """
    record, structures = Record(original), original
    for removal in removals:
        keep = record.plan(structures, removal)
        left = operate(job.model, structures, keep, [job.optimizer])
        record.add(removal.step, structures, keep, left, removal.macs)
        structures = left.structures
    job.model.load_state_dict(moment.model)
    job.optimizer.load_state_dict(copy.deepcopy(moment.optimizer))
    job.step = moment.step


def earned(job: Job, moment: Moment, gate: int, gone: Tensor, steps: int) -> tuple[float, float]:
    """Train with one structure restored; what it earns then and its standard error, nats.

    Args:
        job: at the moment.
        gate: of the structure.
        gone: gates of all structures that went at the moment, bool, shape (gates,).
    """
    gates = Gates(moment.structures, job.device)
    values = torch.where(gone, 0.0, moment.probable)
    values[gate] = 1
    gates.sampled.copy_(values)
    gates.probable.copy_(values)
    gates.attach(job.model)
    job.model.train()
    for inputs, labels in islice(batches(job), steps):
        one_step(job, inputs, labels)
    present = losses(job)
    gates.probable[gate] = 0
    rise = losses(job) - present
    gates.detach()
    return float(rise.mean()), float(rise.std() / len(rise) ** 0.5)


@torch.no_grad()
def losses(job: Job) -> Tensor:
    """Cross entropy of every validation sample, nats, shape (samples,)."""
    job.model.eval()
    found, count = list[Tensor](), 0
    for inputs, labels in job.data.validation.epoch(0):
        output = job.model(inputs.to(job.device))
        logits = getattr(output, "logits", output)
        found.append(F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none"))
        if (count := count + len(labels)) >= SAMPLES:
            break
    return torch.cat(found).double()


def gone_at(removal: Removal) -> set[str]:
    """Name what a removal took."""
    units = {f"{group}:{unit}" for group, taken in removal.units.items() for unit in taken}
    return units | {f"layer {name}" for name in removal.layers}


def run(orders: Orders, named: tuple[str, str, float | None, int], count: int, steps: int) -> Json:
    """Train a run, named by task, start, target and seed; restore some of what it removed."""
    name, start, target, seed = named
    task = task_of(name, orders)
    which = Run(name, start, "guyot", target or task.targets[0], False, seed)

    def fresh() -> Job:
        return begin(task, which, (orders.results, orders.weights), torch.device("cpu"))

    discovery, watched = train(fresh())
    removals, chosen = discovery.removals, list[tuple[int, Moment, str]]()
    for number, removal in enumerate(removals):
        before = [m for m in watched.moments if m.removals == number and m.step <= removal.step]
        for name in sorted(gone_at(removal)) if before else ():
            if before[-1].price[before[-1].names.index(name)] > 0:  # else it could only earn
                chosen.append((number, before[-1], name))
    drawn = random.Random(seed).sample(chosen, min(count, len(chosen)))
    found = list[Json]()
    for done, (number, moment, name) in enumerate(sorted(drawn, key=lambda each: each[0])):
        job = fresh()
        restored(job, moment, discovery.original, removals[:number])
        taken = gone_at(removals[number])
        gone = torch.tensor([other in taken for other in moment.names])
        gate = moment.names.index(name)
        benefit, error = earned(job, moment, gate, gone, steps)
        found.append(
            {
                "name": name,
                "step": removals[number].step,
                "evidence": watched.evidence.get(name, "rounded"),
                "price": float(moment.price[gate]),
                "earned": benefit,
                "error": error,
            }
        )
        print(f"{done + 1} of {len(drawn)}", json.dumps(found[-1]), flush=True)
    return {
        "run": asdict(which),
        "machine": machine(),
        "steps": steps,
        "removed": sum(len(gone_at(removal)) for removal in removals),
        "evidence": watched.evidence,
        "doubted": sorted(set(watched.doubted)),
        "nu": discovery.nu,
        "restored": found,
        "paths": some_paths(watched, names_of(discovery)),
    }


def summary(found: Json) -> str:
    """One row of the table: what went by which condition, and how many of it would have paid."""
    restored, evidence = found["restored"], list(found["evidence"].values())
    paid = [each for each in restored if each["earned"] > each["price"]]
    surely = [each for each in paid if each["earned"] - 2 * each["error"] > each["price"]]
    ratios = sorted(each["earned"] / each["price"] for each in restored)
    cells = (
        f"{found['run']['task']}, {found['run']['start']}, seed {found['run']['seed']}",
        found["removed"],
        evidence.count("certified"),
        evidence.count("observed"),
        len(restored),
        len(paid),
        len(surely),
        f"{ratios[len(ratios) // 2]:.2f}",
        f"{ratios[int(0.9 * len(ratios))]:.2f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


HEAD = """\
| run | removed | certified | observed | restored | earn more than their price | beyond two \
standard errors | median of earned / price | ninth decile |
|---|---|---|---|---|---|---|---|---|"""

SIZE, MARGIN, SHOWN = 420, 50, 20
COLOURS = {"stays": "#2f6fb5", "certified": "#b5482f", "observed": "#d99a2b", "rounded": "#777"}


def some_paths(watched: Watched, left: list[str]) -> Json:
    """Draw by lot which paths are kept: some of each fate, norms relative to the first."""
    by_fate: dict[str, list[str]] = {fate: [] for fate in COLOURS}
    for name in sorted(watched.paths):
        fate = "stays" if name in left else watched.evidence.get(name, "rounded")
        by_fate[fate].append(name)
    found: Json = {}
    for fate, names in by_fate.items():
        for name in random.Random(0).sample(names, min(SHOWN, len(names))):
            known = [point for point in watched.paths[name] if point[2] < float("inf")]
            if known and known[0][2] > 0:
                first = known[0][2]
                path = [
                    [step, round(theta, 3), round(norm / first, 3)] for step, theta, norm in known
                ]
                found[name] = {"fate": fate, "path": path}
    return found


def draw(found: Json) -> str:
    """Paths of keep probability and norm, relative to the norm at the first point, as SVG."""
    lines = list[str]()
    for each in found["paths"].values():
        colour = COLOURS[each["fate"]]
        spots = [
            (MARGIN + theta * SIZE, MARGIN + SIZE * (1 - min(1.0, norm / 2)))
            for _, theta, norm in each["path"]
        ]
        text, (x, y) = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots), spots[-1]
        lines.append(
            f'<polyline points="{text}" fill="none" stroke="{colour}" '
            f'stroke-width="1.2" stroke-opacity="0.7"/>'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>'
        )
    label = 'font-family="sans-serif" font-size="14"'
    edge, middle = MARGIN + SIZE, MARGIN + SIZE / 2
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="520" height="520">
<rect width="520" height="520" fill="white"/>
<rect x="{MARGIN}" y="{MARGIN}" width="{SIZE}" height="{SIZE}" fill="none" stroke="#555"/>
{chr(10).join(lines)}
<text x="{edge}" y="{edge + 18}" {label} text-anchor="middle">θ = 1</text>
<text x="{middle}" y="{edge + 18}" {label} text-anchor="middle">½</text>
<text x="{MARGIN - 6}" y="{middle + 5}" {label} text-anchor="end">1</text>
<text x="{MARGIN}" y="{MARGIN - 10}" {label}>‖w‖, relative to its first</text>
</svg>
"""


def main() -> None:
    """Watch a run, print what was found, or draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    watching = commands.add_parser("watch")
    watching.add_argument("task")
    watching.add_argument("--start", choices=("scratch", "checkpoint"), default="scratch")
    watching.add_argument("--seed", type=int, default=0)
    watching.add_argument("--target", type=float)
    watching.add_argument("--restore", type=int, default=COUNT)
    watching.add_argument("--steps", type=int, default=STEPS)
    watching.add_argument("--weights", type=Path, default=RESULTS / "weights")
    watching.add_argument("--data-dir")
    watching.add_argument("--cache-dir")
    commands.add_parser("table")
    drawing = commands.add_parser("draw")
    drawing.add_argument("file", type=Path)
    options = parser.parse_args()
    if options.command == "watch":
        orders = Orders(
            RESULTS, options.weights, data_dir=options.data_dir, cache_dir=options.cache_dir
        )
        torch.set_num_threads(1)
        which = (options.task, options.start, options.target, options.seed)
        found = run(orders, which, options.restore, options.steps)
        RESULTS.mkdir(parents=True, exist_ok=True)
        name = f"{options.task}-{options.start}-s{options.seed}.json"
        (RESULTS / name).write_text(json.dumps(found, indent=None) + "\n")
    elif options.command == "table":
        print(HEAD)
        for file in sorted(RESULTS.glob("*.json")):
            print(summary(json.loads(file.read_text())))
    else:
        FIGURE.write_text(draw(json.loads(options.file.read_text())), encoding="utf-8")


if __name__ == "__main__":
    main()
