"""A removed residual branch leaves nothing behind, and its block is still its author's."""

from __future__ import annotations

import copy
import io
import random
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES, Nested, TwoBranches, counted
from torch import Tensor, nn
from torch.nn import functional

from guyot import GuyotWarning, find_structures
from guyot.app.models.cifar import BasicBlock
from guyot.core.randomness import seed_all
from guyot.core.types import KeepPlan, Structures
from guyot.surgery import operate


def only(structures: Structures, *names: str) -> KeepPlan:
    """The plan that removes the named layers and keeps every unit."""
    numbers = {layer.name: n for n, layer in enumerate(structures.layers)}
    return KeepPlan({}, frozenset(numbers[name] for name in names))


def without(model: nn.Module, x: Tensor, *names: str) -> nn.Module:
    """The model after the named layers were removed."""
    structures = find_structures(model, (x,))
    operate(model, structures, only(structures, *names))
    return model


def backward(model: nn.Module, x: Tensor) -> None:
    model.train()
    model.zero_grad()
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", [n for n, case in CASES.items() if case.layers])
def test_nothing_is_left_behind(name: str) -> None:
    case = CASES[name]
    model, x = case.build(), case.inputs()
    structures = find_structures(model, (x,))
    names = set(model.state_dict())
    every = KeepPlan({}, frozenset(range(len(structures.layers))))
    branch = {tensor for layer in structures.layers for tensor in layer.tensors}
    inside = {module for layer in structures.layers for module in layer.modules}
    kinds = {name: type(module) for name, module in model.named_modules()}

    left = operate(model, structures, every).structures

    assert left.layers == ()
    assert set(model.state_dict()) == names - branch
    assert not inside & dict(model.named_modules()).keys()
    assert all(isinstance(module, kinds[name]) for name, module in model.named_modules())
    assert not any(op.layers for op in left.operations)
    executed = [op for op in structures.operations if not op.layers]
    assert {op.name for op in left.operations} == {op.name for op in executed}
    backward(model, x)


def test_identity_shortcut_vanishes() -> None:
    case = CASES["cifar"]
    model, x = case.build(), case.inputs()
    before = counted(model, x)
    without(model, x, "stages.0.0")
    assert [name for name, _ in model.stages[0][0].named_modules()] == ["", "relu"]
    assert before - counted(model, x) == 2 * 9 * 6 * 6 * 8 * 8


def test_modules_keep_the_numbers_they_are_called_with() -> None:
    class Repeat(nn.Module):
        def forward(self, x: Tensor, times: int) -> Tensor:
            return x.repeat_interleave(times, 1)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.repeat, self.linear, self.relu = Repeat(), nn.Linear(6, 6), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.repeat(x, 2)
            return self.relu(x + self.linear(x))

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 3), Block(), nn.Linear(6, 2)), torch.randn(2, 4)
    structures = find_structures(model, (x,))
    expected = model[2](model[0](x).repeat_interleave(2, 1).relu())
    operate(model, structures, KeepPlan({}, frozenset([0])))
    torch.testing.assert_close(model(x), expected)


def test_downsampling_shortcut_stays() -> None:
    case = CASES["cifar"]
    model, x = case.build(), case.inputs()
    weight = model.stages[1][0].downsample[0].weight
    without(model, x, "stages.1.0")
    block = model.stages[1][0]
    assert isinstance(block, BasicBlock)
    assert {name for name, _ in block.named_children()} == {"downsample", "relu"}
    assert block.downsample[0].weight is weight
    backward(model, x)


def test_removing_in_turn_is_removing_at_once() -> None:
    case = CASES["tokens"]
    model, x = case.build(), case.inputs()
    structures = find_structures(model, (x,))
    names = [layer.name for layer in structures.layers]
    for first in names:
        for second in names:
            if first != second:
                once, turns = copy.deepcopy(model), copy.deepcopy(model)
                operate(once, structures, only(structures, first, second))
                left = operate(turns, structures, only(structures, first)).structures
                operate(turns, left, only(left, second))
                assert torch.equal(once(x), turns(x)), (first, second)
                assert list(once.state_dict()) == list(turns.state_dict())


