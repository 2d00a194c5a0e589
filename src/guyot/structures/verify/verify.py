"""Check found structures numerically: masked == sliced, in the graph and in the user's module.

All checks run in float64 on a copy whose parameters and buffers are perturbed, so that nothing
is hidden behind a weight that happens to be zero (a zero-initialised last BatchNorm, a small
LayerScale). Many are tried at once; only if that fails are they halved until every culprit is
found. A model that has no float64 is checked in float32: there a difference has to be explained by
rounding, and every structure has to move an output by much more than that.
"""

from __future__ import annotations

import contextlib
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations, count, pairwise
from math import comb
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.axis import best, groups_in
from guyot.core.errors import UnsupportedError, first_line
from guyot.core.inputs import (
    Inputs,
    call_model,
    changed,
    copied,
    evaluation_mode,
    sharing_copy,
    tensors_of,
)
from guyot.core.locate import named_tensors, tensor_at
from guyot.core.randomness import isolated, seed_all
from guyot.core.types import KeepPlan, Structures
from guyot.structures.branches import Branch
from guyot.structures.inference import Inference
from guyot.structures.trace import Trace
from guyot.structures.verify import rounding
from guyot.structures.verify.autocast import Types, other_types, types_seen
from guyot.structures.verify.behaviour import (
    TRAINING_TOLERANCE,
    Behaviour,
    agree,
    disagreement,
    observe,
)
from guyot.structures.verify.double import double_precision, may_narrow
from guyot.structures.verify.drawn import drawn
from guyot.structures.verify.replay import Replay, as_double
from guyot.surgery import operate
from guyot.surgery.plan import removed_tensors

CUT_TOLERANCE = 1e-8
DRAWS = 6
"""How often inputs are drawn until an output reacts to every structure."""

SILENT = "no output reacts to it, whatever the inputs"
FAINT = (
    "the model does not run in float64, and in float32 no output reacts to it by more than rounding"
)

Suspect = tuple[str, int]
"""("group" or "layer", its number)."""

_LONGEST = 160
"""Characters of an error that a reason quotes."""


