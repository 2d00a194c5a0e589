"""Every method by name: what network a run begins with and what happens while it trains."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from arena.cuts import Cut
from arena.job import FromFull, Job, Json, Run, loss_of
from arena.task import Shape, Task
from guyot import Cost, Discovery, DiscoveryConfig, rebuild, shrink
from guyot.costs.latency import LatencyTable


class Progress(Protocol):
    """A method at work in one run."""

    def before_optimizer(self) -> None:
        """After the backward pass of a step."""
        ...

    def after_step(self, loss: Callable[[], Tensor]) -> None:
        """After the optimiser's step; gradients are cleared. ``loss`` is that of its batch."""
        ...

    def finish(self) -> Json:
        """After the last step; what to keep of it."""
        ...


class Method(Protocol):
    """One way to a smaller network."""

    def network(self, task: Task, run: Run, results: Path) -> nn.Module:
        """What training begins with."""
        ...

    def begin(self, job: Job) -> Progress:
        """Called before the first step."""
        ...


class Plain:
    """Training and nothing else."""

    def before_optimizer(self) -> None:
        pass

    def after_step(self, loss: Callable[[], Tensor]) -> None:
        pass

    def finish(self) -> Json:
        return {}


@dataclass(frozen=True)
class Fixed:
    """A network of another structure, trained from scratch."""

    shape: Callable[[Task, Run], Shape]

    def network(self, task: Task, run: Run, results: Path) -> nn.Module:
        return task.make(self.shape(task, run))

    def begin(self, job: Job) -> Plain:
        return Plain()


def fit(base: Callable[[Task], Shape]) -> Fixed:
    """A base shape scaled to the target's MACs."""
    return Fixed(lambda task, run: task.fitted(base(task), run.target, run.rounded))


def planted(task: Task, _: Run) -> Shape:
    """The teacher's structure."""
    assert task.planted is not None
    return task.planted


def by_chance(task: Task, run: Run) -> Shape:
    """Every width times a factor between 1/4 and 1, drawn by the seed; then fitted."""
    generator = torch.Generator().manual_seed(50_021 + run.seed)
    factors = 4 ** -torch.rand(len(task.full), generator=generator)
    base = tuple(
        width if place in task.steady or not width else max(1, round(width * float(factor)))
        for place, (width, factor) in enumerate(zip(task.full, factors, strict=True))
    )
    return task.fitted(base, run.target, run.rounded)