def test_one_of_two_branches_in_a_forward() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), TwoBranches(8, 6, scaled=True)), torch.randn(2, 5)
    stem, block = copy.deepcopy(model)
    without(model, x, "1")
    hidden = stem(x)
    torch.testing.assert_close(model(x), torch.tanh(block.feed(hidden) + hidden))
    assert isinstance(model[1], TwoBranches) and type(model[1]) is not TwoBranches
    assert [name for name, _ in model[1].named_children()] == ["feed"]
    without_both = find_structures(model, (x,))
    assert without_both.groups
    backward(model, x)


def test_outer_branch_takes_the_inner_along() -> None:
    model, x = CASES["nested"].build(), CASES["nested"].inputs()
    structures = find_structures(model, (x,))
    left = operate(model, structures, only(structures, "1")).structures
    assert [layer.name for layer in left.layers] == ["2"]
    assert isinstance(model[1], Nested) and not list(model[1].children())
    backward(model, x)


class InShortcut(nn.Module):
    """A residual block whose shortcut holds another."""

    def __init__(self) -> None:
        super().__init__()
        self.short = Nested(6)
        self.first, self.last = nn.Linear(6, 7), nn.Linear(7, 6)
        self.more = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.short(x)
        return y + self.last(torch.relu(self.more(torch.relu(self.first(x)))))


@pytest.mark.parametrize("names", [("1",), ("1.short",), ("1", "1.short")])
def test_inner_branch_in_the_shortcut(names: tuple[str, ...]) -> None:
    model, x = nn.Sequential(nn.Linear(3, 6), InShortcut(), nn.Linear(6, 2)), torch.randn(4, 3)
    structures = find_structures(model, (x,))
    assert {layer.name for layer in structures.layers} == {"1", "1.short"}
    stem, block, head = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    left = operate(model, structures, only(structures, *names), [optimizer]).structures
    y = stem(x)
    short = y if "1.short" in names else block.short(y)
    branch = block.last(torch.relu(block.more(torch.relu(block.first(y)))))
    torch.testing.assert_close(model(x), head(short if "1" in names else short + branch))
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert {tensor.name for tensor in left.tensors} == set(model.state_dict())


class Scaled(nn.Module):
    """A residual block written with a function for its steps."""

    def __init__(self, steps: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Identity()
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(self, x)


def in_place_sum(block: nn.Module, x: Tensor) -> Tensor:
    out = block.norm(block.conv(x))
    out += x
    return block.relu(out)


def method_sum(block: nn.Module, x: Tensor) -> Tensor:
    return block.norm(block.conv(x)).add_(x).relu_()


def function_sum(block: nn.Module, x: Tensor) -> Tensor:
    return functional.relu(torch.add(x, block.norm(block.conv(x))), inplace=True)


def through_identity(block: nn.Module, x: Tensor) -> Tensor:
    return block.relu(block.norm(block.conv(x)) + block.skip(x))


def before_activation(block: nn.Module, x: Tensor) -> Tensor:
    return x + block.conv(torch.relu(block.norm(x)))


STEPS = [in_place_sum, method_sum, function_sum, through_identity, before_activation]


@pytest.mark.parametrize("steps", STEPS, ids=lambda steps: steps.__name__)
def test_in_place_operators_do_not_overwrite_the_input(steps) -> None:
    stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh())  # which saves its output for backward
    model = nn.Sequential(stem, Scaled(steps), nn.Flatten(), nn.Linear(4 * 9, 2))
    x = torch.randn(2, 3, 3, 3)
    without(model, x, "1")
    kept = stem(x).clone()
    left = kept if steps is before_activation else kept.relu()
    torch.testing.assert_close(model(x), model[3](left.flatten(1)))
    backward(model, x)