class Verifier:
    """Holds the perturbed copy and compares the three ways to leave structures out.

    Args:
        model: the network.
        example_inputs: its arguments.
        trace: its graph in evaluation mode.
        training: that in training mode, where this has more.
        narrow: the model is a narrower one than that of the graph.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        trace: Trace,
        training: Trace | None = None,
        *,
        narrow: bool = False,
    ) -> None:
        self.trace, self._narrow = trace, narrow
        self.precision: Callable[[], contextlib.AbstractContextManager[Any]] = (
            contextlib.nullcontext
        )
        self._single = False
        self._types: Types | None = None
        self._tolerance, self._in_training_tolerance = CUT_TOLERANCE, TRAINING_TOLERANCE
        self._hold(_perturbed(model), changed(example_inputs, as_double))
        if may_narrow(trace.graph) or not self._runs(self.model, _forward):
            self.precision = double_precision  # looking at every operator doubles the time
            if not self._runs(self.model, _forward):
                self._hold_single()
        self._training = training if training and self._trains() else None

    def _hold(self, model: nn.Module, given: Inputs) -> None:
        """Check a model on inputs near the given ones."""
        self.model, self.given = model, given
        self.inputs = drawn(model, given, self.trace, seed=0)
        if not self._runs(model, _finite):
            self.inputs = given  # their values mean something: positions, times

    def _hold_single(self) -> None:
        """Check in float32 what has no float64, if it runs there."""
        double, given, precision = self.model, self.given, self.precision
        self.precision = contextlib.nullcontext
        self._hold(copied(double).float(), changed(given, _as_single))
        if not self._runs(self.model, _forward):
            self.precision = precision
            self._hold(double, given)
            return
        self._single = True
        tolerance = rounding.tolerance_of(self._outputs, list[Tensor])
        self._tolerance = CUT_TOLERANCE if tolerance is None else tolerance
        found = rounding.tolerance_of(lambda: self._observed(sharing_copy(self.model)), _shown)
        self._in_training_tolerance = TRAINING_TOLERANCE if found is None else found

    def as_in_graph(self, inference: Inference) -> bool:
        """Say whether the model's own forward computes what the graph says, on several inputs."""
        replay = self._replay(inference)
        for inputs in (self.given, self.inputs):
            with isolated(), torch.no_grad(), self.precision(), _quiet():
                try:
                    own = tensors_of(
                        call_model(copied(self.model).eval(), changed(inputs, Tensor.clone))
                    )
                    graph = replay.on(inputs).masked(KeepPlan())
                except Exception:  # noqa: BLE001  (whatever a user's forward raises)
                    return False
            if not agree(own, graph, self._tolerance):
                return False
        return True

    def bad_groups(
        self, inference: Inference, retryable: Callable[[int], bool] = lambda _: False
    ) -> dict[int, str]:
        """Groups that must not be touched: number -> reason.

        They are tried with all layers in place, since a branch that is gone computes nothing: all
        at once, and so that of any two which meet in a tensor each is cut without the other
        (`C // num_heads` is right again when both lose a third).

        Args:
            inference: what was found.
            retryable: tells whether another way is known for a group; the search ends at the
                first such.
        """
        self.structures = inference.structures
        self.replay = self._replay(inference)
        self.training_replay = self._in_training(inference)
        groups = [("group", n) for n in range(len(self.structures.groups))]
        parts = [[groups[n] for n in part] for part in groups_apart(self.structures)]
        found = self._culprits([(part, []) for part in (groups, *parts)], retryable)
        return {number: reason for (_, number), reason in (found or self._silent(groups)).items()}

    def bad_layers(self, inference: Inference, branches: Sequence[Branch]) -> dict[int, str]:
        """Layers that must not be touched: number -> reason.

        Those some of whose tensors would stay come first: no forward pass need show them. Then all
        are tried at once with all groups cut, which have passed, and so that each is tried where
        its neighbours stay and those around it, since a layer that goes hides those inside. The
        latter also where nothing is cut: a `forward` may go another way then (as the fast path of
        `nn.TransformerEncoderLayer`).
        """
        self.structures = inference.structures
        self.replay = self._replay(inference, branches)
        self.training_replay = self._in_training(inference)
        groups = [("group", n) for n in range(len(self.structures.groups))]
        layers = [("layer", n) for n in range(len(self.structures.layers))]
        if partly_gone := self._partly_gone():
            return partly_gone
        parts = [[layers[n] for n in part] for part in layers_apart(self.structures)]
        sounds = (groups, []) if groups else ([],)
        trials = [(part, sound) for sound in sounds for part in parts]
        found = self._culprits([(layers, groups), *trials], lambda _: False)
        return {number: reason for (_, number), reason in (found or self._silent(layers)).items()}

    def _replay(self, inference: Inference, branches: Sequence[Branch] = ()) -> Replay:
        narrow = self._narrow
        return Replay(self.model, self.inputs, self.trace, inference, branches, narrow=narrow)

    def _in_training(self, inference: Inference) -> Replay | None:
        """The graph in training mode, to see which gates its outputs react to."""
        if self._training is None:
            return None
        return Replay(self.model, self.inputs, self._training, inference, ())

    def _silent(self, suspects: Sequence[Suspect]) -> dict[Suspect, str]:
        """Suspects that no output reacted to: they are tried with other inputs until one does."""
        left = self._unmoved(suspects)
        found: dict[Suspect, str] = {}
        inputs, replay, training = self.inputs, self.replay, self.training_replay
        for seed in range(1, DRAWS):
            if not left:
                break
            self.inputs = drawn(self.model, self.given, self.trace, seed)
            self.replay = replay.on(self.inputs)
            self.training_replay = training.on(self.inputs) if training else None
            for suspect in sorted(set(left) - set(still := self._unmoved(left))):
                if trouble := self._trouble(self._plan([suspect]), train=training is not None):
                    found[suspect] = trouble
            left = still
        self.inputs, self.replay, self.training_replay = inputs, replay, training
        return found | dict.fromkeys(left, FAINT if self._single else SILENT)

    def _unmoved(self, suspects: Sequence[Suspect]) -> list[Suspect]:
        """Suspects that no output reacts to: nothing that was compared says anything about them.

        In float32 an output has to react by more than rounding to the one unit of a group to whose
        gate it reacts least.
        """
        with isolated(), self.precision():
            moving = self.replay.moving()
            if self.training_replay is not None:
                moving = self.training_replay.moving() | moving
            silent = [s for s in suspects if self._single or s not in moving]
            plans = {s: self._slightest(s, moving.get(s)) for s in silent}
            replays = [self.replay]
            least = rounding.MARGIN * self._tolerance if self._single else 0.0
            if self._single and self.training_replay is not None:
                replays.append(self.training_replay)
            wholes = [replay.masked(KeepPlan()) if silent else [] for replay in replays]
            return [
                suspect
                for suspect, plan in plans.items()
                if all(
                    agree(replay.masked(plan), whole, least)
                    for replay, whole in zip(replays, wholes, strict=True)
                )
            ]

    def _slightest(self, suspect: Suspect, gradient: Tensor | None) -> KeepPlan:
        """Return a plan without a suspect, or of a group without its unit of least effect."""
        kind, number = suspect
        if gradient is None or kind == "layer":
            return self._plan([suspect])
        effects = torch.where(gradient == 0, torch.inf, gradient.abs())
        units = torch.arange(len(gradient))
        return KeepPlan({number: units[units != int(effects.argmin())]}, frozenset())

    def _culprits(
        self,
        trials: Sequence[tuple[list[Suspect], list[Suspect]]],
        retryable: Callable[[int], bool],
    ) -> dict[Suspect, str]:
        """Try suspects, each time together with what is sound.

        The first time training mode is compared as well, and always where it has more.
        """
        found: dict[Suspect, str] = {}
        for number, (suspects, sound) in enumerate(trials):
            left = [suspect for suspect in suspects if suspect not in found]
            train = number == 0 or self._training is not None
            self._search(left, sound, found, retryable, train=train)
        return found

    def _search(
        self,
        suspects: list[Suspect],
        sound: list[Suspect],
        found: dict[Suspect, str],
        retryable: Callable[[int], bool],
        *,
        train: bool,
    ) -> None:
        """Halve the suspects until every culprit is known; ``train``: in training mode as well."""
        if not suspects or any(retryable(number) for _, number in found):
            return
        plan = self._plan([*sound, *suspects])
        trouble = self._trouble(plan, train)
        if trouble is None:
            return
        if len(suspects) == 1:
            found[suspects[0]] = self._reason(plan, trouble)
            return
        before = len(found)
        middle = len(suspects) // 2
        self._search(suspects[:middle], sound, found, retryable, train=train)
        self._search(suspects[middle:], sound, found, retryable, train=train)
        if len(found) == before:
            reason = f"only together with others: {self._reason(plan, trouble)}"
            found.update(dict.fromkeys(suspects, reason))

    def _partly_gone(self) -> dict[int, str]:
        """Layers some of whose tensors stay when all layers go."""
        structures, found = self.structures, dict[int, str]()
        while True:
            some = frozenset(n for n in range(len(structures.layers)) if n not in found)
            plan = KeepPlan({}, some)
            module = sharing_copy(self.model)
            try:
                operate(module, structures, plan)
            except UnsupportedError:  # trying them says of which
                return found
            left = removed_tensors(structures, plan) & named_tensors(module).keys()
            if not left:
                return found
            for name in sorted(left):
                outermost = max(
                    structures.holders[name] & some, key=lambda n: len(structures.layers[n].tensors)
                )
                found.setdefault(outermost, _stays(name))

    def _plan(self, suspects: list[Suspect]) -> KeepPlan:
        generator = torch.Generator().manual_seed(0)
        chosen = {number for kind, number in suspects if kind == "group"}
        kept: dict[int, Tensor] = {}
        for number, group in enumerate(self.structures.groups):
            blocks = self.structures.blocks_of(group)
            units = _uneven(group.size, blocks, generator, group.multiple)
            if number in chosen:
                kept[number] = units
        return KeepPlan(kept, frozenset(n for kind, n in suspects if kind == "layer"))

    @torch.no_grad()
    def _trouble(self, plan: KeepPlan, train: bool) -> str | None:
        """Return what is wrong with the cut module; None when it is the masked network.

        Units cut in other groups may leave the others behind ReLUs that are 0 for all samples.
        Where outputs do not react to all that is cut, a training step is compared: BatchNorm keeps
        them from it there.
        """
        module = sharing_copy(self.model)
        with self.precision():
            own, trouble = self._own(module, plan)
            if trouble is not None:
                return trouble
            if train:
                masked = self.replay.masked(plan)
            else:
                masked, moving = self.replay.masked_and_moving(plan)
                train = not _concerned(plan) <= moving.keys()
            if not agree(masked, own, self._tolerance):
                return "the model's own forward gives another output than its graph"
        if train and plan.removed_layers and (trouble := self._trouble_in_types(module)):
            return trouble
        return self._trouble_in_training(module, plan) if train else None

    def _trouble_in_types(self, cut: nn.Module) -> str | None:
        """Return what autocast shows in another type; lengths that go change no types."""
        if self._types is None:
            with isolated(), _quiet():
                self._types = types_seen(self.model, self.inputs) or {}
        with isolated(), _quiet():
            return other_types(self._types, types_seen(cut, self.inputs)) if self._types else None

    def _trouble_in_training(self, cut: nn.Module, plan: KeepPlan) -> str | None:
        """Return how training steps of the cut and the masked module differ, or None."""
        others = () if self._single else (contextlib.nullcontext, double_precision)
        for precision in dict.fromkeys((self.precision, *others)):
            with precision():
                masked = self._masked(plan)
                expected = self._observed(masked)
                if expected is None:
                    continue
                found = self._observed(cut)
                if found is None:
                    return "the model's forward and backward in training mode do not run without it"
                if precision is not self.precision:
                    return None  # what is rounded to float32 on the way cannot be compared
                trouble = disagreement(
                    expected, found, self.structures, plan, self._in_training_tolerance
                )
                again = self._observed(self._masked(plan), seed=1) if trouble else None
                by_chance = again and not agree(again.outputs, expected.outputs)
                return None if by_chance else trouble
        return None

    def _masked(self, plan: KeepPlan) -> nn.Module:
        """A copy whose weights do not read what a plan leaves out."""
        module = sharing_copy(self.model)
        for name, scale in self.replay.scales(plan).items():
            tensor = tensor_at(module, name)
            tensor.data = (tensor.data * scale).to(tensor.dtype)
        return module

    def _trains(self) -> bool:
        """Say whether a training step runs and repeats exactly, so that it says something."""
        with self.precision():
            steps = [self._observed(sharing_copy(self.model), seed) for seed in (0, 1)]
        return (
            steps[0] is not None
            and steps[1] is not None
            and agree(steps[0].outputs, steps[1].outputs)
        )

    def _observed(self, model: nn.Module, seed: int = 0) -> Behaviour | None:
        """A training step of a copy; None where it does not run."""
        try:
            with isolated(), _quiet():
                seed_all(seed)
                return observe(model, changed(self.inputs, Tensor.clone))
        except Exception:  # noqa: BLE001  (whatever a user's forward raises)
            return None

    @torch.no_grad()
    def _reason(self, plan: KeepPlan, trouble: str) -> str:
        """The trouble, unless the graph has some, too: then a rule is wrong, not a `forward`."""
        with self.precision():
            try:
                masked, sliced = self.replay.masked(plan), self.replay.sliced(plan)
                if not agree(masked, sliced, self._tolerance):
                    return "masking and slicing it give different outputs"
            except Exception as error:  # noqa: BLE001  (whatever an operator raises)
                return f"the graph does not run without it: {first_line(error)[:_LONGEST]}"
        return trouble

    def _own(self, module: nn.Module, plan: KeepPlan) -> tuple[list[Tensor], str | None]:
        """The outputs of a copy of the model that is really cut, or what is wrong with it."""
        try:
            operate(module, self.structures, plan)
            with evaluation_mode(module), _quiet():
                own = tensors_of(call_model(module, changed(self.inputs, Tensor.clone)))
        except Exception as error:  # noqa: BLE001  (whatever a user's forward raises)
            return (
                [],
                f"the model's own forward does not run without it: {first_line(error)[:_LONGEST]}",
            )
        if left := removed_tensors(self.structures, plan) & named_tensors(module).keys():
            return own, _stays(min(left))
        return own, None

    def _outputs(self) -> list[Tensor]:
        """Return what the whole graph computes."""
        return tensors_of(call_model(copied(self.model).eval(), changed(self.inputs, Tensor.clone)))

    def _runs(self, model: nn.Module, work: Callable[[nn.Module, Inputs], None]) -> bool:
        """Does some work of a model end without an error? Leaves no trace."""
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            with isolated(), evaluation_mode(model), _quiet(), self.precision():
                work(model, changed(self.inputs, Tensor.clone))
        except Exception:  # noqa: BLE001  (whatever a user's forward raises)
            return False
        finally:
            with torch.no_grad():
                for buffer, saved in buffers:
                    buffer.copy_(saved)
        return True


