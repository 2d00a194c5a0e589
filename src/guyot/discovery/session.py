"""`Discovery`: the one place that knows the order of things."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from guyot.core.errors import GuyotError, SequenceError
from guyot.core.inputs import Inputs
from guyot.core.locate import unwrap, wrapper_of
from guyot.core.parallel import Ranks
from guyot.core.types import KeepPlan
from guyot.costs.complexity import Cost
from guyot.costs.widths import physical_plan
from guyot.discovery.checks import (
    NO_GRADIENT,
    NO_PRICE,
    NOT_FINITE,
    check_copy,
    check_optimizer,
    check_prunable,
    check_sliceable,
    inner_optimizer,
    sgd_weight_decay,
    warn_extreme,
    warn_missed,
    warn_skipped,
)
from guyot.discovery.readings import Readings
from guyot.discovery.snapshot import checked, identity, snapshot
from guyot.discovery.surgeon import Surgeon
from guyot.gates.calibration import calibrated, most_probable
from guyot.gates.checks import check_model
from guyot.gates.gates import Gates, with_gradients
from guyot.planning.benefits import SideSums
from guyot.planning.config import Dials, DiscoveryConfig
from guyot.planning.controller import Controller
from guyot.planning.dynamics import Phase, Phases
from guyot.structures import find_structures

_COUNTERS = {
    "step": "_step",
    "skipped": "skipped",
    "settled": "_settled",
    "finished": "_finished",
    "attained": "attained",
    "polarised": "polarised",
}
"""Plain values that a checkpoint keeps."""


class Discovery(Readings):
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
    With several processes wrap the model in `DistributedDataParallel` first, and make the same
    calls in each of them.

    Args:
        model: the network; its modules get smaller in place, its parameters stay the same objects.
        example_inputs: arguments of its `forward` (a mapping: by name); dimension 0 is the batch.
        optimizer: holds the model's parameters; its state is sliced with them.
        total_steps: optimiser steps of the whole run.
        nu: nats of training loss worth paying to remove 100 % of the complexity; 0: no gates.
        target: share of the complexity to keep, in (0, 1); finds `nu` by itself.
        alpha: 1: complexity is MACs only ... 0: parameters only; or a `Cost`, also of latency.
        beta: 0: charge what each structure costs ... 1: charge whole layers only; without
            residual branches it has no effect.
        config: everything else.

    Attributes:
        model: the module that trains, without wrappers.
        original: the structures of the full network.
        attained: share of the complexity that settling kept; None before.
        polarised: share of the remaining gates at 0.95 or more just before settling rounded.
        skipped: steps whose gradients were NaN, inf or missing.

    Raises:
        MisconfiguredError: a dial out of range, inputs or optimiser that do not fit the model, too
            few steps, a target that the network cannot reach, or nothing to prune.
        UnsupportedError: the model cannot be traced.
    """

    def __init__(  # noqa: PLR0913  (the dials are the interface)
        self,
        model: nn.Module,
        example_inputs: Inputs,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        nu: float | None = None,
        target: float | None = None,
        alpha: float | Cost = 1.0,
        beta: float = 0.8,
        config: DiscoveryConfig | None = None,
    ) -> None:
        config = config or DiscoveryConfig()
        dials = Dials(nu, target, alpha, beta)
        phases = Phases(total_steps, warmup=config.warmup, discovery_end=config.discovery_end)
        self._outer = model
        check_model(model)
        self.model = unwrap(model)
        optimizer = inner_optimizer(optimizer)
        check_optimizer(self.model, optimizer)
        if nu is None or nu >= NO_PRICE:
            check_sliceable(optimizer)
        self.original = find_structures(
            self.model,
            example_inputs,
            units=config.units,
            layers=config.layers,
            ignore=config.ignore,
            freeze=config.freeze,
            tie=config.tie,
        )
        check_prunable(self.original)
        self._controller = Controller(
            self.original, dials, phases, config, sgd_weight_decay(optimizer)
        )
        self._gates: Gates | None = None
        self._source = self._controller.generator.get_state()  # before the present gates were drawn
        self._device = next(self.model.parameters()).device
        wrapper = wrapper_of(model)
        self._ranks = Ranks(None if wrapper is None else wrapper.process_group, self._device)
        self._ranks.agree("settings or model", repr(identity(self.original, self._controller)))
        self._surgeon = Surgeon(self.model, optimizer, self._controller, wrapper)
        self._record = self._surgeon.record
        self.attained: float | None = None
        self.polarised: float | None = None
        self.skipped = 0
        self._step = 0
        self._pending = 0
        self._settled = nu is not None and nu < NO_PRICE
        self._finished = False
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_optimizer),
            optimizer.register_step_post_hook(self._after_optimizer),
        ]

    def _before_optimizer(self, _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before a removal, measure what its certificate needs once gradients are there."""
        if self._gates is not None and self._step % self._controller.interval == 0:
            return with_gradients(functools.partial(self._measure, self._gates), args, kwargs)
        return None

    def _measure(self, gates: Gates) -> None:
        sums = self._sums(gates)
        norms = gates.norms(sums.sum_one, sums.count_one)
        self._controller.take_norms(*self._ranks.mean(torch.stack(norms)).cpu())

    def _after_optimizer(self, *_: object) -> None:
        self._pending += 1

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
                "it once after every optimizer.step(), with grad_scale if a GradScaler may skip it"
            )
        self._pending = 0
        if self._gates is not None:
            self._discover(self._gates, grad_scale or 1.0)
        self._step += 1
        if self._settled:
            return
        phase = self._phases.at(self._step)
        if phase is Phase.FINE_TUNE or (self._gates is not None and self._controller.decided):
            self.settle()
        elif self._gates is None and phase is Phase.DISCOVERY:
            self._controller.price()
            self._draw(self._attach())

    def _attach(self) -> Gates:
        """Put gates on the modules."""
        self._gates = Gates(self.structures, self._device)
        self._gates.attach(self.model)
        return self._gates

    def _draw(self, gates: Gates) -> None:
        self._source = self._controller.generator.get_state()
        generator = self._ranks.stream(self._controller.generator)
        gates.sampled.copy_(self._controller.sample(generator))
        gates.probable.copy_(most_probable(self._theta, self._alive, self.structures))
        gates.zero_grad()

    def _discover(self, gates: Gates, grad_scale: float) -> None:
        """Let the controller move the gates; remove what can go."""
        sums = self._sums(gates, grad_scale)
        if sums.silent or not sums.finite:
            self.skipped += 1
            warn_skipped(self.skipped, self._step, *(NO_GRADIENT if sums.silent else NOT_FINITE))
        else:
            removable = self._controller.advance(sums, self._step)
            due = self._step % self._controller.interval == 0
            if due:
                self._agree()
            if due and bool(removable.any()):
                self._controller.remove(removable)
                plan = physical_plan(self.structures, self._alive, self._controller.quanta)
                if not plan.empty:
                    self._operate(plan)
                    gates = self._attach()
        self._draw(gates)

    def _sums(self, gates: Gates, grad_scale: float = 1.0) -> SideSums:
        """Gate gradients of this step, over all ranks."""
        gradient = gates.gradient / grad_scale
        mine = SideSums.from_sample(gradient, gates.sampled, gates.predictions)
        return mine.averaged(lambda values: self._ranks.mean(values).cpu())

    def _agree(self) -> None:
        """Before anything is removed: do all ranks decide the same?"""
        where = f"the keep probabilities at step {self._step}"
        self._ranks.agree(where, str(self.removals), *self._controller.decisions)

    def _operate(self, plan: KeepPlan) -> None:
        """Take the gates off; surgery on modules, optimiser and all that gates number."""
        assert self._gates is not None
        self._gates.detach()
        self._gates = None
        if plan.empty:
            return
        try:
            self._surgeon.remove(self._step, plan)
        except GuyotError:
            self._draw(self._attach())
            raise

    def settle(self) -> None:
        """End discovery now: decide what is undecided, remove what goes, take the gates off.

        Units that are chosen to go but fill no whole quantum stay as zeros that may grow again.
        """
        if self._settled:
            return
        if self._gates is None:
            self._settled = True
            return
        self._agree()
        choice, self.polarised = self._controller.choose(), self._controller.polarised
        left = bool((self._alive & ~choice.mask).any())
        self._controller.decide(choice.mask)
        self._gates.probable.copy_(self._alive)
        self._gates.bake()
        self._operate(physical_plan(self.structures, choice.mask, self._controller.quanta))
        self._settled, self.attained = True, choice.attained
        self._controller.decide(torch.ones_like(self._alive))
        if not choice.within:
            dials, quanta = self._controller.dials, self._controller.quanta
            warn_missed(dials.target, choice.attained, quanta, left)

    @contextlib.contextmanager
    def evaluation(self, batches: Iterable[Any] | None = None) -> Generator[nn.Module]:
        """The most probable network in evaluation mode, with statistics of its own.

        During discovery BatchNorm's running statistics belong to many sampled networks. Inside
        this context they are those of the most probable network, averaged over `batches`;
        afterwards everything is as before. Outside discovery it only switches modes.

        Args:
            batches: training inputs (what the model is called with), some hundreds of samples;
                with several processes each gives some of its own, and all must call this.
        """
        total = self._ranks.sum if self._ranks.size > 1 else None
        with calibrated(self.model, None if self._gates is None else batches, total):
            yield self._outer if total is None else self.model

    def follow(self, module: nn.Module) -> None:
        """Cut a copy of the model (an exponential moving average) whenever the model is cut.

        Args:
            module: has the same parameters and buffers by name, or wraps a module that has.

        Raises:
            MisconfiguredError: it has not.
        """
        follower = unwrap(module)
        check_model(follower)
        check_copy(self.model, follower)
        self._surgeon.followers.append(follower)

    def abandon(self) -> nn.Module:
        """End the run where it is: nothing undecided is settled, no shape changes any more.

        Weights that the most probable network does not use become 0.

        Returns:
            The model, a plain `nn.Module`.
        """
        if self._gates is not None:
            self._gates.bake()
            self._gates.detach()
            self._gates = None
        self._settled = True
        return self._end()

    def _end(self) -> nn.Module:
        self._finished = True
        for hook in self._hooks:
            hook.remove()
        return self.model

    def finish(self) -> nn.Module:
        """End the run; the model, a plain `nn.Module` that needs no guyot.

        Warns:
            GuyotWarning: nothing was removed, or everything that could go.

        Raises:
            SequenceError: called twice.
        """
        if self._finished:
            raise SequenceError("finish() was called twice")
        self.settle()
        warn_extreme(
            self._controller.dials.nu,
            self._step,
            bool(self.removals),
            self.attained,
            self._controller.least,
        )
        return self._end()

    # -- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that must survive, but for the states of the model and the optimiser.

        Call it between two steps: after `step()`, before the next forward pass.

        Returns:
            Nested dicts and lists of tensors and values fit for JSON.

        Raises:
            SequenceError: the optimiser has made a step of which `step()` was not told.
        """
        if self._pending:
            raise SequenceError(
                f"state_dict() between optimizer.step() and step() of the discovery, after step "
                f"{self._step}: call it after step()"
            )
        counters = {name: getattr(self, attribute) for name, attribute in _COUNTERS.items()}
        source = None if self._gates is None else self._source
        return snapshot(self.original, self._controller, self.removals, source, counters)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was called: cut the full model down, put the gates on.

        Make the model and the discovery as for the first start, `follow` copies if there are any,
        call this, and only then load the states of model, copies, optimiser and scheduler, which
        fit the smaller network.

        Raises:
            SequenceError: this discovery has begun already.
            MisconfiguredError: the state is of another format, of another model, or of a run with
                other settings; says which. Nothing was changed then.
        """
        if self._step or self._finished or self.removals:
            raise SequenceError(
                f"load_state_dict() after step {self._step}: make model, optimiser and Discovery "
                "anew, as for the first start"
            )
        self._surgeon.repeat(checked(state, self.state_dict(), self._surgeon))
        self._controller.load_state_dict(state["controller"])
        if state["generator"] is not None:
            self._controller.generator.set_state(state["generator"].cpu())
            self._draw(self._attach())
        for name, attribute in _COUNTERS.items():
            setattr(self, attribute, state["counters"][name])
        if self._finished:
            self._end()
