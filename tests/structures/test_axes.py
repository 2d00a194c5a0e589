"""The algebra of axes: sizes are conserved, equal means equal, frozen stays frozen."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from guyot import GuyotWarning, find_structures
from guyot.core.axis import entry_values, kept_indices, size_of
from guyot.core.reasons import Reason, ReasonKind
from guyot.core.types import Concat, Fixed, Product, Units
from guyot.structures.axes import (
    SPACE,
    DimVar,
    concat,
    factor,
    freeze,
    leaves,
    product,
    resolve_axis,
    root_of,
    split,
    unify,
)
from guyot.structures.rules import rule, rule_for
from guyot.structures.rules.registry import _RULES
from guyot.structures.rules.shape import regroup

SIZES = st.integers(2, 6)


@st.composite
def dims(draw: st.DrawFn, depth: int = 2) -> DimVar:
    """A leaf, a product or a concatenation, nested."""
    kind = draw(st.sampled_from(["leaf", "product", "concat"])) if depth else "leaf"
    if kind == "leaf":
        return DimVar(draw(SIZES))
    parts = draw(st.lists(dims(depth - 1), min_size=2, max_size=3))
    return product(*parts) if kind == "product" else concat(*parts)


def check(dim: DimVar) -> int:
    """The size that the parts of a dim add up or multiply to; they must do so at every level."""
    dim = root_of(dim)
    if dim.kind == "leaf":
        return dim.size
    sizes = [check(part) for part in dim.parts]
    total = prod(sizes) if dim.kind == "product" else sum(sizes)
    assert total == dim.size, dim
    return total


def axis_of(dim: DimVar, groups: dict[DimVar, int]):
    return resolve_axis(
        dim, lambda leaf: None if leaf.reason else groups.setdefault(leaf, len(groups))
    )


@given(dims())
def test_composed_dims_have_the_size_of_their_parts(dim: DimVar) -> None:
    assert check(dim) == dim.size


@given(dims(), dims(), dims())
def test_unify_makes_equal(a: DimVar, b: DimVar, c: DimVar) -> None:
    """Whatever is unified resolves to the same axis afterwards, or is frozen with a reason."""
    sizes = [root_of(dim).size for dim in (a, b, c)]
    joined = [(a, b), (b, c)]
    for left, right in joined:
        unify(left, right)
    assert [check(dim) for dim in (a, b, c)] == sizes
    groups: dict[DimVar, int] = {}
    for left, right in joined:
        same = axis_of(left, groups) == axis_of(right, groups)
        frozen = all(leaf.reason for dim in (left, right) for leaf in leaves(dim))
        assert same or frozen
        if root_of(left).size != root_of(right).size:
            assert frozen


@given(dims(), st.data())
def test_unify_does_not_depend_on_the_order(dim: DimVar, data: st.DataObject) -> None:
    size = dim.size
    one, two, three = DimVar(size), DimVar(size), DimVar(size)
    pairs = data.draw(st.permutations([(one, two), (two, three), (three, dim), (dim, one)]))
    for left, right in pairs:
        if data.draw(st.booleans()):
            left, right = right, left
        unify(left, right)
    assert root_of(one) is root_of(two) is root_of(three)
    assert len({repr(axis_of(d, {})) for d in (one, two, three, dim)}) == 1
    assert not any(leaf.reason for leaf in leaves(dim))


@given(dims(), st.integers(1, 40))
def test_factor_conserves_size(dim: DimVar, outer: int) -> None:
    size, joined = dim.size, "concat" in repr(dim)
    first, second = factor(dim, outer)
    assert check(dim) == size
    assert first.size == outer
    if size % outer == 0:
        assert check(first) * check(second) == size
    else:
        assert all("divide" in str(leaf.reason) for leaf in leaves(dim))
    frozen = any(leaf.reason for leaf in leaves(first))
    if joined:  # equal pieces are numbered by a dim that stays
        return
    assert frozen == any(leaf.reason for leaf in leaves(dim)) or outer in (1, size)


@given(st.lists(SIZES, min_size=2, max_size=4))
def test_factor_undoes_product(sizes: list[int]) -> None:
    parts = [DimVar(size) for size in sizes]
    first, rest = factor(product(*parts), sizes[0])
    assert root_of(first) is parts[0]
    assert [root_of(leaf) for leaf in leaves(rest)] == parts[1:]


@given(st.lists(SIZES, min_size=2, max_size=4))
def test_split_undoes_concat(sizes: list[int]) -> None:
    parts = [DimVar(size) for size in sizes]
    assert [root_of(piece) for piece in split(concat(*parts), sizes)] == parts


@given(dims(), st.data())
def test_split_conserves_size(dim: DimVar, data: st.DataObject) -> None:
    size = dim.size
    first = data.draw(st.integers(1, size - 1))
    pieces = split(dim, (first, size - first))
    assert [piece.size for piece in pieces] == [first, size - first]
    assert check(dim) == size
    free = [leaf for leaf in leaves(concat(*pieces)) if not leaf.reason]
    assert free == [leaf for leaf in leaves(dim) if not leaf.reason]


@given(dims(), dims())
def test_freezing_reaches_everything_unified(a: DimVar, b: DimVar) -> None:
    twin = DimVar(a.size)
    unify(twin, a)
    whole = concat(twin, b)
    freeze(whole, "because")
    assert {str(leaf.reason) for leaf in leaves(a)} == {"because"}
    assert {str(leaf.reason) for leaf in leaves(b)} == {"because"}
    freeze(a, "another")
    assert {str(leaf.reason) for leaf in leaves(a)} == {"because"}, "the first reason is kept"
    assert isinstance(axis_of(whole, {}), Fixed)


@given(dims())
def test_unify_with_a_frozen_leaf_freezes(dim: DimVar) -> None:
    unify(DimVar(dim.size, Reason(ReasonKind.NOT_UNITS, "cold")), dim)
    assert {str(leaf.reason) for leaf in leaves(dim)} == {"cold"}


@given(dims(), st.data())
def test_resolved_axes_slice_as_they_multiply(dim: DimVar, data: st.DataObject) -> None:
    groups: dict[DimVar, int] = {}
    axis = axis_of(dim, groups)
    full = [leaf.size for leaf in groups]
    assert size_of(axis, full) == dim.size
    bits = st.integers(0, 1)
    masks = [
        torch.tensor(data.draw(st.lists(bits, min_size=n, max_size=n)), dtype=torch.bool)
        for n in full
    ]
    kept = kept_indices(axis, masks)
    assert kept is None or kept.tolist() == sorted(set(kept.tolist()))
    count = dim.size if kept is None else len(kept)
    assert count == size_of(axis, [int(mask.sum()) for mask in masks])
    spread = entry_values(axis, lambda g: masks[g].double(), lambda n: torch.ones(n).double())
    assert int(spread.sum()) == count


@given(st.lists(SIZES, min_size=1, max_size=4), st.data())
def test_regroup_matches_what_reshape_does(sizes: list[int], data: st.DataObject) -> None:
    """Merging runs of dims and cutting them again gives the same dims back."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(sizes)), max_size=3)) | {len(sizes)})
    merged, start = [], 0
    for cut in cuts:
        merged.append(prod(sizes[start:cut]))
        start = cut
    before = [DimVar(size) for size in sizes]
    between = regroup(before, merged)
    assert [dim.size for dim in between] == merged
    assert [root_of(dim) for dim in regroup(between, sizes)] == before