def test_units_are_tried_with_their_layer_in_place() -> None:
    """What a `forward` states about a branch shows only where the branch runs."""

    class Stated(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            torch._assert(x.shape[-1] == 6, "six it has to be")
            return x

    model = nn.Sequential(nn.Linear(3, 6), Nested(6, Stated()), nn.Linear(6, 2))
    with pytest.warns(GuyotWarning, match=r"units of 1.first cannot be removed: .*six it has"):
        structures = find_structures(model, (torch.randn(4, 3),))
    assert [group.name for group in structures.groups] == ["0"]
    assert [layer.name for layer in structures.layers] == ["1"]


def test_a_later_in_place_operator_meets_a_saved_tensor() -> None:
    """Where the backward pass fails without the addition, the addition of zeros stays."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.Sigmoid(),
        Scaled(before_activation),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 9, 2),
    )
    x = torch.randn(2, 3, 3, 3)
    (layer,) = find_structures(model, (x,)).layers
    assert {spec.module: spec.zero for spec in layer.stand_ins} == {"2.norm": False, "2.conv": True}
    kept = copy.deepcopy(model)
    without(model, x, "2")
    torch.testing.assert_close(model(x), kept[4:](kept[:2](x)))
    assert {name.partition(".")[0] for name in model.state_dict()} == {"0", "5"}
    backward(model, x)


def on_mode(block: nn.Module, x: Tensor) -> Tensor:
    return x + functional.dropout(block.conv(x), 0.1, block.training)


def on_size(block: nn.Module, x: Tensor) -> Tensor:
    return x + block.conv(x) if len(x) > 1 else x


def on_call(block: nn.Module, x: Tensor) -> Tensor:
    def helper(*values: Tensor, **options: Any) -> tuple[Tensor, ...]:
        return tuple(block.conv(value) for value in values if options.get("on", True))

    return x.add(helper(*[x, x][:1], on=True)[0])


@pytest.mark.parametrize("steps", [on_mode, on_size, on_call], ids=lambda steps: steps.__name__)
def test_forward_that_cannot_be_rewritten_gets_stand_ins(steps) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Scaled(steps), nn.Flatten(), nn.Linear(36, 2))
    x = torch.randn(2, 3, 3, 3)
    kept = copy.deepcopy(model)
    without(model, x, "1")
    torch.testing.assert_close(model(x), kept[2:](kept[0](x)))
    assert not [name for name in model.state_dict() if name.startswith("1.conv")]
    model(x).square().sum().backward()


class Rectified(nn.Module):
    """Its activation, which acts in place, runs in the branch and after the addition."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, shortcut: Tensor | None = None) -> Tensor:
        shortcut = x if shortcut is None else shortcut
        return self.relu(self.second(self.relu(self.first(x))) + shortcut)


class Densely(nn.Module):
    """What goes into a block is read beside what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(3, 6), Rectified(), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).exp()
        return self.head(torch.cat([x, self.block(x)], 1))


def test_what_acts_in_place_beside_stand_ins_spares_their_input() -> None:
    model = Densely()
    x = torch.randn(4, 3)
    kept = copy.deepcopy(model)
    without(model, x, "block")
    stem = kept.stem(x).exp()
    torch.testing.assert_close(model(x), kept.head(torch.cat([stem, stem.relu()], 1)))
    assert not model.block.relu.inplace and kept.block.relu.inplace
    backward(model, x)


def plus(left: Tensor, right: Tensor) -> Tensor:
    """An addition outside of any method."""
    return left + right


class Glued(nn.Module):
    """A branch with a weight outside any module of its own, in a module that does more."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return plus(x, functional.linear(self.linear(x), self.weight)).relu()


class Weighed(nn.Module):
    """A branch that ends in a parameter of its caller, which does more."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(6, 6), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return plus(x, self.scale * self.linear(x)).relu()


class WeighedFirst(Weighed):
    """The scale is on what its module reads: it would get no gradient at all."""

    def forward(self, x: Tensor) -> Tensor:
        return plus(x, self.linear(self.scale * x)).relu()


class Shifted(Weighed):
    """What scales zeros is shifted away from zero."""

    def forward(self, x: Tensor) -> Tensor:
        return plus(x, (self.linear(x) * self.scale).add(self.scale.exp())).relu()


class Optional(nn.Module):
    """Two branches with scales or without: what runs asks whether a scale is there."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.mix, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.feed = nn.Linear(6, 6)
        self.one = nn.Parameter(torch.randn(6)) if scaled else None
        self.two = nn.Parameter(torch.randn(6)) if scaled else None

    def forward(self, x: Tensor) -> Tensor:
        if self.one is None:
            x = x + self.mix(self.norm(x))
            x = x + self.feed(x)
        else:
            x = x + self.one * self.mix(self.norm(x))
            x = x + (self.feed(x) if self.two is None else self.two * self.feed(x))
        return x


class Overwrites(nn.Module):
    """Changes its sum in place; without the branch the sum is the input."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.branch, self.scale, self.way = nn.Linear(6, 6), nn.Parameter(torch.randn(6)), way

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.branch(x)
        if self.way == "statement":
            y *= self.scale
            y += 1
        if self.way == "method":
            y.mul_(self.scale)
            y.add_(1)
        if self.way == "chain":
            y = y.mul_(self.scale).add_(1)
        return y


class Cascade(nn.Module):
    """A branch that collects its parts in a list, in a loop over two lists of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(6, 9), nn.Linear(9, 6)
        self.parts = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(3) for _ in range(2))
        self.scale = 3

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(self.start(x), 3, 1)
        found = []
        piece = pieces[0]
        for i, (part, norm) in enumerate(zip(self.parts, self.norms, strict=True)):
            piece = pieces[i] if i == 0 else piece + pieces[i]
            piece = norm(part(piece))
            found.append(piece)
        if self.scale > 1:
            found.append(pieces[-1])
        return x + self.end(torch.cat(found, 1))