def groups_apart(structures: Structures) -> list[list[int]]:
    """Sets of groups: of any two that meet in a tensor each is in some set without the other.

    Groups get colours, different ones where they meet. Each colour is in another half of the sets:
    no half holds another (Sperner's theorem), so 3 sets do for 3 colours and 4 for 6.
    """
    meetings = [{g for axis in t.axes for g in groups_in(axis)} for t in structures.tensors]
    colours = _coloured(len(structures.groups), meetings)
    sets = next(n for n in count() if comb(n, n // 2) >= len(colours))
    halves = list(zip(colours, combinations(range(sets), sets // 2), strict=False))
    parts = [[g for colour, half in halves if n in half for g in colour] for n in range(sets)]
    return [sorted(part) for part in parts if part]


def layers_apart(structures: Structures) -> list[list[int]]:
    """Sets of layers: each is in one, without the next layer and without those inside or around."""
    layers = range(len(structures.layers))
    return _coloured(len(layers), [*structures.holders.values(), *pairwise(layers)])


def _coloured(number: int, meetings: Iterable[Iterable[int]]) -> list[list[int]]:
    """Classes of the first integers in which no two have a meeting together; found greedily."""
    meeting: dict[int, set[int]] = defaultdict(set)
    for together in meetings:
        for one in together:
            meeting[one].update(together)
    classes: list[list[int]] = []
    for one in range(number):
        free = next((c for c in classes if meeting[one].isdisjoint(c)), None)
        if free is None:
            classes.append([one])
        else:
            free.append(one)
    return classes


def _concerned(plan: KeepPlan) -> set[Suspect]:
    """Return the groups and layers that a plan cuts."""
    return {("group", n) for n in plan.kept} | {("layer", n) for n in plan.removed_layers}


def _uneven(size: int, blocks: int, generator: torch.Generator, multiple: int = 1) -> Tensor:
    """Some two thirds of the units of every block of a group, never the same backwards."""
    count = blocks * multiple * max(1, size // blocks // multiple * 2 // 3)
    while True:
        units = best(torch.rand(size, generator=generator), count, blocks)
        if count == size or not torch.equal(units, size - 1 - units.flip(0)):
            return units


def _as_single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype is torch.float64 else tensor


def _shown(behaviour: Behaviour | None) -> list[Tensor]:
    """Return the numbers of a training step that are compared."""
    if behaviour is None:
        return []
    gradients = [g for g in behaviour.gradients.values() if g is not None]
    return [*behaviour.outputs, *gradients, *behaviour.buffers.values()]


def _forward(model: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad():
        call_model(model, inputs)


def _finite(model: nn.Module, inputs: Inputs) -> None:
    with torch.no_grad():
        outputs = tensors_of(call_model(model, inputs))
    if not all(bool(output.isfinite().all()) for output in outputs):
        raise ArithmeticError("an output is not finite")


def _perturbed(model: nn.Module) -> nn.Module:
    """A float64 copy on the CPU with random weights near the model's own."""
    double = copied(model).cpu().double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in [*double.parameters(), *double.buffers()]:
            if not tensor.is_floating_point():
                continue
            spread = float(tensor.std()) if tensor.numel() > 1 else 0.0
            noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 0.5
            positive = bool((tensor >= 0).all())
            tensor.add_(noise * (spread if spread > 1e-3 else 0.5))
            if positive:
                tensor.abs_()
    return double


def _quiet() -> contextlib.AbstractContextManager[Any]:
    """A user's `forward` may print where it fails, which is an answer here."""
    return contextlib.redirect_stderr(io.StringIO())


def _stays(name: str) -> str:
    return f"{name} stays, since its module computes something else as well"
