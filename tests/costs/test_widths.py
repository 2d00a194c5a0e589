"""Physical widths: whole quanta go, nothing that is alive ever does."""

from __future__ import annotations

import pytest
import torch
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from oracles import residual_network
from torch import Tensor, nn

from guyot import MisconfiguredError, find_structures
from guyot.costs.widths import physical_plan, protect, quanta_of
from guyot.surgery import masks_of

NETWORK = residual_network(stream=5, inner=(4, 7))
TOTAL = NETWORK.index.total
FLAGS = st.lists(st.booleans(), min_size=TOTAL, max_size=TOTAL).map(torch.tensor)
QUANTA = st.tuples(*[st.integers(1, 9)] * 3)
SCORES = st.lists(st.floats(-5, 5), min_size=TOTAL, max_size=TOTAL).map(torch.tensor)


def units(flat: Tensor, group: int) -> Tensor:
    return flat[NETWORK.index.units(group)]


@given(FLAGS, QUANTA)
def test_physical_widths(alive: Tensor, quanta: tuple[int, ...]) -> None:
    plan = physical_plan(NETWORK, alive, quanta)
    for number, (group, mask) in enumerate(
        zip(NETWORK.groups, masks_of(NETWORK, plan), strict=True)
    ):
        wanted, width = int(units(alive, number).sum()), int(mask.sum())
        assert bool(mask[units(alive, number)].all()), "a unit that is alive went"
        assert width == group.size or width % quanta[number] == 0
        assert width >= 1
        smaller = width - quanta[number]
        assert width == 1 or smaller < wanted or smaller < 1, "a whole quantum could go"
        if number in plan.kept:
            kept = plan.kept[number]
            assert kept.tolist() == sorted(set(kept.tolist()))
            assert len(kept) < group.size
    gone = {n for n in range(2) if not alive[NETWORK.index.layer(n)]}
    assert plan.removed_layers == gone


@given(FLAGS)
def test_the_plan_of_a_whole_network_is_empty(alive: Tensor) -> None:
    assert physical_plan(NETWORK, torch.ones_like(alive), [3, 3, 3]).empty


@given(FLAGS, SCORES, QUANTA)
def test_protection(alive: Tensor, score: Tensor, quanta: tuple[int, ...]) -> None:
    saved = protect(alive, score, NETWORK, quanta)
    stream = units(saved, 0)
    least = min(5, quanta[0])
    assert int(stream.sum()) == max(least, int(units(alive, 0).sum()))
    assert bool((stream | ~units(alive, 0)).all()), "what was alive stays"
    revived = stream & ~units(alive, 0)
    left_out = ~stream
    if bool(revived.any()) and bool(left_out.any()):
        assert units(score, 0)[revived].min() >= units(score, 0)[left_out].max()
    for layer in range(2):
        inner, gate = layer + 1, NETWORK.index.layer(layer)
        assert saved[gate] == alive[gate], "units never take their layer with them"
        if alive[gate] and not units(alive, inner).any():
            (last,) = units(saved, inner).nonzero().flatten().tolist()
            assert units(score, inner)[last] == units(score, inner).max()
        else:
            assert torch.equal(units(saved, inner), units(alive, inner))


@given(FLAGS, SCORES, QUANTA)
def test_protection_is_idempotent_and_pure(
    alive: Tensor, score: Tensor, quanta: tuple[int, ...]
) -> None:
    before = alive.clone()
    once = protect(alive, score, NETWORK, quanta)
    assert torch.equal(alive, before)
    assert torch.equal(protect(once, score, NETWORK, quanta), once)


def test_home_layers() -> None:
    assert [NETWORK.home_of(group) for group in NETWORK.groups] == [None, 0, 1]
    case = CASES["nested"]
    structures = find_structures(case.build(), (case.inputs(),))
    names = [layer.name for layer in structures.layers]
    homes = {
        group.name: None if home is None else names[home]
        for group in structures.groups
        for home in [structures.home_of(group)]
    }
    assert homes == {"0": None, "1.first": "1", "1.inner.first": "1.inner", "2.first": "2"}


def test_quanta() -> None:
    names = [group.name for group in NETWORK.groups]
    assert quanta_of(NETWORK, 4) == (4, 4, 4)
    assert quanta_of(NETWORK, {names[1]: 8}) == (1, 8, 1)
    assert quanta_of(NETWORK, {}) == (1, 1, 1)
    for bad in (0, -8, {names[0]: 0}):
        with pytest.raises(MisconfiguredError, match="multiples of 1 or more"):
            quanta_of(NETWORK, bad)
    with pytest.raises(MisconfiguredError, match=r"round_to='other' matches no group"):
        quanta_of(NETWORK, {"other": 8})


class Attention(nn.Module):
    """Heads of some entries, a bias per head, and an output that reads the heads."""

    def __init__(self, heads: int, entries: int) -> None:
        super().__init__()
        self.heads, self.entries = heads, entries
        self.qkv = nn.Linear(5, 3 * heads * entries)
        self.bias = nn.Parameter(torch.randn(heads, 1, 1))
        self.out = nn.Linear(heads * entries, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.entries)).permute(2, 0, 3, 1, 4)
        scores = (q @ k.mT + self.bias).softmax(-1)
        return self.out((scores @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("entries", "round_to", "quantum"), [(8, 8, 1), (12, 8, 2), (3, 8, 8), (4, 2, 1), (5, 1, 1)]
)
def test_a_head_counts_with_all_its_entries(entries: int, round_to: int, quantum: int) -> None:
    structures = find_structures(Attention(4, entries), (torch.randn(2, 3, 5),))
    (heads,) = structures.groups
    assert (heads.size, heads.stride) == (4, entries)
    assert quanta_of(structures, round_to) == (quantum,)
    assert quanta_of(structures, {heads.name: round_to}) == (quantum,)
