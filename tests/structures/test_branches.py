"""Where a residual branch ends, and which parameters make it exactly zero."""

from __future__ import annotations

import copy

import pytest
import torch
from examine import masked_against_sliced
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from guyot import find_structures
from guyot.core.types import KeepPlan


class LayerScale(nn.Module):
    """gamma * branch, as in CaiT and ConvNeXt; `how` says in which order and layout."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        shape = (width, 1, 1) if how == "spatial" else (width,)
        self.gamma = nn.Parameter(torch.full(shape, 1e-6))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "spatial":
            return self.gamma * x
        if self.how == "inplace":
            return x.permute(0, 2, 3, 1).contiguous().mul_(self.gamma).permute(0, 3, 1, 2)
        return x.mul(self.gamma.reshape(1, -1, 1, 1))


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(width, 2, 1), nn.Conv2d(2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Standardised(nn.Conv2d):
    """A convolution whose filters have mean 0 and variance 1, with a gain."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(flat, None, None, weight=self.gain * 0.5, training=True)
        return functional.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


class Summed(nn.Module):
    """As many convolutions are added up as there are, beginning with the number 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList([nn.Conv2d(width, width, 1)])

    def forward(self, x: Tensor) -> Tensor:
        total = 0
        for part in self.parts:
            total += part(x)
        return total  # pyright: ignore[reportReturnType]


class Two(nn.Module):
    """The sum, or the concatenation, of two convolutions."""

    def __init__(self, width: int, joined: bool) -> None:
        super().__init__()
        half = width // 2 if joined else width
        self.one, self.two = nn.Conv2d(width, half, 1), nn.Conv2d(width, width - half or half, 1)
        self.joined = joined

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.one(x), self.two(x)
        return torch.cat([one, two], 1) if self.joined else one - two


ENDS = {
    "linear": (lambda w: nn.Identity(), {"conv.bias", "conv.weight"}),
    "norm": (nn.BatchNorm2d, {"end.bias", "end.weight"}),
    "spatial": (lambda w: LayerScale(w, "spatial"), {"end.gamma"}),
    "inplace": (lambda w: LayerScale(w, "inplace"), {"end.gamma"}),
    "reshaped": (lambda w: LayerScale(w, "reshaped"), {"end.gamma"}),
    "excite": (Excite, {"conv.bias", "conv.weight"}),
    "standardised": (Standardised, {"end.bias", "end.gain"}),
    "sum": (
        lambda w: Two(w, joined=False),
        {"end.one.bias", "end.one.weight", "end.two.bias", "end.two.weight"},
    ),
    "summed": (Summed, {"end.parts.0.bias", "end.parts.0.weight"}),
    "joined": (
        lambda w: Two(w, joined=True),
        {"end.one.bias", "end.one.weight", "end.two.bias", "end.two.weight"},
    ),
    "activation": (lambda w: nn.Sequential(nn.BatchNorm2d(w), nn.Hardswish()), None),
}


class Block(nn.Module):
    def __init__(self, width: int, end: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.end = end

    def forward(self, x: Tensor) -> Tensor:
        return x + self.end(self.conv(x))


@pytest.mark.filterwarnings("ignore:units of 0 cannot be removed:guyot.GuyotWarning")
@pytest.mark.parametrize("name", ENDS)
@settings(max_examples=4)
@given(width=st.integers(2, 7), pixels=st.integers(2, 5), seed=st.integers(0, 9))
def test_ends_of_branches(name: str, width: int, pixels: int, seed: int) -> None:
    torch.manual_seed(seed)
    make, writers = ENDS[name]
    model = nn.Sequential(nn.Conv2d(3, width, 1), Block(width, make(width)), nn.Conv2d(width, 2, 1))
    x = torch.randn(2, 3, pixels, pixels)
    structures = find_structures(model, (x,))
    (layer,) = structures.layers
    if writers is not None:
        assert {name.removeprefix("1.") for name in layer.writers} == writers
    sliced = copy.deepcopy(model)
    difference, _ = masked_against_sliced(sliced, structures, KeepPlan({}, frozenset([0])), (x,))
    assert difference < 1e-12
    assert not [*sliced[1].parameters()], "nothing of the branch is left"
    stem = sliced[0](x)
    torch.testing.assert_close(sliced[1](stem), stem)
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for writer in layer.writers:
            zeroed.get_parameter(writer).zero_()
        stem = zeroed[0](x)
        assert torch.equal(zeroed.eval()[1](stem), stem)


class Ends(nn.Module):
    """Blocks that end in what no parameter makes zero."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(4, 4, 3, padding=1), how
        self.norm = nn.BatchNorm2d(4, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "sigmoid":
            return x + self.conv(x).sigmoid()
        return x + self.norm(self.conv(x))


@pytest.mark.parametrize("how", ["sigmoid", "norm without weights"])
def test_ends_that_are_never_zero(how: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Ends(how), nn.Conv2d(4, 2, 1))
    structures = find_structures(model, (torch.randn(2, 3, 4, 4),))
    assert not structures.layers
    (frozen,) = (f for f in structures.frozen if f.name == "1")
    assert frozen.reason == "its residual branch does not end in an affine operator"


class Halving(nn.Module):
    """A branch that halves the image; the pooled input is projected and read by others as well."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(9, 2, 1)
        self.pool, self.project = nn.MaxPool2d(2), nn.Conv2d(4, 5, 1)
        self.block = Joining()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = self.pool(x)
        return self.head(torch.cat([pooled, self.block(x, self.project(pooled))], 1))


class Joining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 6, 3, padding=1)
        self.last = nn.Conv2d(6, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return shortcut + self.last(self.first(x).relu())


def test_a_shortcut_may_be_projected_from_what_was_pooled() -> None:
    torch.manual_seed(0)
    model, x = Halving(), torch.randn(2, 3, 6, 6)
    structures = find_structures(model, (x,))
    assert [layer.name for layer in structures.layers] == ["block"]
    kept = copy.deepcopy(model)
    difference, _ = masked_against_sliced(model, structures, KeepPlan({}, frozenset([0])), (x,))
    assert difference < 1e-12 and not list(model.block.parameters())
    pooled = kept.pool(kept.stem(x))
    assert kept.head(torch.cat([pooled, kept.project(pooled)], 1)).shape == model(x).shape


class Written(nn.Module):
    """A branch adds a mask that it makes from its own input's shape and fills in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        mask = hidden.new_zeros(hidden.shape[1:])
        mask[1:] = -1
        return x + self.last(hidden + mask)


def test_what_writes_into_a_tensor_of_a_branch_goes_with_it() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Written(), nn.Linear(6, 2))
    x = torch.randn(2, 3, 4)
    structures = find_structures(model, (x,))
    (layer,) = structures.layers
    assert {name.rpartition(".")[0] for name in layer.tensors} == {"1.first", "1.last"}
    inside = [kernel.layers for kernel in structures.kernels if kernel.name == "1"]
    assert len(inside) == 5 and set(inside) == {()}  # stand-ins: its own operators still run
    modules = [k.layers for k in structures.kernels if k.name in ("1.first", "1.last")]
    assert modules == [(0,), (0,)]
    sliced = copy.deepcopy(model)
    difference, _ = masked_against_sliced(sliced, structures, KeepPlan({}, frozenset([0])), (x,))
    assert difference < 1e-10


