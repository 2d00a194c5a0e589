"""`shrink`: cut a network that is trained down to a target, without training it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.condition import Condition, is_whole, require
from guyot.core.errors import MisconfiguredError
from guyot.core.inputs import Inputs, check_weights, evaluation_mode
from guyot.core.torch_private import batch_norms
from guyot.core.types import Structures
from guyot.costs.complexity import Complexity, Cost
from guyot.costs.widths import physical_plan, quanta_of
from guyot.discovery.checks import prunable_structures, warn_missed
from guyot.discovery.layer_benefits import layer_benefits, untouched
from guyot.gates.bank import Gates
from guyot.gates.calibration import average_statistics
from guyot.gates.checks import check_model, check_together, check_whole
from guyot.planning.benefits import Homes, SideMeans, curvature, with_branches
from guyot.planning.candidates import SearchSpace
from guyot.planning.choice import Choice, trim
from guyot.planning.config import Dials, DiscoveryConfig
from guyot.planning.evidence import Evidence
from guyot.planning.vectors import GateValues
from guyot.surgery import operate
from guyot.surgery.record import Record, Removal

_EXACT = 8
"""Batches on which the loss without a layer is measured."""

_ROUNDS = 5
"""How often a stage may measure several layers together, each time others."""

_KEPT = {True: 0.8, False: 0.5}
"""Least share of what is left that one stage keeps, with layers and without, by default."""

_STAGES = Condition(
    lambda stages: stages is None or (is_whole(stages) and stages >= 1),
    "give how many times to cut, 1 or more, or None",
)
_LOSS = Condition(
    lambda loss: callable(loss) and not isinstance(loss, nn.Module),
    "give a function of the model and a batch that returns the mean loss",
)
_BATCHES = Condition(
    lambda batches: hasattr(batches, "__iter__") or hasattr(batches, "__getitem__"),
    "give a list of batches, or a loader",
)

BatchLoss = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True)
class ShrinkResult:
    """Say what `shrink` left.

    Attributes:
        structure: what is left, for `guyot.save` and `guyot.rebuild`, see `Discovery.structure`.
        attained: share of the complexity that is left.
        macs: MACs of one sample.
        params: parameters.
        removals: one per stage that removed something, numbered by stages from 0.
    """

    structure: dict[str, Any]
    attained: float
    macs: int
    params: int
    removals: list[Removal]


def shrink(
    model: nn.Module,
    example_inputs: Inputs,
    batches: Iterable[Any],
    loss: BatchLoss,
    *,
    target: float,
    stages: int | None = None,
    alpha: float | Cost = 1.0,
    config: DiscoveryConfig | None = None,
) -> ShrinkResult:
    """Cut a trained network down to a target. Fine-tune it afterwards with a loop of your own.

        def loss(model, batch):
            images, labels = batch
            return F.cross_entropy(model(images), labels)

        guyot.shrink(model, (images,), batches, loss, target=0.5)
        optimizer = torch.optim.SGD(model.parameters(), 0.02)

    Every stage measures what each structure contributes and removes what contributes least for
    its cost, until the stage's share of the complexity is reached; the shares fall by equal
    factors. A unit's benefit is its curvature (`guyot.planning.benefits.curvature`). A layer's is
    the rise of the loss without it, measured on the first batches. If a stage would remove several
    layers, each of them is measured again without those that go before it: alone, a layer seems to
    be worth less, because the others can stand in for it. No weight is trained.
    BatchNorm's running statistics are averaged over the batches again at the end.

    Args:
        model: a trained network; its modules get smaller in place.
        example_inputs: arguments of its `forward` (a mapping: by name); dimension 0 is the batch.
        batches: some ten to some hundred batches of training data. They are gone through more
            than once: give a list or a loader, not an iterator.
        loss: calls the model on a batch and returns the mean loss of a prediction, in nats.
        target: share of the complexity to keep, in (0, 1).
        stages: how many times to measure and cut; None: so often that every stage keeps at least
            0.8 of what is left (4 times for a target of 0.5, 11 times for 0.1), or 0.5 if no layer
            can go (once, and 4 times).
        alpha: 1: complexity is MACs only ... 0: parameters only; or a `Cost`, also of latency.
        config: its `units`, `layers`, `ignore`, `freeze`, `tie` and `round_to`; all else is about
            training.

    Warns:
        GuyotWarning: the target was missed by more than 1 %.

    Raises:
        MisconfiguredError: a setting is out of range, the batches are empty or can be gone through
            only once, the target cannot be reached, or there is nothing to prune.
        UnsupportedError: the model cannot be traced.
    """
    config = DiscoveryConfig.given(config)
    Dials(nu=None, target=target, alpha=alpha)
    require("stages", stages, _STAGES)
    require("loss", loss, _LOSS)
    require("batches", batches, _BATCHES)
    if iter(batches) is batches:
        raise MisconfiguredError(
            f"batches={type(batches).__name__} can be gone through only once: give list(batches)"
        )
    check_model(model)
    check_whole(model)
    check_together(model)
    check_weights(model)
    structures = prunable_structures(model, example_inputs, config)
    if stages is None:
        stages = math.ceil(math.log(target) / math.log(_KEPT[bool(structures.layers)]))
    if (table := Cost.of(alpha).table) is not None:
        table.check(structures)
    full, record = Complexity(structures, alpha).full, Record(structures)
    complexity, left, choice = Complexity(structures, alpha), structures, None
    for stage in range(stages):
        share = target ** ((stage + 1) / stages)
        quanta = quanta_of(left, config.round_to)
        space = SearchSpace(left, complexity, quanta)
        space.check(target)
        choice = _choice(model, left, space, batches, loss, share)
        plan = physical_plan(left, choice.mask, quanta)
        if plan.empty:
            continue
        before, shrunk = left, operate(model, left, plan)
        left = shrunk.structures
        complexity = Complexity(left, alpha, full=full)
        macs = round(float(complexity.macs(torch.ones(left.index.total))))
        record.add(stage, before, plan, shrunk, macs)
    assert choice is not None
    if not choice.within:
        warn_missed(target, choice.attained, quanta_of(left, config.round_to), left=True)
    if record.removals:
        _average_statistics(model, batches, loss)
    ones = torch.ones(left.index.total)
    return ShrinkResult(
        structure=record.structure,
        attained=float(complexity.expected(ones)),
        macs=round(float(complexity.macs(ones))),
        params=round(float(complexity.params(ones))),
        removals=record.removals,
    )


def _choice(
    model: nn.Module,
    structures: Structures,
    space: SearchSpace,
    batches: Iterable[Any],
    loss: BatchLoss,
    share: float,
) -> Choice:
    """Measure what every structure contributes, and return the network that loses least."""
    layers, price = structures.index.layer_slice, space.complexity.reference_prices()
    gates = Gates(structures, next(model.parameters()).device)
    gates.attach(model)
    try:
        with _measuring(model):
            benefit, first = _measured(model, gates, batches, loss)

            def mean() -> float:
                return sum(float(loss(model, batch)) for batch in first) / len(first)

            every = torch.arange(layers.start, layers.stop)
            benefit[every] = layer_benefits(gates, every, mean)
            choice, together = _chosen(structures, space, benefit, share), list[list[int]]()
            for _ in range(_ROUNDS):
                gone = every[~choice.mask[every]]
                if len(gone) < 2 or gone.tolist() in together:
                    break
                together.append(gone.tolist())
                gone = gone[torch.argsort(benefit[gone] / price[gone])]
                benefit[gone] = layer_benefits(gates, gone, mean, in_turn=True)
                choice = _chosen(structures, space, benefit, share)
            return choice
    finally:
        gates.detach()


def _chosen(structures: Structures, space: SearchSpace, benefit: Tensor, share: float) -> Choice:
    """Return the network of a share of the complexity that loses least."""
    price = space.complexity.reference_prices()
    theta, alive = torch.full_like(price, 0.5), torch.ones_like(price, dtype=torch.bool)
    benefit = with_branches(benefit, alive, Homes.of(structures))
    return trim(space, GateValues(theta, alive, benefit, price, price, price), share)


def _measured(
    model: nn.Module, gates: Gates, batches: Iterable[Any], loss: BatchLoss
) -> tuple[Tensor, list[Any]]:
    """Return what every unit contributes, nats, shape (gates,), and the first batches."""
    total = gates.structures.index.total
    evidence, first = Evidence(total, gates.sampled.device), []
    for batch in batches:
        first += [batch] if len(first) < _EXACT else []
        gates.zero_grad()
        _mean_of(loss(model, batch)).backward()
        evidence.add(gates.gradient, gates.sampled, gates.predictions, mean=_alone)
    if not first:
        raise MisconfiguredError("batches is empty: give some ten batches or more")
    told = evidence.take()
    if told.broken:
        raise MisconfiguredError(
            f"the loss or its gradients are NaN or infinite in {told.broken} of the "
            "batches: give a network that is trained, and batches that it was trained on"
        )
    return curvature(SideMeans.start(total).updated(told.sums, decay=0.0)), first


def _mean_of(loss: Any) -> Tensor:
    """Return a batch's loss, if it is one."""
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss
    what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
    what += " without a gradient" if isinstance(loss, Tensor) and not loss.requires_grad else ""
    raise MisconfiguredError(
        f"loss(model, batch) returned {what}: return the mean loss of the batch, one number that "
        "the model computed"
    )


def _alone(values: Tensor) -> Tensor:
    """Return the mean over one process."""
    return values


@contextlib.contextmanager
def _measuring(model: nn.Module) -> Generator[None]:
    """Let gates work and BatchNorm use the statistics of batches; else as in evaluation.

    Modes, buffers, gradients and sources of random numbers are as before afterwards.
    """
    gradients = [(p, p.grad) for p in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        with evaluation_mode(model), untouched(model):
            for module in (model, *batch_norms(model)):
                module.training = True
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient


def _average_statistics(model: nn.Module, batches: Iterable[Any], loss: BatchLoss) -> None:
    """Let the running statistics of BatchNorm be means over the batches."""
    norms = [norm for norm in batch_norms(model) if norm.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    with evaluation_mode(model):
        average_statistics(norms, batches, partial(loss, model))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
