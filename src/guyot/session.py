"""`Discovery`: the one place that knows the order of things."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from guyot import dynamics
from guyot.budget import Budget
from guyot.calibration import calibrated, most_probable
from guyot.complexity import Complexity
from guyot.dynamics import Phase, Phases, ZeroPatience
from guyot.errors import GuyotWarning, MisconfiguredError, SequenceError
from guyot.estimators import SideSums, estimator
from guyot.gates import Gates
from guyot.settle import Choice, choose, floor
from guyot.structure import find_structures
from guyot.surgery import masks_of, operate, unwrap
from guyot.types import KeepPlan, Structures
from guyot.widths import physical_plan, protect, quanta_of


@dataclass(frozen=True)
class DiscoveryConfig:
    """Everything that has a default good enough not to be touched.

    Attributes:
        warmup: share of the steps before gates come on.
        discovery_end: share of the steps at which what is left is settled.
        theta0: initial keep probability.
        epsilon: least probability with which either side of a gate is sampled.
        patience: share of discovery for which a probability must stay 0 before it is final.
        estimator: "two-sided", "straight-through" or "taylor".
        decay: of the estimator's running means, per sample.
        max_speed: bound of the normalised drift.
        quantum: widths come in multiples of this; one number, or by group name.
        units: gate units.
        layers: gate residual branches.
        ignore: patterns of group and layer names that must stay.
        removals: how many times during discovery structures may be removed.
        seed: of the sampled gates.
    """

    warmup: float = 0.1
    discovery_end: float = 0.6
    theta0: float = 0.9
    epsilon: float = 0.03
    patience: float = 0.05
    estimator: str = "two-sided"
    decay: float = 0.96
    max_speed: float = 2.0
    quantum: int | Mapping[str, int] = 8
    units: bool = True
    layers: bool = True
    ignore: Sequence[str] = ()
    removals: int = 40
    seed: int = 0


@dataclass(frozen=True)
class Removal:
    """One moment at which structures went for good.

    Attributes:
        step: optimiser step.
        units: group name -> indices that went, numbered as in the original network.
        layers: names of the layers that went.
        macs: MACs of one sample afterwards (physical widths).
    """

    step: int
    units: Mapping[str, tuple[int, ...]]
    layers: tuple[str, ...]
    macs: int


class Discovery:
    """Makes a network find its own structure while the user's loop trains it.

    Call `step()` once after every optimiser step and `finish()` at the end:

        discovery = guyot.Discovery(model, (images,), optimizer, total_steps=1000, target=0.5)
        for images, labels in loader:
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            discovery.step()
        model = discovery.finish()

    The loss must be a mean over samples, in nats (cross entropy is). Give either `nu` or `target`.

    Args:
        model: the network; its modules get smaller in place, its parameters stay the same objects.
        example_inputs: arguments of its `forward`; dimension 0 of each tensor is the batch.
        optimizer: holds the model's parameters; its state is sliced with them.
        total_steps: optimiser steps of the whole run.
        nu: nats of training loss worth paying to remove 100 % of the complexity; 0: no gates.
        target: share of the complexity to keep, in (0, 1); finds `nu` by itself.
        alpha: 1: complexity is MACs only ... 0: parameters only.
        beta: 0: charge what each structure costs ... 1: charge whole layers only.
        config: everything else.

    Raises:
        MisconfiguredError: a dial out of range, inputs or optimiser that do not fit the model, too
            few steps, a target that the network cannot reach, or nothing to prune.
        UnsupportedError: the model cannot be traced.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Sequence[Any],
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        nu: float | None = None,
        target: float | None = None,
        alpha: float = 1.0,
        beta: float = 0.0,
        config: DiscoveryConfig | None = None,
    ) -> None:
        self.config = config = config or DiscoveryConfig()
        if (nu is None) == (target is None):
            raise MisconfiguredError(
                f"nu={nu} and target={target}: give one of them, e.g. target=0.5 to keep half of "
                "the complexity"
            )
        if nu is not None and not nu >= 0:
            raise MisconfiguredError(
                f"nu={nu}: give the nats of training loss worth paying to remove all of the "
                "complexity, 0 or more, e.g. 0.3"
            )
        self.phases = Phases(
            total_steps, warmup=config.warmup, discovery_end=config.discovery_end
        )
        self._budget: Budget | None = None
        if target is not None:
            self._budget = Budget(target, self.phases, config.theta0, config.max_speed)
        self.nu = nu
        self._outer = model
        self.model = unwrap(model)
        self.optimizer = optimizer
        _check_optimizer(self.model, optimizer)
        self.structures = find_structures(
            self.model,
            example_inputs,
            units=config.units,
            layers=config.layers,
            ignore=config.ignore,
        )
        if not self.structures.index.total:
            raise MisconfiguredError(_nothing_to_prune(self.structures))
        self.original = self.structures
        self._alpha, self._beta = alpha, beta
        self.complexity = Complexity(self.structures, alpha, beta)
        self._full = (self.complexity.full_macs, self.complexity.full_params)
        self._quantum = config.quantum
        self._quanta = quanta_of(self.structures, config.quantum)
        if target is not None:
            least = floor(self.structures, self.complexity, self._quanta)
            if target < least:
                raise MisconfiguredError(
                    f"target={target} is below {least:.3f}, the least that the coupled groups "
                    "allow (all layers gone, one quantum of every group): choose a larger target, "
                    "a smaller quantum, or fewer ignored groups"
                )
        device = next(self.model.parameters()).device
        total = self.structures.index.total
        self.theta = torch.full((total,), config.theta0, device=device)
        self.alive = torch.ones(total, dtype=torch.bool, device=device)
        self._origin = torch.arange(total)
        self._reference = self.complexity.reference_prices().to(device)
        self._estimator = estimator(config.estimator, total, config.decay)
        steps = self.phases.discovery_steps
        self._zeros = ZeroPatience(total, max(1, round(config.patience * steps)))
        self._interval = max(1, steps // config.removals)
        self._pricing = max(1, min(10, self._interval))
        self._generator = torch.Generator(device=device).manual_seed(config.seed)
        self._gates: Gates | None = None
        self._plan: Tensor | None = None
        self._prices = self._gradient = torch.zeros(total, device=device)
        self.removals: list[Removal] = []
        self.attained: float | None = None
        self.skipped = 0
        self._step = 0
        self._pending = 0
        self._settled = nu == 0
        self._finished = False
        self._hook = optimizer.register_step_post_hook(self._optimizer_stepped)

    def _optimizer_stepped(self, *_: object) -> None:
        self._pending += 1

    # -- what it tells -----------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        """Warm-up, discovery or fine-tuning."""
        return Phase.FINE_TUNE if self._settled else self.phases.at(self._step)

    @property
    def macs(self) -> int:
        """MACs of one sample at the present physical widths."""
        return round(float(self.complexity.macs(torch.ones_like(self.theta))))

    @property
    def params(self) -> int:
        """Trainable parameters at the present physical widths."""
        return round(float(self.complexity.params(torch.ones_like(self.theta))))

    @property
    def logical_macs(self) -> int:
        """MACs of one sample if every unit that is gone were sliced away."""
        return round(float(self.complexity.macs(self.alive.to(self.theta))))

    @property
    def expected_complexity(self) -> float:
        """E[C], the expected share of the full network's complexity."""
        theta = self.theta if self._gates is not None else torch.ones_like(self.theta)
        return float(self.complexity.expected(theta))

    @property
    def keep_probs(self) -> dict[str, Tensor]:
        """Keep probabilities by group and layer name."""
        return self._by_name(self.theta)

    @property
    def prices(self) -> dict[str, Tensor]:
        """What keeping each structure costs at present, in nats, by group and layer name."""
        nu = self._budget.nu if self._budget is not None else self.nu
        return self._by_name((nu or 0.0) * self._prices)

    @property
    def benefits(self) -> dict[str, Tensor]:
        """What each structure is estimated to earn, in nats, by group and layer name."""
        return self._by_name(self._estimator.benefit(self.theta))

    @property
    def undecided(self) -> int:
        """Gates that are neither 0 nor 1."""
        if self._gates is None:
            return 0
        return int(((self.theta > 0) & (self.theta < 1) & self.alive).sum())

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        index = self.structures.index
        result = {
            group.name: flat[index.units(n)].clone()
            for n, group in enumerate(self.structures.groups)
        }
        result.update(
            {f"layer {layer.name}": flat[index.layer(n)].clone()
             for n, layer in enumerate(self.structures.layers)}
        )
        return result

    # -- what it does ------------------------------------------------------------------------

    def step(self, *, grad_scale: float | None = None) -> None:
        """Say that an optimiser step is over; gates move, structures may go.

        Args:
            grad_scale: the factor by which the loss was multiplied (a `GradScaler`'s
                `get_scale()` at the time); the scaler may have skipped the optimiser's step.

        Raises:
            SequenceError: after `finish()`, or twice for one optimiser step.
        """
        if self._finished:
            raise SequenceError("step() after finish(): make a new Discovery for another run")
        if not self._pending and grad_scale is None:
            raise SequenceError(
                f"step() was called twice, or before optimizer.step(), at step {self._step}: call "
                "it once after every optimizer.step()"
            )
        self._pending = 0
        if self._gates is not None:
            self._discover(grad_scale or 1.0)
        self._step += 1
        if self._settled:
            return
        if self._gates is None and self.phases.at(self._step) is Phase.DISCOVERY:
            self._open()
        elif self.phases.at(self._step) is Phase.FINE_TUNE or self._decided():
            self.settle()

    def _open(self) -> None:
        """Attach gates and draw the first sample."""
        self._gates = Gates(self.structures, self.theta.device)
        self._gates.attach(self.model)
        self._price()
        self._draw()

    def _price(self) -> None:
        self._gradient = self.complexity.gradient(self.theta)
        self._prices = self.complexity.prices(self.theta)

    def _draw(self) -> None:
        assert self._gates is not None
        sampled = dynamics.sample(self.theta, self.config.epsilon, self._generator)
        self._gates.sampled.copy_(sampled * self.alive)
        self._gates.probable.copy_(most_probable(self.theta, self.alive, self.structures))
        self._gates.zero_grad()

    def _discover(self, grad_scale: float) -> None:
        """One step of the method: gradients -> benefits -> keep probabilities -> removal."""
        gates = self._gates
        assert gates is not None
        sums = SideSums.from_sample(gates.gradient / grad_scale, gates.sampled)
        if not sums.finite:
            self._skip()
            return
        self._estimator.update(sums)
        benefit = self._estimator.benefit(self.theta)
        if self._step % self._pricing == 0:
            self._price()
            if self._budget is not None:
                self._budget.update(
                    self._step,
                    self.theta,
                    benefit,
                    self._prices,
                    self._reference,
                    self._gradient,
                    self.expected_complexity,
                )
        scale = nu = self.nu or 0.0
        if self._budget is not None:
            nu, scale = self._budget.nu, self._budget.scale
        price = nu * self._prices
        commitment = self.phases.commitment(self._step)
        if commitment > 0 and (self._plan is None or self._step % self._interval == 0):
            self._plan = self._choose(benefit, price).mask
        drift = dynamics.speed(
            benefit,
            price,
            scale * self._reference,
            self.config.max_speed,
            commitment,
            self._plan,
        )
        moved = dynamics.step(self.theta, drift, self.config.theta0, self.phases.horizon)
        self.theta = torch.where(self.alive, moved, 0)
        gone = self._zeros.update(self.theta, benefit, price)
        if self._step % self._interval == 0 and bool((gone & self.alive).any()):
            self._let_go(~gone & self.alive, benefit - price)
        self._draw()

    def _skip(self) -> None:
        self.skipped += 1
        if self.skipped == 1 or self.skipped % 100 == 0:
            warnings.warn(
                f"NaN or inf in the loss or its gradients at step {self._step} ({self.skipped} "
                "so far): keep probabilities are left as they were; lower the learning rate or "
                "clip gradients if this goes on",
                GuyotWarning,
                stacklevel=4,
            )
        self._draw()

    def _decided(self) -> bool:
        """Everything is 0 or 1, and what is 0 has been so for long enough."""
        if self._gates is None or self.undecided:
            return False
        if bool(((self.theta == 0) & self.alive).any()):
            return False
        if self._budget is None:
            return True
        return self.expected_complexity <= 1.01 * self._budget.target

    def _let_go(self, alive: Tensor, score: Tensor) -> None:
        """Give up structures for good; slice what whole quanta and layers allow."""
        self.alive = protect(alive, score, self.structures, self._quanta)
        self.theta = torch.where(self.alive, self.theta, 0)
        plan = physical_plan(self.structures, self.alive, self._quanta)
        if not plan.empty:
            self._operate(plan)

    def _operate(self, plan: KeepPlan) -> None:
        """Surgery on modules, optimiser and everything that is indexed by gates."""
        gated = self._gates is not None
        if self._gates is not None:
            self._gates.detach()
            self._gates = None
        before, origin = self.structures, self._origin
        kept = operate(self.model, before, plan, [self.optimizer])
        self.structures = kept.structures
        self._origin = origin[kept.gates]
        where = kept.gates.to(self.theta.device)
        self.theta, self.alive = self.theta[where], self.alive[where]
        self._plan = None if self._plan is None else self._plan[where]
        self._reference = self._reference[where]
        self._estimator.select(where)
        self._zeros.select(where)
        names = {group.name for group in self.structures.groups}
        if isinstance(self._quantum, Mapping):
            self._quantum = {k: v for k, v in self._quantum.items() if k in names}
        self._quanta = quanta_of(self.structures, self._quantum)
        self.complexity = Complexity(self.structures, self._alpha, self._beta, *self._full)
        self.removals.append(self._record(before, origin, plan))
        if gated:
            self._gates = Gates(self.structures, self.theta.device)
            self._gates.attach(self.model)
            self._price()

    def _record(self, before: Structures, origin: Tensor, plan: KeepPlan) -> Removal:
        units: dict[str, tuple[int, ...]] = {}
        numbers = {group.name: n for n, group in enumerate(self.original.groups)}
        for number, mask in enumerate(masks_of(before, plan)):
            if not bool(mask.all()):
                name = before.groups[number].name
                first = self.original.index.offsets[numbers[name]]
                gone = origin[before.index.units(number)][~mask] - first
                units[name] = tuple(gone.tolist())
        left = {layer.name for layer in self.structures.layers}
        layers = tuple(layer.name for layer in before.layers if layer.name not in left)
        return Removal(self._step, units, layers, self.macs)

    def settle(self) -> None:
        """End discovery now: round what is undecided, remove it, take the gates off."""
        if self._settled:
            return
        if self._gates is not None:
            benefit = self._estimator.benefit(self.theta)
            nu = self._budget.nu if self._budget is not None else (self.nu or 0.0)
            choice = self._choose(benefit, nu * self._prices)
            self.attained = choice.attained
            self.alive = choice.mask.to(self.alive)
            plan = physical_plan(self.structures, self.alive, self._quanta)
            self._gates.detach()
            self._gates = None
            if not plan.empty:
                self._operate(plan)
            self.alive = torch.ones_like(self.alive)
            self.theta = torch.ones_like(self.theta)
        self._settled = True

    def _choose(self, benefit: Tensor, price: Tensor) -> Choice:
        """The network that would be settled on now."""
        target = self._budget.target if self._budget is not None else None
        return choose(
            self.theta, benefit, price, self.structures, self.complexity, self._quanta, target
        )

    @contextlib.contextmanager
    def evaluation(self, batches: Iterable[Any] = ()) -> Iterator[nn.Module]:
        """The most probable network in evaluation mode, with statistics of its own.

        During discovery BatchNorm's running statistics belong to many sampled networks. Inside
        this context they are those of the most probable network, averaged over `batches`;
        afterwards everything is as before. Outside discovery it only switches modes.

        Args:
            batches: training inputs (what the model is called with), some hundreds of samples.
        """
        with calibrated(self.model, batches if self._gates is not None else ()):
            yield self._outer

    def finish(self) -> nn.Module:
        """End the run; the model, a plain `nn.Module` that needs no guyot.

        Warns:
            GuyotWarning: nothing was removed, or the target was missed by more than 1 %.
        """
        if self._finished:
            raise SequenceError("finish() was called twice")
        self.settle()
        self._finished = True
        self._hook.remove()
        if not self.removals and self.nu != 0:
            warnings.warn(
                f"nothing was removed in {self._step} steps: every structure earned its price; "
                "raise nu, or give a target",
                GuyotWarning,
                stacklevel=2,
            )
        return self.model


def _check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        raise MisconfiguredError(
            f"the optimizer does not hold {len(missing)} of the model's parameters, e.g. "
            f"{missing[0]}: build it from model.parameters() of this very model, or set "
            "requires_grad=False on what must not train"
        )


def _nothing_to_prune(structures: Structures) -> str:
    reasons = "; ".join(f"{f.name}: {f.reason}" for f in structures.frozen[:5])
    return (
        "the model has no prunable structure (no unit group and no residual branch)"
        + (f": {reasons}" if reasons else "")
        + "; a network needs at least one hidden layer between input and output"
    )