class Counting(Cascade):
    """As before, and what the loop collects is also kept."""

    def forward(self, x: Tensor) -> Tensor:
        pieces = torch.split(self.start(x), 3, 1)
        found = []
        for part, norm, piece in zip(self.parts, self.norms, pieces[:2], strict=True):
            found.append(norm(part(piece)))
            self.scale += 1
        self.found = found
        return x + self.end(torch.cat([*found, pieces[2]], 1))


class Several(nn.Module):
    """A sum that begins with one branch, to which a loop adds others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.none = nn.Linear(6, 6), None
        self.others = nn.ModuleList([nn.Linear(6, 6)])

    def forward(self, x: Tensor) -> Tensor:
        first = none = 0
        if self.none is not None:
            none = self.none(x)
        if self.first is not None:
            first = self.first(x)
        out = first + none
        if self.others is not None:
            for other in self.others:
                out += other(x)
        return out.relu()


REFUSED = {
    "weights of its own": (Glued, r"a module of it does more than this branch"),
    "a scale before its module": (WeighedFirst, r"some of its parameters belong to a module"),
}


def test_scale_of_a_caller_scales_zeros() -> None:
    """It stays, as its caller reads it; what it learns from the branch is nothing."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), Weighed(), nn.Linear(6, 2)), torch.randn(4, 3)
    structures = find_structures(model, (x,))
    (layer,) = structures.layers
    assert layer.writers == ("1.linear.bias", "1.linear.weight")
    stem, kept, head = copy.deepcopy(model)
    left = operate(model, structures, only(structures, "1")).structures
    torch.testing.assert_close(model(x), head(stem(x).relu()))
    assert {name for name in model.state_dict() if name.startswith("1.")} == {"1.scale"}
    assert [t.layers for t in left.tensors if t.name == "1.scale"] == [()]  # it counts
    backward(model, x)
    assert not model[1].scale.grad.any()
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert torch.equal(model[1].scale, kept.scale)


@pytest.mark.filterwarnings("ignore::guyot.GuyotWarning")
def test_shifted_zeros_are_no_zeros() -> None:
    model = nn.Sequential(nn.Linear(3, 6), Shifted(), nn.Linear(6, 2))
    assert not find_structures(model, (torch.randn(4, 3),)).layers


