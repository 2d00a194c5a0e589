"""`Discovery`: what happens when in a run.

Data goes down from here: the model to gates and surgery, the dials to the controller. The
controller gives back what can go, surgery what is left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from guyot.core.errors import GuyotError, MisconfiguredError, NoWeightsError, SequenceError
from guyot.core.inputs import Inputs, check_weights
from guyot.core.locate import is_compiled, unwrap, wrapper_of
from guyot.core.parallel import (
    Ranks,
    get_ready,
    group_of_shards,
    reshaped,
    reshard,
    resized,
    whole,
)
from guyot.core.types import KeepPlan, Structures
from guyot.costs.complexity import Cost
from guyot.costs.widths import physical_plan
from guyot.discovery.checks import (
    NO_PRICE,
    check_copy,
    check_measured,
    prunable_structures,
    warn_early,
    warn_extreme,
    warn_missed,
    warn_skipped,
    warn_stale,
)
from guyot.discovery.figures import Figures
from guyot.discovery.layer_benefits import Loss, OwnLoss, layer_benefits, untouched
from guyot.discovery.optimizers import Optimizers, parameters_of
from guyot.discovery.snapshot import DiscoveryState, Drawn, checked, identity, snapshot
from guyot.gates.bank import Gates, Squares
from guyot.gates.calibration import calibrated, most_probable
from guyot.gates.checks import check_as_before, check_model, check_together
from guyot.planning.benefits import SideSums
from guyot.planning.config import Dials, DiscoveryConfig
from guyot.planning.controller import Controller
from guyot.planning.dynamics import Phase, Phases
from guyot.planning.evidence import Evidence, Latest, Told
from guyot.structures import is_large
from guyot.surgery import operate
from guyot.surgery.record import Record


class Discovery(Figures):
    """Make a network find its own structure while the user's loop trains it.

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
    With several processes wrap the model in `DistributedDataParallel`, or call `fully_shard` for
    its blocks and for itself. Then make the optimiser and this, and make the same calls in each
    process.

    Args:
        model: the network; its modules get smaller in place, its parameters stay the same objects.
        example_inputs: arguments of its `forward` (a mapping: by name); dimension 0 is the batch.
        optimizer: holds the model's parameters; its state is sliced with them. Several optimisers
            that share the parameters: a list; `step()` comes once, after all of them.
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
        layout: a number that grows whenever gates or tensors of the network are replaced. A CUDA
            graph that was captured before that computes with the old ones: capture it again.

    Raises:
        MisconfiguredError: a dial is out of range, inputs or optimiser do not fit the model, there
            are too few steps, the network cannot reach the target, or there is nothing to prune.
        UnsupportedError: the model cannot be traced.
    """

    def __init__(  # noqa: PLR0913  (the dials are the interface)
        self,
        model: nn.Module,
        example_inputs: Inputs,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer],
        *,
        total_steps: int,
        nu: float | None = None,
        target: float | None = None,
        alpha: float | Cost = 1.0,
        beta: float = 0.0,
        config: DiscoveryConfig | None = None,
    ) -> None:
        config = DiscoveryConfig.given(config)
        dials = Dials(nu, target, alpha, beta)
        phases = Phases(total_steps, *config.shares(total_steps))
        with_gates = nu is None or nu >= NO_PRICE
        self._outer = model
        check_model(model)
        check_together(model)
        check_weights(model)
        self.model = unwrap(model)
        self._optimizers = Optimizers(self.model, optimizer)
        if with_gates:
            self._optimizers.check_sliceable()
        self._device = next(self.model.parameters()).device
        self._wrapper = wrapper_of(model)
        shards = group_of_shards(self.model)
        self._sharded = shards is not None
        group = shards if self._wrapper is None else self._wrapper.process_group
        self._ranks = Ranks(group, self._device)
        self.original = self._structures(example_inputs, config)
        self._controller = Controller(
            self.original, dials, phases, config, self._optimizers.sgd_weight_decay
        )
        self._gates: Gates | None = None
        self.layout = 0
        self._drawn: Drawn | None = None
        self._rows = torch.zeros(0)  # the gates of the steps until they move again
        self._ranks.agree("settings or model", repr(identity(self.original, self._controller)))
        self._record = Record(self.original)
        self._followers: list[nn.Module] = []
        self._listeners: list[Callable[[], object]] = []
        self._own_loss = OwnLoss(self.model)
        self._state = DiscoveryState(settled=not with_gates)
        self._squares: dict[torch.optim.Optimizer, Squares] = {}
        self._optimizers.watch(self._measure)

    def _structures(self, example_inputs: Inputs, config: DiscoveryConfig) -> Structures:
        """Find what can go; a large model is gathered only where it has to be."""
        if self._sharded and is_large(self.model):
            found = None
            with contextlib.suppress(NoWeightsError), whole(self.model, weights=False):
                found = prunable_structures(self.model, example_inputs, config)
            missing = self._ranks.any(found is None)
            if found is not None and not missing:
                return found
        with whole(self.model):
            return prunable_structures(self.model, example_inputs, config)

    def _measure(self, optimizer: torch.optim.Optimizer) -> None:
        """Measure, before a removal, what its certificate needs of weights and gradients."""
        if self._gates is not None and self._controller.removing(self._state.step):
            self._squares[optimizer] = self._gates.squares(parameters_of(optimizer))

    def step(self, *, grad_scale: float | None = None, loss: Loss | None = None) -> None:
        """Move the gates after an optimiser step; structures may go.

        Args:
            grad_scale: the factor by which the loss was multiplied (a `GradScaler`'s
                `get_scale()` at the time); the scaler may have skipped the optimiser's step.
            loss: runs the model on the batch of this step again and returns the mean loss, nats.
                It is called without gradients, now and then, to measure what layers earn. Without
                it layers are drawn at random and estimated, which trains worse. Models that
                return their loss, as those of transformers do, need none.

        Raises:
            SequenceError: after `finish()`, or twice for one optimiser step.
        """
        if self.finished:
            raise SequenceError("step() after finish(): make a new Discovery for another run")
        if not self._optimizers.steps and grad_scale is None:
            raise SequenceError(
                f"step() was called twice, or before optimizer.step(), at step {self._state.step}: "
                "call it once after every optimizer.step() (of all, if there are several), with "
                "grad_scale if a GradScaler may skip it"
            )
        if self._controller.config.estimator == "fisher":
            loss = loss or self._own_loss.again
        self._optimizers.steps = 0
        if self._gates is not None:
            self._discover(self._gates, grad_scale or 1.0, loss)
        elif not self._state.settled:
            check_as_before(self.model, self._sharded)
        self._change(step=self._state.step + 1)
        phase, settled = self._controller.phases.at(self._state.step), self._state.settled
        decided = self._gates is not None and self._controller.decided
        if not settled and (decided or phase is Phase.FINE_TUNE):
            self.settle()
        elif not settled and self._gates is None and phase is Phase.DISCOVERY:
            self._controller.price()
            self._attach()
        if self._gates is not None and self._drawn is None:
            self._draw(self._gates)
        for told in self._listeners:
            told()

    def zero_grad(self) -> None:
        """Forget what passes since the last `step` told the gates.

        Call it after passes that are no training: those that warm up before a CUDA graph is
        captured, and the captured one.
        """
        if self._gates is not None:
            self._gates.zero_grad()

    def _change(self, **values: Any) -> None:
        self._state = replace(self._state, **values)

    def _detach(self) -> None:
        """Take the gates off the modules."""
        assert self._gates is not None
        self._gates.detach()
        self._gates = self._drawn = None
        self.layout += 1

    def _attach(self) -> Gates:
        """Put gates on the modules."""
        get_ready(self.model)
        self._gates = Gates(self.structures, self._device)
        self._gates.attach(self.model)
        self.layout += 1
        return self._gates

    def _draw(self, gates: Gates) -> Drawn:
        """Draw the gates of all steps until they move again, and take those of the next step."""
        controller, step = self._controller, self._state.step
        first, last = controller.span(step)
        evidence = Evidence(len(gates.sampled), self._device)
        self._drawn = drawn = Drawn(controller.generator.get_state(), evidence)
        rows = controller.sample(self._ranks.stream(controller.generator), last - first + 1)
        self._rows = rows.to(self._device)
        state = controller.state
        gates.probable.copy_(most_probable(state.theta, state.alive, self.structures))
        self._take(gates, step - first)
        return drawn

    def _take(self, gates: Gates, number: int) -> None:
        """Take the gates of one of the steps that were drawn."""
        gates.sampled.copy_(self._rows[number])
        gates.zero_grad()

    def _discover(self, gates: Gates, grad_scale: float, loss: Loss | None) -> None:
        """Learn from a step; now and then let the controller move the gates."""
        assert self._drawn is not None
        gradient, step = gates.gradient / grad_scale, self._state.step
        latest = self._drawn.evidence.add(
            gradient, gates.sampled, gates.predictions, self._ranks.mean
        )
        first, last = self._controller.span(step)
        if step < last:
            self._take(gates, step + 1 - first)
            return
        check_as_before(self.model, self._sharded)
        told = self._take_evidence(first, step)
        if told.silent and self.removals and not gates.called:
            warn_stale(step)
        if told.sums.steps:
            self._decide(gates, told.sums, latest, loss)
        self._squares.clear()
        self._drawn = None

    def _take_evidence(self, first: int, last: int) -> Told:
        """Return what some steps told, and count those that told nothing."""
        assert self._drawn is not None
        told = self._drawn.evidence.take()
        warn_skipped(told, self.skipped, (first, last))
        self._change(skipped=self.skipped + told.skipped)
        return told

    def _decide(self, gates: Gates, sums: SideSums, latest: Latest, loss: Loss | None) -> None:
        """Let the controller move the gates; remove what can go."""
        self._take_norms(gates, latest)
        if loss is not None:
            self._measure_layers(gates, loss)
        controller, step = self._controller, self._state.step
        removable = controller.advance(sums, step)
        if not controller.removing(step):
            return
        self._agree()
        if bool(removable.any()):
            controller.remove(removable)
            keep = physical_plan(self.structures, controller.state.alive, controller.quanta)
            if not keep.empty:
                self._cut(keep)
                self._attach()

    def _take_norms(self, gates: Gates, latest: Latest) -> None:
        """Tell the controller the norms of what gates scale, where the optimisers' steps came."""
        if self._squares:
            norms = gates.norms([*self._squares.values()], latest.active, latest.share)
            weight, gradient = self._ranks.mean(torch.stack(norms)).cpu()
            if latest.counts:
                self._controller.take_norms(weight, gradient)

    def _measure_layers(self, gates: Gates, loss: Loss) -> None:
        """Measure what some layers earn, if it is their turn."""
        due = self._controller.layers_due(self._state.step)
        if len(due):
            with untouched(self.model):
                rises = layer_benefits(gates, due, loss)
            self._controller.take_layers(due, self._ranks.mean(rises.to(self._device)).cpu())

    def _agree(self) -> None:
        """Check, before anything is removed, that all ranks decide the same."""
        where = f"the keep probabilities at step {self._state.step}"
        self._ranks.agree(where, str(self.removals), *self._controller.decisions)

    def _cut(self, keep: KeepPlan) -> None:
        """Take the gates off and remove what the plan does not keep."""
        self._detach()
        if keep.empty:
            return
        try:
            self._remove(self._state.step, keep)
        except GuyotError:
            self._draw(self._attach())
            raise

    def _remove(self, step: int, keep: KeepPlan) -> None:
        """Cut everything down to a plan; the gates must be off.

        Raises:
            UnsupportedError: the model or the optimiser cannot be cut; nothing was changed then.
        """
        before = self.structures
        with resized(self._wrapper), reshaped(self.model):
            left = operate(self.model, before, keep, self._optimizers.each)
        for follower in self._followers:
            with reshaped(follower):
                operate(follower, before, keep)
        self.layout += 1
        self._controller.select(left.structures, left.gates)
        self._record.add(step, before, keep, left, self.macs)

    def settle(self) -> None:
        """End discovery now: decide what is undecided, remove what goes, take the gates off.

        Units that are chosen to go but fill no whole quantum stay as zeros that may grow again.

        Raises:
            SequenceError: nearly no step measured what structures are worth.
        """
        if self._state.settled:
            return
        self._own_loss.stop()
        if self._gates is None:
            self._change(settled=True)
            return
        controller = self._controller
        if self._drawn is not None:
            first, _ = controller.span(self._state.step)
            controller.learn(self._take_evidence(first, self._state.step - 1).sums)
        self._agree()
        choice, polarised = controller.choose(), controller.polarised
        left = bool((controller.state.alive & ~choice.mask).any())
        check_measured(self._state.step, self.skipped, controller.phases, removing=left)
        controller.decide(choice.mask)
        self._gates.probable.copy_(choice.mask)
        self._zero_unused(self._gates)
        self._cut(physical_plan(self.structures, choice.mask, controller.quanta))
        controller.decide(torch.ones_like(controller.state.alive))
        self._change(settled=True, attained=choice.attained, polarised=polarised)
        if is_compiled(self._outer):
            torch.compiler.reset()  # dynamo gave up on a network that changed; it is final now
        if not choice.within:
            warn_missed(controller.dials.target, choice.attained, controller.quanta, left)

    @contextlib.contextmanager
    def evaluation(self, batches: Iterable[Any] | None = None) -> Generator[nn.Module]:
        """Switch to the most probable network in evaluation mode, with statistics of its own.

        During discovery BatchNorm's running statistics belong to many sampled networks. Inside
        this context they are those of the most probable network, averaged over `batches`.
        Afterwards everything is as before. Outside discovery only the mode changes.

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
        self._followers.append(follower)

    def listen(self, told: Callable[[], object]) -> None:
        """Call a function at the end of every `step()`.

        Args:
            told: takes nothing; what it returns is ignored.
        """
        self._listeners.append(told)

    def abandon(self) -> nn.Module:
        """End the run as it is: nothing undecided is decided, no shape changes any more.

        Weights that the most probable network does not use become 0.

        Returns:
            The model, a plain `nn.Module`.
        """
        if self._gates is not None:
            self._zero_unused(self._gates)
            self._detach()
        self._change(settled=True)
        return self._end()

    def _zero_unused(self, gates: Gates) -> None:
        reshard(self.model)  # or it computes with what it gathered before
        gates.zero_unused()

    def finish(self) -> nn.Module:
        """End the run; return the model, a plain `nn.Module` that needs no guyot.

        Warns:
            GuyotWarning: nothing was removed, or everything that could go, or discovery still ran.

        Raises:
            SequenceError: it is called twice, or nearly no step measured what structures are worth.
        """
        if self.finished:
            raise SequenceError("finish() was called twice")
        controller, step, undecided = self._controller, self._state.step, self.undecided
        self.settle()
        warn_early(step, undecided, controller.phases)
        nu, removed = controller.dials.nu, bool(self.removals)
        warn_extreme(nu, step, controller.phases, removed, self.attained, controller.least)
        return self._end()

    def _end(self) -> nn.Module:
        self._change(finished=True)
        self._own_loss.stop()
        self._optimizers.forget()
        return self.model

    # -- checkpoints -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all that must survive, except the states of the model and its optimisers.

        Call it between two steps: after `step()`, before the next forward pass.

        Returns:
            Nested dicts and lists of tensors and values fit for JSON.

        Raises:
            SequenceError: the optimiser made a step and `step()` has not been called.
        """
        if self._optimizers.steps:
            raise SequenceError(
                f"state_dict() between optimizer.step() and step() of the discovery, after step "
                f"{self._state.step}: call it after step()"
            )
        return snapshot(self.original, self._controller, self.removals, self._drawn, self._state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was called: cut the full model down, put the gates on.

        Make the model and the discovery as for the first start, `follow` copies if there are any,
        call this, and only then load the states of model, copies, optimiser and scheduler, which
        fit the smaller network.

        Raises:
            SequenceError: this discovery has already begun.
            MisconfiguredError: the state is of another format, of another model, or of a run with
                other settings; says which. Nothing was changed then.
        """
        if self._state.step or self.finished or self.removals:
            raise SequenceError(
                f"load_state_dict() after step {self._state.step}: make a new model, optimiser "
                "and Discovery, as for the first start"
            )
        for removal in checked(state, self.state_dict(), self.original):
            # one by one as they were, so that tensors get the strides and modules the names again
            self._remove(removal.step, self._record.plan(self.structures, removal))
            found = self.removals[-1]
            if found != removal:
                raise MisconfiguredError(
                    f"repeating the removal of step {removal.step} left {found.macs} MACs instead "
                    f"of {removal.macs}: build the model as it was built for the run"
                )
        self._controller.load_state_dict(state["controller"])
        self._state = self._state.restored(state["counters"])
        if state["generator"] is not None:
            self._controller.generator.set_state(state["generator"].cpu())
            self._draw(self._attach()).evidence.load_state_dict(state["evidence"])
        if self.finished:
            self._end()
