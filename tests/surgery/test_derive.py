"""A module whose `forward` changed is still its author's: only the sum or the lengths went."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from guyot import find_structures
from guyot.core.types import KeepPlan, Structures
from guyot.surgery import operate


def doubling(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A decorator that leaves no trace of what it wraps."""

    def around(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return 2 * forward(self, *args, **kwargs)

    return around


def tripling(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def around(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return 3 * forward(self, *args, **kwargs)

    return around


class Base(nn.Module):
    """Splits channels, so that lengths have to follow, and adds a branch."""

    scale = 1.0

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.width, self.temperature, self.calls, self.__hidden = width, 2.0, 0, 1.5
        self.both = nn.Linear(6, 2 * width)
        self.left, self.out = nn.Linear(width, width), nn.Linear(2 * width, 6)
        self.inner, self.last = nn.Linear(6, 10), nn.Linear(10, 6)
        self.gate, self.unused = nn.Linear(6, 6), nn.Linear(6, 3)
        self.seen: Tensor | None = None

    def hidden(self) -> float:
        return self.__hidden

    def decode(self, x: Tensor) -> Tensor:
        return self.unused(self(x))

    def mixed(self, x: Tensor) -> Tensor:
        left, right = self.both(x).split((self.width, self.width), -1)
        self.seen = right.detach()
        return self.out(torch.cat([self.left(left).relu(), right], -1)) / self.temperature

    def forward(self, x: Tensor, *args: Tensor, flip: bool = False, **kwargs: Tensor) -> Tensor:
        if len(args) > 0 or kwargs.get("mask") is not None:
            raise ValueError("not this way")
        self.calls += 1
        with torch.no_grad():
            x = x * torch.sigmoid(self.gate(x))
        y = self.mixed(x)
        y = functional.dropout(y, 0.5, self.training) * self.__hidden
        y = y + self.last(torch.tanh(self.inner(y)))
        with torch.autocast("cpu", enabled=False):
            y = y.to(self.out.weight.dtype) * self.scale
        return y.flip(-1) if flip else y


class Derived(Base):
    """Calls what it inherits, under decorators, with a name from outside."""

    def forward(self, x: Tensor, *args: Tensor, flip: bool = False, **kwargs: Tensor) -> Tensor:
        return super().forward(x, *args, flip=flip, **kwargs)


def closed(offset: float) -> type[Base]:
    """A class whose `forward` reads a name of the function around it."""

    class Closed(Base):
        @doubling
        @tripling
        def forward(self, x: Tensor, shift: float = offset) -> Tensor:
            y = self.mixed(x) + offset - shift
            return y + self.last(self.inner(y)) if y.dim() else y

    return Closed


KINDS: dict[str, Callable[[], nn.Module]] = {
    "plain": Base,
    "inherited": Derived,
    "closed": closed(0.25),
}


def network(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), KINDS[kind](), nn.Linear(6, 3))


def cut(model: nn.Module, x: Tensor, layers: bool = True, seed: int = 0) -> Structures:
    """Remove what can go: every layer, and some units of every group."""
    structures = find_structures(model, (x,))
    assert structures.layers and len(structures.groups) >= 3
    generator = torch.Generator().manual_seed(seed)
    kept = {
        n: torch.randperm(group.size, generator=generator)[: group.size // 2 + 1].sort().values
        for n, group in enumerate(structures.groups)
        if group.name not in ("0", "1.out")  # what the unused module reads stays
    }
    gone = frozenset(range(len(structures.layers))) if layers else frozenset[int]()
    operate(model, structures, KeepPlan(kept, gone))
    return structures


@contextlib.contextmanager
def counting(module: nn.Module) -> Iterator[dict[str, int]]:
    """How often every kind of hook fires."""
    fired = dict.fromkeys(("pre", "post", "back", "state"), 0)

    def note(kind: str) -> Callable[..., None]:
        def hook(*_: Any, **__: Any) -> None:
            fired[kind] += 1

        return hook

    handles = [
        module.register_forward_pre_hook(note("pre")),
        module.register_forward_hook(note("post")),
        module.register_full_backward_hook(note("back")),
        module.register_state_dict_post_hook(note("state")),
    ]
    yield fired
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [True, False])
def test_it_is_still_its_author_s_module(kind: str, layers: bool) -> None:
    model, x = network(kind), torch.randn(4, 5)
    block, author = model[1], type(model[1])
    names, attributes = set(model.state_dict()), set(vars(block))
    twin = copy.deepcopy(model)
    with counting(twin[1]) as expected:
        twin.train()(x).sum().backward()
    with counting(block) as fired:
        structures = cut(model, x, layers)
        assert model[1] is block and isinstance(block, author)
        assert (type(block).__name__, type(block).__module__) == (author.__name__, __name__)
        assert attributes <= set(vars(block))
        gone = {name for layer in structures.layers if layers for name in layer.tensors}
        assert set(model.state_dict()) == names - gone
        calls = block.calls
        fired |= dict.fromkeys(fired, 0)  # finding structures ran copies
        model.train()(x).sum().backward()
    assert fired == expected | {"state": 0}
    assert block.calls in (calls, calls + 1) and block.seen is not None
    if kind != "closed":
        assert block.calls == calls + 1
        assert block.gate.weight.grad is None, "its gradient was switched off"
    assert block.decode(model[0](x)).shape == (4, 3) and block.hidden() == 1.5
    model.eval()
    one = block(torch.ones(1, 6))
    block.temperature = 1.0
    assert not torch.allclose(block(torch.ones(1, 6)), one)


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_pickles_compute_the_same(kind: str) -> None:
    model, x = network(kind).eval(), torch.randn(4, 5)
    cut(model, x)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x)) and type(twin[1]) is type(model[1])
    twin[1].temperature = 5.0
    assert not torch.allclose(twin(x), model(x))
    if kind != "closed":  # whose class has no name that a pickle could give
        again = saved_and_loaded(model)
        assert torch.equal(again(x), model(x)) and isinstance(again[1], KINDS[kind])
        assert torch.equal(saved_and_loaded(again)(x), model(x))


