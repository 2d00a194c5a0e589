"""What verification tries, and that how often it cuts the network does not follow its depth."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from itertools import combinations, pairwise, permutations

import pytest
import torch
from cases import Baked
from torch import Tensor, nn

from guyot import find_structures
from guyot.app.models import build
from guyot.core.axis import groups_in
from guyot.core.types import KeepPlan, Structures
from guyot.structures.verify.verify import Verifier, groups_apart, layers_apart
from guyot.surgery import operate


class Checked(nn.Module):
    """A branch that goes by stand-ins only, since its `forward` checks what its norm makes."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        torch._assert(y.shape[-1] == 12, "another width")
        return x + self.linear(y)


class Written(nn.Module):
    """A length is a number that no remedy follows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 8), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> Tensor:
        assert self.one.weight.shape[0] == 8, "eight it has to be"
        return self.two(self.one(x).relu())


class Splitting(nn.Module):
    """Adds in a `forward` that states lengths, so that it is written anew when units go."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.mix, self.out = nn.Linear(12, 12), nn.Linear(6, 6), nn.Linear(6, 12)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).split([6, 6], -1)
        y = left * right
        return self.out(y + self.mix(y.relu()))


class Around(nn.Module):
    """A branch with another one inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Splitting()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Thrice(nn.Module):
    """A branch with another one inside that holds a third."""

    def __init__(self) -> None:
        super().__init__()
        self.around, self.last = Around(), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.around(x))


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[KeepPlan]:
    """The plans that verification tries from here on."""
    plans: list[KeepPlan] = []
    trouble = Verifier._trouble

    def counted(self: Verifier, plan: KeepPlan, train: bool) -> str | None:
        plans.append(plan)
        return trouble(self, plan, train)

    monkeypatch.setattr(Verifier, "_trouble", counted)
    return plans


def found(block: Callable[[], nn.Module], depth: int) -> Structures:
    torch.manual_seed(0)
    ends = nn.Linear(5, 12), nn.Linear(12, 2)
    model = nn.Sequential(ends[0], *(block() for _ in range(depth)), ends[1])
    return find_structures(model, (torch.randn(2, 4, 5),))


def test_modules_of_a_class_are_written_anew_together(tries: list[KeepPlan]) -> None:
    assert len(found(Baked, 2).restated) == 2
    few = len(tries)
    tries.clear()
    structures = found(Baked, 8)
    assert len(structures.restated) == 8
    assert sum(group.size == 3 for group in structures.groups) == 8
    assert len(tries) <= few + 4  # halving, twice the depth each


def test_layers_that_would_stay_in_part_are_known_without_a_try(tries: list[KeepPlan]) -> None:
    assert len(found(Checked, 2).layers) == 2
    few = len(tries)
    tries.clear()
    structures = found(Checked, 8)
    assert len(structures.layers) == 8 and all(layer.stand_ins for layer in structures.layers)
    assert len(tries) == few


@pytest.mark.parametrize(
    ("name", "most"),
    [("resnet20", 3), pytest.param("torchvision:densenet121", 7, marks=pytest.mark.slow)],
)
def test_groups_that_meet_are_cut_one_without_the_other(name: str, most: int) -> None:
    structures = find_structures(build(name), (torch.zeros(2, 3, 32, 32),), verify=False)
    parts = [set(part) for part in groups_apart(structures)]
    meeting = [{g for axis in t.axes for g in groups_in(axis)} for t in structures.tensors]
    pairs = {pair for groups in meeting for pair in permutations(groups, 2)}
    assert len(pairs) > 10 and len(parts) <= most
    for one, other in pairs:
        assert any(one in part and other not in part for part in parts)


@pytest.mark.filterwarnings("ignore:units of")
def test_every_culprit_is_found_among_the_sound() -> None:
    structures = found(lambda: nn.Sequential(Written(), nn.Linear(12, 9), nn.Linear(9, 12)), 3)
    sound = {f"{n}.{part}" for n in (1, 2, 3) for part in ("0.two", "1", "2")}
    assert {group.name for group in structures.groups} == sound | {"0"}
    reasons = {f.name: f.reason for f in structures.frozen}
    assert all("eight it has to be" in reasons[f"{n}.0.one"] for n in (1, 2, 3))


def test_a_block_that_lost_a_branch_is_kept_off_its_fused_operator() -> None:
    """It takes the weights of both branches, whatever has become of their modules."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True)
    model, x = nn.Sequential(nn.Linear(5, 12), block), torch.ones(2, 4, 5)
    structures = find_structures(model, (x,))
    assert [layer.name for layer in structures.layers] == ["1", "1:2"]
    assert any("self_attn" in group.name for group in structures.groups)
    model.eval()
    for number in (0, 1):
        cut = copy.deepcopy(model)
        operate(cut, structures, KeepPlan({}, frozenset([number])))
        with torch.no_grad():
            y = model[0](x)
            first = block.norm1(y if number == 0 else y + block._sa_block(y, None, None))
            second = block.norm2(first if number == 1 else first + block._ff_block(first))
            torch.testing.assert_close(cut(x), second)
        assert not torch.equal(cut.train()(x), second)  # dropout


@pytest.mark.filterwarnings("ignore:layer", "ignore:units of")
@pytest.mark.parametrize(("block", "outer"), [(Around, ""), (Thrice, ".around")])
def test_a_branch_inside_others_is_tried_where_those_stay(
    block: Callable[[], nn.Module], outer: str
) -> None:
    """Whatever subset of groups and layers goes, the module that is cut runs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), block(), block(), nn.Linear(12, 2))
    structures = find_structures(model, (torch.randn(2, 5),))
    assert {f"1{outer}", f"2{outer}"} <= {layer.name for layer in structures.layers}
    assert any(group.name.endswith("both") for group in structures.groups)
    cut = {n: torch.arange(1, g.size) for n, g in enumerate(structures.groups)}
    layers = range(len(structures.layers))
    for gone in (c for n in range(len(layers) + 1) for c in combinations(layers, n)):
        smaller = copy.deepcopy(model)
        operate(smaller, structures, KeepPlan(cut, frozenset(gone)))
        assert smaller(torch.randn(2, 5)).isfinite().all()


def test_each_layer_is_in_a_set_without_the_next_one_and_without_those_around_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 12), Thrice(), Thrice(), nn.Linear(12, 2))
    structures = find_structures(model, (torch.randn(2, 5),), verify=False)
    parts = [set(part) for part in layers_apart(structures)]
    assert sorted(n for part in parts for n in part) == list(range(6))
    assert len(parts) == 3
    for together in map(set, [*structures.holders.values(), *pairwise(range(6))]):
        assert all(len(together & part) <= 1 for part in parts)


@pytest.mark.filterwarnings("ignore:layer", "ignore:units of")
def test_trials_that_fail_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:

    class Talking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(12, 8), nn.Linear(8, 12)

        def forward(self, x: Tensor) -> Tensor:
            if len(self.one.weight) != 8:
                sys.stderr.write("eight it has to be")
                raise ValueError("eight it has to be")
            return self.two(self.one(x).relu())

    reasons = {frozen.name: frozen.reason for frozen in found(Talking, 2).frozen}
    assert "does not run without it" in reasons["1.one"]
    assert not capsys.readouterr().err