class Halves(nn.Module):
    """States the length of a half, which follows also when the block inside loses its branch."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.merge = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)
        self.block = Block(4, nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.expand(x).split(4, dim=1)
        return self.merge(torch.cat([self.block(one), two], 1))


def test_lengths_follow_around_a_block_without_its_branch() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Halves(), nn.Conv2d(4, 2, 1))
    structures = find_structures(model, (x,))
    assert [layer.name for layer in structures.layers] == ["1.block"]
    assert [spec.module for spec in structures.restated] == ["1"]
    kept = {number: torch.tensor([0, 2, 3]) for number, g in enumerate(structures.groups)}
    plan = KeepPlan(kept, frozenset([0]))
    difference, left = masked_against_sliced(model, structures, plan, (x,))
    assert difference < 1e-12
    assert not left.layers and not list(model[1].block.parameters())
    assert model[1].expand.out_channels == 6 and len(left.groups) == len(structures.groups)


class Adapted(nn.Module):
    """A linear map with a correction of low rank, which reads the same input with dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.base, self.dropout = nn.Linear(width, width), nn.Dropout(0.1)
        self.down, self.up = nn.Linear(width, 2, bias=False), nn.Linear(2, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(self.dropout(x))) * 0.5


class Heads(nn.Module):
    """Two adapted maps of one input, and one that is not adapted between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.plain, self.last = Adapted(6), nn.Linear(6, 6), Adapted(6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.tanh()
        return torch.cat([self.first(x), self.plain(x), self.last(x)], 1)


@pytest.mark.parametrize("gone", [{0}, {1}, {0, 1}])
def test_an_adapter_that_reads_with_dropout_is_a_branch(gone: set[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), Heads(), nn.Linear(18, 2))
    x = torch.randn(3, 4)
    structures = find_structures(model, (x,))
    assert [layer.name for layer in structures.layers] == ["1.first", "1.last"]
    assert [layer.writers for layer in structures.layers] == [
        ("1.first.up.weight",),
        ("1.last.up.weight",),
    ]
    sliced = copy.deepcopy(model)
    difference, _ = masked_against_sliced(sliced, structures, KeepPlan({}, frozenset(gone)), (x,))
    assert difference < 1e-12
    for number, adapted in enumerate((sliced[1].first, sliced[1].last)):
        names = {name.partition(".")[0] for name, _ in adapted.named_parameters()}
        assert names == ({"base"} if number in gone else {"base", "down", "up"})