def test_arguments_keep_their_meaning() -> None:
    model, x = network("plain").eval(), torch.randn(4, 5)
    cut(model, x)
    y = torch.randn(2, 6)
    assert torch.equal(model[1](y, flip=True), model[1](y).flip(-1))
    with pytest.raises(ValueError, match="not this way"):
        model[1](y, y)
    with pytest.raises(ValueError, match="not this way"):
        model[1](y, mask=y)


def test_autocast_stays_switched_off() -> None:
    model, x = network("plain").eval(), torch.randn(4, 5)
    cut(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert model[:2](x).dtype is torch.float32


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(sorted(KINDS)))
def test_what_was_cut_is_cut_again(seed: int, kind: str) -> None:
    """Finding structures in what is left and cutting anew is as good as the first time."""
    model, x = network(kind).eval(), torch.randn(4, 5)
    cut(model, x, layers=False, seed=seed)
    again = find_structures(model, (x,))
    assert again.layers and {group.size for group in again.groups} == {5, 6}
    number = next(n for n, group in enumerate(again.groups) if group.name.startswith("1.both"))
    whole = copy.deepcopy(model)
    slot = again.groups[number].readers[0]
    operate(model, again, KeepPlan({number: torch.tensor([0, 3])}))
    weight = whole.get_parameter(slot.tensor)
    for reader in again.groups[number].readers:
        axes = next(t.axes for t in again.tensors if t.name == reader.tensor)
        weight = whole.get_parameter(reader.tensor)
        with torch.no_grad():
            offset = 0
            for part in getattr(axes[reader.dim], "parts", (axes[reader.dim],)):
                size = again.groups[part.group].size
                if part.group == number:
                    weight[:, [offset + i for i in range(size) if i not in (0, 3)]] = 0
                offset += size
    torch.testing.assert_close(model(x), whole(x))


class Optional(nn.Module):
    """As timm writes blocks: parts that may be None, and ways that a setting chooses."""

    def __init__(self, *, stride: int, how: str) -> None:
        super().__init__()
        self.how, self.extra = how, None
        self.inner, self.act, self.last = nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6 // stride)
        self.down = nn.Linear(6, 6 // stride) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "alone":
            return self.last(self.act(self.inner(x)))
        shortcut = x
        x = self.act(self.inner(x))
        if self.extra is not None:
            x = self.extra(x)
        x = self.last(x)
        if self.down is not None and self.how != "plain":
            shortcut = self.down(shortcut)
        x += shortcut
        return x


@pytest.mark.parametrize(("stride", "how"), [(1, "plain"), (1, "down"), (2, "down")])
def test_ways_that_settings_close_hold_up_nothing(stride: int, how: str) -> None:
    torch.manual_seed(0)
    block = Optional(stride=stride, how=how)
    model = nn.Sequential(nn.Linear(4, 6), block, nn.Linear(6 // stride, 3))
    x = torch.randn(5, 4)
    structures = find_structures(model, (x,))
    (layer,) = structures.layers
    assert not layer.stand_ins and layer.owner == "1"
    expected = model[2](model[0](x) if block.down is None else block.down(model[0](x)))
    operate(model, structures, KeepPlan({}, frozenset({0})))
    assert torch.equal(model(x), expected)
    assert {name.split(".")[0] for name in block.state_dict()} <= {"down"}