def test_regroup_across_dims_freezes() -> None:
    before = [DimVar(4), DimVar(9)]
    after = regroup(before, [6, 6])
    assert [dim.size for dim in after] == [6, 6]
    frozen = [leaf for dim in [*before, *after] for leaf in leaves(dim)]
    assert all("cuts across" in str(leaf.reason) for leaf in frozen)


@given(SIZES, st.integers(2, 4), st.booleans())
def test_equal_pieces_are_a_product(size: int, count: int, concat_first: bool) -> None:
    """Three biases laid end to end meet the output of one layer for queries, keys and values."""
    pieces = [DimVar(size) for _ in range(count)]
    number, inner = DimVar(count), DimVar(size)
    sides = concat(*pieces), product(number, inner)
    unify(*(sides if concat_first else sides[::-1]))
    if size > 1:
        assert len({root_of(dim) for dim in (*pieces, inner)}) == 1
        assert root_of(inner).reason is None
        assert root_of(number).reason is not None
        assert factor(sides[0], count)[1] is root_of(inner)


def test_product_meets_concat() -> None:
    a, b = product(DimVar(2), DimVar(3)), concat(DimVar(2), DimVar(4))
    unify(a, b)
    assert all("meets the concatenation" in str(leaf.reason) for d in (a, b) for leaf in leaves(d))


