"""Grouped convolutions: all groups lose as many channels, each of them its own."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from cases import conv_bn, gates_of, random_plan
from examine import count_macs, masked_against_sliced, train_and_evaluate
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from oracles import enumerated_mean, gate_values
from torch import Tensor, nn
from torch.nn import functional

from guyot import Discovery, DiscoveryConfig, MisconfiguredError, find_structures
from guyot.core.axis import best, entry_values, kept_indices, spread
from guyot.core.types import (
    Fixed,
    KeepPlan,
    Operation,
    Product,
    Slot,
    Structures,
    TensorShape,
    UnitGroup,
    Units,
    Within,
)
from guyot.costs.complexity import Complexity
from guyot.costs.polynomial import Polynomial
from guyot.costs.polynomial import monomials_of as monomials
from guyot.costs.widths import physical_plan, protect, quanta_of
from guyot.planning.candidates import SearchSpace
from guyot.planning.choice import choose
from guyot.results.rebuild import rebuild
from guyot.surgery import present, shrink_structures
from guyot.surgery.operate import select


def convolution(blocks: int = 2, each: int = 3, outputs: int = 2, fixed: bool = False):
    """A grouped convolution between two others: blocks, their inputs, their outputs."""
    block = Fixed(blocks) if fixed else Units(2)
    before = Product((block, Within(0, block, -1)))
    after = Product((block, Within(1, block, -1)))
    tensors = (
        TensorShape("a", (before, Fixed(3)), (), True),
        TensorShape("b", (after, Within(0, block)), (), True),
        TensorShape("c", (Fixed(2), after), (), True),
    )
    groups = [
        UnitGroup("in", blocks * each, (Slot("a", 0), Slot("b", 1)), (Slot("b", 1),), block=block),
        UnitGroup(
            "out", blocks * outputs, (Slot("b", 0), Slot("c", 1)), (Slot("c", 1),), block=block
        ),
    ]
    if not fixed:
        slots = (Slot("a", 0), Slot("b", 0), Slot("c", 1))
        groups.append(UnitGroup("blocks", blocks, slots, slots[2:]))
    operations = tuple(Operation(t.name, t.axes, ()) for t in tensors)
    return Structures(tuple(groups), (), tensors, operations)


@settings(max_examples=40)
@given(
    blocks=st.integers(2, 4),
    each=st.integers(1, 4),
    shuffled=st.booleans(),
    inner=st.integers(1, 2),
    seed=st.integers(0, 999),
)
def test_indices_and_masks_are_those_of_a_table(
    blocks: int, each: int, shuffled: bool, inner: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    kept = int(torch.randint(1, each + 1, (), generator=generator))
    stay = torch.rand(blocks, generator=generator) < 0.7
    stay[int(torch.randint(blocks, (), generator=generator))] = True
    own = torch.zeros(blocks * each, dtype=torch.bool)
    own[best(torch.rand(blocks * each, generator=generator), blocks * kept, blocks)] = True
    own &= stay.repeat_interleave(each)
    block, units = Units(1), Within(0, Units(1), 1 if shuffled else -1)
    parts = (units, block, Fixed(inner)) if shuffled else (block, units, Fixed(inner))
    masks = [own, stay]
    table = own.view(blocks, each)
    # where every entry of the smaller dimension was: (place in its block, block) -> unit
    left = [b for b in range(blocks) if stay[b]]
    of = {b: table[b].nonzero().flatten().tolist() for b in left}
    order = product(range(kept), left) if shuffled else ((j, b) for b in left for j in range(kept))
    expected = [
        (of[b][j] * blocks + b if shuffled else b * each + of[b][j]) * inner + k
        for j, b in order
        for k in range(inner)
    ]
    found = kept_indices(Product(parts), masks)
    assert (list(range(blocks * each * inner)) if found is None else found.tolist()) == expected
    mask = entry_values(
        Product(parts), masks.__getitem__, lambda n: torch.ones(n, dtype=torch.bool)
    )
    assert mask.nonzero().flatten().tolist() == sorted(expected)
    # alone in a dimension: every block of rows has its own columns
    axes = (Product((block, Fixed(2))), Within(0, block), Fixed(1))
    weight = torch.arange(2 * blocks * each).view(2 * blocks, each, 1)
    sliced = select(weight, tuple(kept_indices(axis, masks) for axis in axes))
    rows = [2 * b + r for b in left for r in range(2)]
    assert sliced.squeeze(-1).tolist() == [[r * each + i for i in of[r // 2]] for r in rows]
    ones = lambda n: torch.ones(n, dtype=torch.bool)  # noqa: E731
    shown = spread(axes, 1, masks.__getitem__, ones)
    assert torch.equal(shown.squeeze(-1), table.repeat_interleave(2, 0))


def test_the_expected_width_is_that_of_enumeration() -> None:
    structures = convolution(blocks=2, each=2, outputs=1)
    index = structures.index
    assert (index.blocks, index.total) == ((2, 2, 1), 8)
    cost = Polynomial(monomials(structures.operations[1].axes), index)
    theta = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def exact(gates: Tensor) -> Tensor:
        inputs, outputs, blocks = (gates[index.units(g)].sum() for g in range(3))
        return blocks * (inputs / 2) * (outputs / 2)

    torch.testing.assert_close(cost.expected(theta), enumerated_mean(exact, theta))
    full = torch.ones(index.total)
    assert float(cost.expected(full)) == 2 * 2 * 1
    full[[0, 3]] = 0  # another unit of each block
    assert float(cost.expected(full)) == 2 * 1 * 1


def test_blocks_of_different_width_are_refused() -> None:
    structures = convolution()
    uneven = KeepPlan({0: torch.tensor([0, 1, 2, 4])})
    with pytest.raises(MisconfiguredError, match=r"keeps \[3, 1\] units in the blocks of in: keep"):
        shrink_structures(structures, uneven)
    # a block that goes does not count
    gone = KeepPlan({0: uneven.kept[0], 2: torch.tensor([1])})
    assert [int(mask.sum()) for mask in present(structures, gone)] == [1, 2, 1]
    left = shrink_structures(structures, gone).structures
    assert [group.size for group in left.groups] == [1, 2, 1]
    assert [left.blocks_of(group) for group in left.groups] == [1, 1, 1]


def test_units_wait_until_every_block_can_lose_one() -> None:
    structures = convolution(blocks=2, each=3)
    quanta = quanta_of(structures, 1)
    assert quanta == (2, 2, 1)
    alive = torch.ones(structures.index.total, dtype=torch.bool)
    alive[[0, 1]] = False  # two units of the first block
    assert physical_plan(structures, alive, quanta).empty
    alive[4] = False  # and one of the second
    plan = physical_plan(structures, alive, quanta)
    assert plan.kept[0].tolist() == [0, 2, 3, 5]  # one of the dead ones stays, as zeros
    alive[structures.index.units(2)] = torch.tensor([True, False])  # the second block is given up
    plan = physical_plan(structures, alive, quanta)
    assert plan.kept[2].tolist() == [0]
    assert [int(mask.sum()) for mask in present(structures, plan)] == [1, 2, 1]


def test_a_block_has_a_width_that_suits_the_device() -> None:
    eight = convolution(blocks=4, each=16, fixed=True)
    assert quanta_of(eight, 8) == (8, 8)  # two of each block: eight channels
    assert quanta_of(convolution(blocks=6, each=16), 4) == (12, 12, 4)


def test_the_best_units_of_every_block_stay() -> None:
    structures = convolution(blocks=2, each=3, fixed=True)
    theta = torch.tensor([0.9, 0.8, 0.7, 0.1, 0.3, 0.2, 1, 1, 1, 1])
    ones = torch.ones_like(theta)
    cost = Complexity(structures)
    space = SearchSpace(structures, cost, quanta_of(structures, 1))
    chosen = choose(space, gate_values(theta, ones, ones), target=0.7)
    mask = chosen.mask[:6].view(2, 3)
    assert mask.sum(1).tolist() in ([1, 1], [2, 2])
    assert mask[0, 0] and mask[1, 1]
    none = torch.zeros(structures.index.total, dtype=torch.bool)
    kept = protect(none, theta, structures, quanta_of(structures, 1))
    assert kept.nonzero().flatten().tolist() == [0, 4, 6, 8]


def network(
    groups: int, each: int, outputs: int, transposed: bool, middle: nn.Module
) -> nn.Sequential:
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    return nn.Sequential(
        *conv_bn(3, groups * each),
        nn.ReLU(),
        kind(groups * each, groups * outputs, 3, padding=1, groups=groups),
        nn.BatchNorm2d(groups * outputs),
        nn.ReLU(),
        middle,
        nn.Conv2d(groups * outputs, 4, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


@settings(max_examples=4, phases=[Phase.generate])
@given(
    groups=st.integers(2, 4),
    each=st.integers(2, 4),
    outputs=st.integers(2, 3),
    kind=st.sampled_from(["plain", "shuffled", "transposed"]),
    seed=st.integers(0, 99),
)
def test_masked_and_sliced_agree(
    groups: int, each: int, outputs: int, kind: str, seed: int
) -> None:
    torch.manual_seed(seed)
    middle = nn.ChannelShuffle(groups) if kind == "shuffled" else nn.Identity()
    model = network(groups, each, outputs, kind == "transposed", middle)
    x = torch.randn(2, 3, 5, 5)
    structures = find_structures(model, (x,))
    sizes = sorted(group.size for group in structures.groups if group.block != Fixed(1))
    assert sizes == sorted([groups * each, groups * outputs])
    cost = Complexity(structures)
    assert float(cost.macs(torch.ones(structures.index.total))) == count_macs(model, (x,))
    plan = random_plan(structures, seed)
    sliced = copy.deepcopy(model)
    difference, left = masked_against_sliced(sliced, structures, plan, (x,))
    assert difference < 1e-10
    assert float(cost.macs(gates_of(structures, plan))) == count_macs(sliced, (x,))
    assert float(cost.params(gates_of(structures, plan))) == sum(
        p.numel() for p in sliced.parameters()
    )
    again = random_plan(left, seed + 1)  # and a second removal, in the numbering of the first
    difference, _ = masked_against_sliced(sliced, left, again, (x,))
    assert difference < 1e-10
    train_and_evaluate(sliced, (x,))


class Mixed(nn.Module):
    """A matrix that all blocks share looks at their units."""

    def __init__(self, groups: int, each: int) -> None:
        super().__init__()
        self.groups, self.each = groups, each
        self.mix = nn.Linear(each, each)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(1, (self.groups, -1)).permute(0, 1, 3, 4, 2)
        return self.mix(rows).permute(0, 1, 4, 2, 3).flatten(1, 2)


def test_units_that_all_blocks_share_go_from_all_at_once() -> None:
    torch.manual_seed(0)
    model = network(2, 3, 4, False, Mixed(2, 4))
    x = torch.randn(2, 3, 5, 5)
    structures = find_structures(model, (x,))
    found = {g.name: (g.size, isinstance(g.block, Units)) for g in structures.groups}
    assert found == {
        "0": (2, False),
        "0:2": (6, True),
        "3": (4, False),
        "6.mix": (4, False),
        "7": (4, False),
    }
    plan = random_plan(structures, 1)
    assert masked_against_sliced(copy.deepcopy(model), structures, plan, (x,))[0] < 1e-10


@pytest.mark.filterwarnings("ignore:target=0.4 was not met")
def test_a_run_cuts_grouped_convolutions_and_is_built_again() -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return network(3, 4, 4, False, nn.Identity())

    x = torch.randn(8, 3, 6, 6)
    model = build()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-3)
    config = DiscoveryConfig(round_to=1)
    discovery = Discovery(
        model, (x,), optimizer, total_steps=100, target=0.4, beta=0, config=config
    )
    for _ in range(100):
        functional.cross_entropy(model(x), torch.arange(8) % 2).backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
    discovery.finish().eval()
    assert count_macs(model, (x,)) == discovery.macs < 0.45 * discovery.full_macs
    conv = model[3]
    assert isinstance(conv, nn.Conv2d) and conv.weight.shape[0] == conv.out_channels
    assert (conv.in_channels, conv.out_channels) < (12, 12)
    assert conv.out_channels == model[4].num_features
    again = rebuild(build(), (x,), discovery.structure)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model(x))