@pytest.mark.filterwarnings("ignore::guyot.GuyotWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_branches_that_cannot_go_are_said(name: str) -> None:
    block, reason = REFUSED[name]
    model = nn.Sequential(nn.Linear(3, 6), block(), nn.Linear(6, 2))
    structures = find_structures(model, (torch.randn(4, 3),))
    assert not structures.layers
    (said,) = (f.reason for f in structures.frozen if f.name == "1")
    assert re.search(r"says nothing that can be changed .*; .*" + reason, said)


class Tossed(nn.Module):
    """Training skips the branch, by a coin that a trace of `forward` tosses once and for all."""

    def __init__(self, toss: Callable[[], float]) -> None:
        super().__init__()
        self.linear, self.toss = nn.Linear(6, 6), toss

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and self.toss() < 0.5 else x + self.linear(x)


SOURCES = (random.random, np.random.rand, lambda: torch.rand(()).item())


@pytest.mark.parametrize("toss", SOURCES)
def test_chance_has_no_say_in_the_structure(toss: Callable[[], float]) -> None:
    model = nn.Sequential(nn.Linear(3, 6), *(Tossed(toss) for _ in range(4)), nn.Linear(6, 2))
    found: list[Structures] = []
    for seed in range(5):
        seed_all(seed)
        found.append(find_structures(model, (torch.ones(4, 3),)))
        drawn = [source() for source in SOURCES]
        seed_all(seed)
        assert drawn == [source() for source in SOURCES]
    assert all(str(other) == str(found[0]) for other in found)
    assert [layer.name for layer in found[0].layers] == ["1", "2", "3", "4"]


def test_module_called_twice_keeps_its_branch() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.block, self.head = nn.Linear(3, 6), Nested(6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.block(self.block(self.stem(x))))

    structures = find_structures(Twice(), (torch.randn(2, 3),))
    assert not structures.layers
    assert any("called more than once" in f.reason for f in structures.frozen)


class Root(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return x + functional.linear(x, self.weight)


@pytest.mark.parametrize("root", [lambda: Nested(6), Root])
def test_addition_in_the_root_goes(root: Callable[[], nn.Module]) -> None:
    x, model = torch.randn(2, 6), root()
    kind = type(model)
    without(model, x, "(root)")
    torch.testing.assert_close(model(x), x)
    assert not list(model.parameters()) and isinstance(model, kind)


@pytest.mark.parametrize("names", [("1",), ("1", "2:2")])
def test_result_can_be_copied_and_loaded(names: tuple[str, ...]) -> None:
    case = CASES["tokens"]
    x = case.inputs()
    model = without(case.build(), x, *names)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    other = without(case.build(), x, *names)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    buffer = io.BytesIO()
    torch.export.save(torch.export.export(model, (x,)), buffer)
    buffer.seek(0)
    torch.testing.assert_close(torch.export.load(buffer).module()(x), model(x))


def test_modes_are_kept() -> None:
    case = CASES["cifar"]
    for mode in (True, False):
        model = without(case.build().train(mode), case.inputs(), "stages.0.0", "stages.1.0")
        assert {module.training for module in model.modules()} == {mode}


def test_blocks_of_other_kinds_stay_what_they_are() -> None:
    case = CASES["cifar"]
    model = without(case.build(), case.inputs(), "stages.0.0")
    assert isinstance(model.stages[2][0], BasicBlock)


@pytest.mark.parametrize("scaled", [True, False])
def test_only_the_arm_that_runs_loses_its_branch(scaled: bool) -> None:
    """An arm for blocks without scales keeps no branch from going, alone, in turn or at once."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), Optional(scaled), nn.Linear(6, 2)), torch.randn(4, 3)
    structures = find_structures(model, (x,))
    names = [layer.name for layer in structures.layers]
    assert names == ["1", "1:2"] and not any(layer.stand_ins for layer in structures.layers)
    stem, block, head = model
    y = stem(x)
    scales = (block.one, block.two) if scaled else (1, 1)
    mixed = scales[0] * block.mix(block.norm(y))
    fed = [head(z + scales[1] * block.feed(z)) for z in (y, y + mixed)]
    expected = {("1",): fed[0], ("1:2",): head(y + mixed), ("1", "1:2"): head(y)}
    for order in (("1",), ("1:2",), ("1", "1:2"), ("1:2", "1")):
        cut, left = copy.deepcopy(model), structures
        for name in order:
            left = operate(cut, left, only(left, name)).structures
        at_once = without(copy.deepcopy(model), x, *order)
        for net in (cut, at_once):
            torch.testing.assert_close(net(x), expected[tuple(sorted(order))])
            assert isinstance(net[1], Optional)
            used = {"1": {"mix", "norm", "one"}, "1:2": {"feed", "two"}}
            gone = {part for name in order for part in used[name]}
            assert not gone & {name.split(".")[1] for name in net.state_dict()}
            backward(net, x)


@pytest.mark.parametrize("way", ["statement", "method", "chain"])
def test_the_input_of_a_block_is_not_overwritten_once_its_branch_is_gone(way: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), Overwrites(way), nn.Linear(6, 2)), torch.randn(4, 3)
    without(model, x, "1")
    given = torch.randn(4, 6)
    before = given.clone()
    with torch.no_grad():
        torch.testing.assert_close(model[1](given), before * model[1].scale + 1)
    assert torch.equal(given, before)


def test_a_loop_that_serves_a_branch_goes_with_it() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), Cascade(), nn.Linear(6, 2)), torch.randn(4, 3)
    (layer,) = find_structures(model, (x,)).layers
    assert not layer.stand_ins
    stem, _, head = model
    without(model, x, "1")
    torch.testing.assert_close(model(x), head(stem(x)))
    assert not [name for name in model.state_dict() if name.startswith("1.")]
    backward(model, x)


@pytest.mark.filterwarnings("ignore::guyot.GuyotWarning")
def test_a_loop_that_does_more_stays() -> None:
    model = nn.Sequential(nn.Linear(3, 6), Counting(), nn.Linear(6, 2))
    structures = find_structures(model, (torch.randn(4, 3),))
    assert not structures.layers
    assert "1" in {frozen.name for frozen in structures.frozen}


def test_what_a_loop_adds_goes() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), Several(), nn.Linear(6, 2)), torch.randn(4, 3)
    (layer,) = find_structures(model, (x,)).layers
    assert layer.tensors == ("1.others.0.weight", "1.others.0.bias")
    stem, block, head = model
    expected = head(block.first(stem(x)).relu())
    without(model, x, "1")
    torch.testing.assert_close(model(x), expected)
    backward(model, x)


class Summed(nn.Module):
    """Adds what several modules make of its input, in one line in a loop; they change its shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 1, 2)
        self.others = nn.ModuleList(nn.Conv2d(4, 6, 3, 2, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        for other in self.others:
            y += other(x)
        return y.relu()


def test_each_of_the_modules_that_a_loop_adds_goes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Summed(), nn.Conv2d(6, 2, 1))
    x = torch.randn(4, 3, 6, 6)
    layers = find_structures(model, (x,)).layers
    assert [layer.tensors[0] for layer in layers] == [f"1.others.{n}.weight" for n in range(3)]
    stem, block, head = model
    expected = head((block.first(stem(x)) + block.others[1](stem(x))).relu())
    without(model, x, "1", "1:3")
    torch.testing.assert_close(model(x), expected)
    backward(model, x)


class Widened(nn.Module):
    """Ends in a branch with a scale in float32, the only thing that is not narrow."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Linear(3, 6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.scale * self.branch(x)


class Watched(nn.Module):
    """A hook watches the block; the network itself ends in a narrow layer."""

    def __init__(self, watch: Callable[..., None]) -> None:
        super().__init__()
        self.block, self.head = Widened(), nn.Linear(6, 2)
        self.block.register_forward_hook(watch)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


class Noted(nn.Module):
    """Keeps the sum of the block for others; the network itself ends in a narrow layer."""

    def __init__(self, types: list[torch.dtype]) -> None:
        super().__init__()
        self.block, self.head = Widened(), nn.Linear(6, 2)
        self.sum: Tensor | None = None
        self.types = types

    def forward(self, x: Tensor) -> Tensor:
        self.sum = self.block(x)
        self.types.append(self.sum.dtype)
        return self.head(self.sum)


@pytest.mark.parametrize("kind", ["widened", "watched", "noted"])
@pytest.mark.filterwarnings("ignore::guyot.GuyotWarning")
def test_autocast_shows_the_same_types(kind: str) -> None:
    """Without its scale the sum would be in bfloat16, so the scale stays."""
    types: list[torch.dtype] = []
    torch.manual_seed(0)
    models: dict[str, Callable[[], nn.Module]] = {
        "widened": Widened,
        "watched": lambda: Watched(lambda *seen: types.append(seen[2].dtype)),
        "noted": lambda: Noted(types),
    }
    model = models[kind]()
    x = torch.randn(4, 3)
    structures = find_structures(model, (x,))
    (layer,) = structures.layers
    assert [spec.zero for spec in layer.stand_ins] == [True]
    operate(model, structures, only(structures, layer.name))
    types.clear()
    with torch.autocast("cpu", torch.bfloat16):
        types.append(model(x).dtype)
    assert types[0] is torch.float32


class Chain(nn.Module):
    """One line adds all branches, each in a round of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.links = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for link in self.links:
            x = x + link(x)
        return x


def test_a_line_that_adds_several_branches_stays() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 6), Chain(), nn.Linear(6, 2)), torch.randn(4, 3)
    layers = find_structures(model, (x,)).layers
    assert len(layers) == 3 and all(layer.stand_ins and not layer.place for layer in layers)
    stem, chain, head = model
    y = stem(x)
    for link in (chain.links[0], chain.links[2]):
        y = y + link(y)
    without(model, x, layers[1].name)
    torch.testing.assert_close(model(x), head(y))