def test_resolve_names_parts() -> None:
    unit, other = DimVar(3), DimVar(4, SPACE)
    groups: dict[DimVar, int] = {}
    assert axis_of(concat(product(unit, DimVar(2, SPACE)), other, unit), groups) == Concat(
        (Product((Units(0), Fixed(2))), Fixed(4), Units(0))
    )


class Body(nn.Module):
    """Linear, something in between, linear."""

    def __init__(self, between, width: int = 6) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 6), nn.Linear(width, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.between(self.one(x)))


def test_unknown_operator_freezes_and_says_so() -> None:
    with pytest.warns(
        GuyotWarning, match=r"cannot shrink: operator aten\.logcumsumexp.* has no rule"
    ):
        structures = find_structures(Body(lambda h: h.logcumsumexp(-1)), (torch.ones(2, 3),))
    assert not structures.groups
    (reason,) = (frozen.reason for frozen in structures.frozen if frozen.name == "one")
    assert "aten.logcumsumexp.default" in reason
    assert "has no rule" in reason


@pytest.mark.filterwarnings("ignore:the dims that these operators touch")
def test_unknown_operator_elsewhere_does_no_harm() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known, self.unknown = Body(torch.relu), Body(lambda h: h.logcumsumexp(-1))

        def forward(self, x: Tensor) -> Tensor:
            return self.known(x) + self.unknown(x)

    structures = find_structures(Two(), (torch.ones(2, 3),))
    assert [group.name for group in structures.groups] == ["known.one"]


def test_a_rule_of_ones_own() -> None:
    def rounded(h: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(h, 0.01, 0, -128, 127)

    target = torch.ops.aten.fake_quantize_per_tensor_affine.default
    assert rule_for(target) is None
    with pytest.warns(GuyotWarning, match="has no rule"):
        assert not find_structures(Body(rounded), (torch.ones(2, 3),)).groups
    try:

        @rule(target)
        def quantize(graph, node):
            (x,) = graph.operands(node, 0)
            return x

        structures = find_structures(Body(rounded), (torch.ones(2, 3),))
        assert [(group.name, group.size) for group in structures.groups] == [("one", 6)]
    finally:
        del _RULES[target]


def test_a_wrong_rule_is_caught_by_verification() -> None:
    target = torch.ops.aten.flip.default
    right = rule_for(target)
    assert right is not None
    try:

        @rule(target)
        def flip(graph, node):
            (x,) = graph.operands(node, 0)
            return x

        with pytest.warns(GuyotWarning, match=r"units of one cannot be removed.*masking"):
            structures = find_structures(Body(lambda h: h.flip(-1)), (torch.ones(2, 3),))
    finally:
        rule(target)(right)
    assert not structures.groups


GROUPS = {
    "broadcast": (Body(lambda h: h * torch.sigmoid(h.mean(1, keepdim=True))), (2, 4, 3), [6]),
    "chunk and product": (Body(lambda h: h.chunk(2, -1)[0] * h.chunk(2, -1)[1], 3), (2, 3), [3]),
    "transpose": (Body(lambda h: torch.relu(h.mT).transpose(1, 2)), (2, 4, 3), [6]),
    "concatenation": (Body(lambda h: torch.cat([h, h.relu()], -1), 12), (2, 3), [6]),
    "flatten": (Body(lambda h: h.mT.flatten(1), 24), (2, 4, 3), [6]),
    "softmax": (Body(lambda h: h.softmax(-1)), (2, 3), []),
    "mean": (Body(lambda h: h - h.mean(-1, keepdim=True)), (2, 3), []),
    "layer norm": (Body(nn.LayerNorm(6)), (2, 3), []),
    "reshape": (Body(lambda h: h.view(-1, 2, 3).relu().flatten(1)), (4, 3), []),
}


@pytest.mark.filterwarnings("ignore::guyot.GuyotWarning")
@pytest.mark.parametrize("name", GROUPS)
def test_what_stands_between(name: str) -> None:
    model, shape, sizes = GROUPS[name]
    structures = find_structures(model, (torch.randn(shape),))
    assert [group.size for group in structures.groups] == sizes
    if not sizes:
        assert any(frozen.name.startswith("one") for frozen in structures.frozen)