@dataclass(frozen=True)
class Guyot(FromFull):
    """A discovery.

    ``settings`` of `DiscoveryConfig`, the dials ``alpha`` and ``beta``, ``loss``: whether the loop
    gives the loss by which layers are measured, and ``table``: a file of `guyot profile`, whose
    milliseconds the target is a share of.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)

    def begin(self, job: Job) -> "GuyotInProgress":
        return GuyotInProgress(self, job)


class GuyotInProgress:
    """A discovery in one run."""

    def __init__(self, method: Guyot, job: Job) -> None:
        known = {entry.name for entry in fields(DiscoveryConfig)}
        config = {key: value for key, value in method.settings.items() if key in known}
        dials = {key: value for key, value in method.settings.items() if key not in known}
        self.measured = bool(dials.pop("loss", True))
        if (table := dials.pop("table", None)) is not None:
            dials["alpha"] = Cost(latency=1, table=LatencyTable.load(table))
        quanta = job.task.quanta if job.run.rounded else 1
        config = {"round_to": quanta, "seed": job.run.seed} | config
        self.job = job
        self.discovery = Discovery(
            job.model,
            (job.example,),
            job.optimizer,
            total_steps=job.total,
            target=job.run.target,
            config=DiscoveryConfig(**config),
            **dials,
        )

    def before_optimizer(self) -> None:
        pass

    def after_step(self, loss: Callable[[], Tensor]) -> None:
        self.discovery.step(loss=loss if self.measured else None)
        self.job.macs = self.discovery.macs

    def finish(self) -> Json:
        self.discovery.finish()
        return {
            "structure": self.discovery.structure,
            "attained": self.discovery.attained,
            "polarised": self.discovery.polarised,
        }


@dataclass(frozen=True)
class Shrunk(FromFull):
    """The trained network, cut by `guyot.shrink` before the first step."""

    settings: Mapping[str, Any] = field(default_factory=lambda: {"batches": 50})

    def begin(self, job: Job) -> Plain:
        batches = list(job.measuring(self.settings["batches"]))
        shrink(
            job.model,
            (job.example,),
            batches,
            lambda model, batch: loss_of(model, *batch)[0],
            target=job.run.target,
            config=DiscoveryConfig(round_to=job.task.quanta if job.run.rounded else 1),
        )
        job.take(job.model)
        return Plain()


@dataclass(frozen=True)
class Shallower(FromFull):
    """The trained network with some of its blocks, evenly spaced, as DistilBERT begins.

    Sanh et al., arXiv:1910.01108, section 3. The depth is the one that comes closest to the MACs.
    """

    def begin(self, job: Job) -> Plain:
        task = job.task
        assert task.stack is not None
        width, depth = task.full
        wanted = job.run.target * task.full_macs
        left = min(
            range(1, depth + 1), key=lambda blocks: abs(task.macs_of((width, blocks)) - wanted)
        )
        kept = {round(place) for place in torch.linspace(0, depth - 1, left).tolist()}
        blocks: Any = job.model.get_submodule(task.stack)
        for number in sorted(set(range(depth)) - kept, reverse=True):
            del blocks[number]
        job.take(job.model)
        return Plain()


@dataclass(frozen=True)
class Rebuilt:
    """The structure that another method found with the same seed, with fresh weights."""

    source: str

    def network(self, task: Task, run: Run, results: Path) -> nn.Module:
        other = Run(run.task, run.start, self.source, run.target, run.rounded, run.seed)
        found = results / f"{other.name}.json"
        if not found.exists():
            raise FileNotFoundError(f"{run.name} needs the result of {other.name}: run it first")
        model = rebuild(
            task.make(task.full), (task.example(),), json.loads(found.read_text())["structure"]
        )
        task.fresh(model)
        return model

    def begin(self, job: Job) -> Plain:
        return Plain()


GUYOT: dict[str, Mapping[str, Any]] = {
    "guyot": {},
    "guyot-two-sided": {"estimator": "two-sided", "beta": 0.8},
    "guyot-units": {"layers": False},
    "guyot-without-loss": {"loss": False},
}
"""Settings of discoveries by name."""
ABOUT_BRANCHES = ("guyot-units", "guyot-without-loss")
"""Those that change nothing where there are no residual branches."""


def methods(task: Task, start: str, guyot: Mapping[str, Mapping[str, Any]]) -> dict[str, Method]:
    """What there is for a task, in the order in which it is worth having."""
    found: dict[str, Method] = {"dense": Fixed(lambda task, _: task.full)}
    trained = start != "scratch"
    asked = GUYOT | {"guyot-other-phases": {"trained": not trained}} | dict(guyot)
    discoveries = {
        name: Guyot(({"trained": True} if trained else {}) | dict(settings))
        for name, settings in asked.items()
        if task.branches or name not in ABOUT_BRANCHES
    }
    if trained:
        found |= discoveries | {"guyot-shrink": Shrunk()}
        if task.stack is not None:
            found["shallower"] = Shallower()
        return found | (cuts("") if task.cuttable else {})
    if task.planted is not None:
        found["planted"] = Fixed(planted)
    found["uniform"] = fit(lambda task: task.full)
    found["guyot"] = discoveries["guyot"]
    found["half-depth"] = fit(lambda task: task.half)
    if task.cuttable:
        found |= cuts("-10") | cuts("-25")
    found |= discoveries
    if not task.steady:  # a shape of width and depth leaves nothing to chance
        found["random"] = Fixed(by_chance)
    found["guyot-rebuilt"] = Rebuilt("guyot")
    for name, base in task.grid.items():
        found[f"grid-{name}"] = fit(lambda _, base=base: base)
    return found


def cuts(when: str) -> dict[str, Cut]:
    """Cuts by torch-pruning after 0, 10 or 25 % of the steps."""
    at = float(when.lstrip("-") or 0) / 100
    found: dict[str, Cut] = {}
    for importance in ("l2", "taylor", "l1", "fisher"):
        found[f"{importance}{when}"] = Cut(importance, "uniform", at)
        found[f"{importance}-global{when}"] = Cut(importance, "global", at)
    found[f"isomorphic{when}"] = Cut("taylor", "isomorphic", at)
    if at:
        found[f"group-norm{when}"] = Cut("l2", "global", at, sparse=True)
    return found


def rivals(name: str) -> bool:
    """Whether a method is something that a user would do instead of guyot."""
    return name not in ("dense", "planted") and not name.startswith("guyot")


__all__ = ["GUYOT", "Method", "Progress", "methods", "rivals"]
