"""Rules for what transformers are made of; verification, which would hide a wrong one, is off."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable

import pytest
import torch
from cases import gates_of, random_plan
from examine import count_macs, masked_against_sliced
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from guyot import find_structures
from guyot.core.types import KeepPlan, Structures
from guyot.costs.complexity import Complexity

SEEDS = st.integers(0, 99)
TOKENS = torch.randint(0, 11, (2, 5), generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """Heads of `size`, `shared` queries for every key; a bias per head and distance if `biased`."""

    def __init__(self, keys: int, shared: int, size: int, how: str, biased: bool) -> None:
        super().__init__()
        self.how, self.size, queries = how, size, keys * shared
        width = 6
        if how == "fused":
            self.qkv = nn.Linear(width, 3 * keys * size)
        else:
            self.q = nn.Linear(width, queries * size)
            self.k, self.v = (nn.Linear(width, keys * size, bias=False) for _ in range(2))
        self.out = nn.Linear(queries * size, width)
        self.table = nn.Embedding(9, queries) if biased else None

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "fused":
            q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.size)).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (f(x).unflatten(-1, (-1, self.size)) for f in (self.q, self.k, self.v))
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        bias = None
        if self.table is not None:
            place = torch.arange(x.shape[1])
            bias = self.table(place[:, None] - place[None, :] + 4).permute(2, 0, 1).unsqueeze(0)
        if self.how == "matmul":
            scores = q @ k.transpose(-2, -1) / self.size**0.5
            mixed = (scores if bias is None else scores + bias).softmax(-1) @ v
        else:
            gqa = q.shape[1] != k.shape[1]
            mixed = functional.scaled_dot_product_attention(q, k, v, bias, enable_gqa=gqa)
        return self.out(mixed.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """`down(silu(gate(x)) * up(x))`, with gate and up in one matrix if `fused`."""

    def __init__(self, hidden: int, fused: bool, split: bool) -> None:
        super().__init__()
        self.split_sizes = split
        if fused:
            self.both = nn.Linear(6, 2 * hidden)
        else:
            self.gate, self.up = nn.Linear(6, hidden, bias=False), nn.Linear(6, hidden)
        self.down, self.fused = nn.Linear(hidden, 6), fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            both = self.both(x)
            gate, up = (
                both.split(both.shape[-1] // 2, -1) if self.split_sizes else both.chunk(2, -1)
            )
        else:
            gate, up = self.gate(x), self.up(x)
        return self.down(functional.silu(gate) * up)


class Product(nn.Module):
    """Two matrices as parameters, multiplied from the right: (in, out), or by einsum."""

    def __init__(self, hidden: int, einsum: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(6, hidden)), nn.Linear(hidden, 6)
        self.einsum = einsum

    def forward(self, x: Tensor) -> Tensor:
        y = torch.einsum("btc,ch->bth", x, self.one) if self.einsum else x @ self.one
        return self.two(y.tanh())


def network(middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Embedding(11, 6), middle, nn.Linear(6, 3))


def agree(model: nn.Module, seed: int, verify: bool = False) -> Structures:
    """Masked and sliced agree, and MACs are those of PyTorch's counter, full and cut."""
    structures = find_structures(model, (TOKENS,), verify=verify)
    cost = Complexity(structures)
    assert float(cost.macs(torch.ones(structures.index.total))) == count_macs(model, (TOKENS,))
    plan = random_plan(structures, seed)
    sliced = copy.deepcopy(model)
    assert masked_against_sliced(sliced, structures, plan, (TOKENS,))[0] < 1e-10
    assert float(cost.macs(gates_of(structures, plan))) == count_macs(sliced, (TOKENS,))
    return structures


@pytest.mark.filterwarnings("ignore:units of 1.v cannot be removed")
@settings(max_examples=8, phases=[Phase.explicit, Phase.generate])
@example(keys=3, shared=2, size=2, how="separate", biased=False, seed=0)  # grouped queries
@example(keys=3, shared=1, size=2, how="separate", biased=True, seed=0)
@example(keys=3, shared=1, size=2, how="matmul", biased=True, seed=0)
@given(
    keys=st.integers(2, 4),
    shared=st.integers(1, 3),
    size=st.integers(2, 3),
    how=st.sampled_from(["fused", "separate", "matmul"]),
    biased=st.booleans(),
    seed=SEEDS,
)
def test_heads(keys: int, shared: int, size: int, how: str, biased: bool, seed: int) -> None:
    shared, biased = (shared, False) if how == "separate" and shared > 1 else (1, biased)
    torch.manual_seed(seed)
    # a forward that states one size for all heads must not lose a part of the values' alone
    attention = network(Attention(keys, shared, size, how, biased))
    structures = agree(attention, seed, verify=how == "matmul")
    found = {group.name: group.size for group in structures.groups}
    assert keys in [n for name, n in found.items() if name not in ("0:2", "1.out")], found
    assert (
        found["0:2"] == found["1.out"] == 6
    )  # widths before and after: nothing but linear readers
    reasons = {frozen.reason for frozen in structures.frozen}
    assert "the entries of 0 are looked up by number" in reasons
    assert any("scores" in r or "in a product of activations" in r for r in reasons)  # head's size


@settings(max_examples=3, phases=[Phase.generate])
@given(hidden=st.integers(3, 7), fused=st.booleans(), split=st.booleans(), seed=SEEDS)
def test_gated_neurons(hidden: int, fused: bool, split: bool, seed: int) -> None:
    torch.manual_seed(seed)
    structures = agree(network(SwiGLU(hidden, fused, split)), seed)
    sizes = {group.name: group.size for group in structures.groups}
    assert sizes == {"0:2": 6, "1.both" if fused else "1.gate": hidden, "1.down": 6}


@settings(max_examples=2, phases=[Phase.generate])
@given(hidden=st.integers(3, 7), einsum=st.booleans(), seed=SEEDS)
def test_products_with_a_parameter(hidden: int, einsum: bool, seed: int) -> None:
    torch.manual_seed(seed)
    structures = agree(network(Product(hidden, einsum)), seed)
    assert sorted(group.size for group in structures.groups) == sorted([6, hidden, 6])


class Encoder(nn.Module):
    """A block of a transformer, with its norms before, after or once for both branches."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(3, 1, 2, "separate", False), SwiGLU(5, False, False)
        self.one, self.two, self.how = nn.LayerNorm(6), nn.LayerNorm(6), how
        self.scale = nn.Parameter(torch.full((6,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "post-norm":
            x = self.one(x + self.attention(x))
            return self.two(x + self.mlp(x))
        if self.how == "parallel":
            y = self.one(x)
            return x + self.attention(y) + self.scale * self.mlp(y)
        x = x + self.scale * self.attention(self.one(x))
        return x + self.mlp(self.two(x))


@pytest.mark.parametrize("gone", [{"attention"}, {"mlp"}, {"attention", "mlp"}])
@pytest.mark.parametrize("how", ["pre-norm", "post-norm", "parallel"])
def test_both_branches_of_a_block_may_go(how: str, gone: set[str]) -> None:
    torch.manual_seed(0)
    model = network(Encoder(how))
    structures = find_structures(model, (TOKENS,))
    inside = [{name.split(".")[1] for name in layer.tensors} for layer in structures.layers]
    (attention,) = (n for n, modules in enumerate(inside) if "attention" in modules)
    assert sorted([attention, 1 - attention]) == [0, 1] and "mlp" in inside[1 - attention]
    assert "scale" in inside[1 - attention if how == "parallel" else attention] or "post" in how
    units = {group.name: group.size for group in structures.groups}
    assert units["1.mlp.gate"] == 5 and 3 in units.values()
    assert any("(LayerNorm) run over it" in frozen.reason for frozen in structures.frozen)

    sliced = copy.deepcopy(model)
    removed = frozenset(n for n in (0, 1) if ("attention" if n == attention else "mlp") in gone)
    difference, left = masked_against_sliced(sliced, structures, KeepPlan({}, removed), (TOKENS,))
    assert difference < 1e-10 and len(left.layers) == 2 - len(gone)
    assert gone.isdisjoint(name.split(".")[1] for name in sliced.state_dict())
    assert float(Complexity(left).full.macs) == count_macs(sliced, (TOKENS,))


class GRN(nn.Module):
    """As in ConvNeXt V2, over tokens: every channel's norm over the mean of all channels'."""

    def forward(self, x: Tensor) -> Tensor:
        norms = x.norm(dim=1, keepdim=True)
        return x + x * norms / (norms.mean(-1, keepdim=True) + 1e-6)


class Between(nn.Module):
    """Something between two linear layers."""

    def __init__(self, what: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 6)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.what(self.one(x)))


REFUSED: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], str]] = {
    "softmax": (lambda: lambda x: x.softmax(-1), r"1 sums over it \(softmax\)"),
    "layer norm": (lambda: nn.LayerNorm(8), r"the statistics of 1.what \(LayerNorm\) run over it"),
    "rms norm": (lambda: nn.RMSNorm(8), r"the statistics of 1.what \(RMSNorm\) run over it"),
    "global response norm": (GRN, "1.what reduces over it"),
    "mean": (lambda: lambda x: x - x.mean(-1, keepdim=True), "1 reduces over it"),
    "sum": (lambda: lambda x: x.cumsum(-1), "1 adds up along it"),
    "roll": (lambda: lambda x: x.roll(1, -1), "1 moves its entries"),
    "lookup": (lambda: lambda x: x[..., [2, 0, 1, 3, 5, 4, 7, 6]], "1 looks its entries up"),
    "product": (lambda: lambda x: x @ x.mT @ x, "sums over it in a product of activations"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_mixes_units_keeps_them(name: str) -> None:
    make, reason = REFUSED[name]
    structures = find_structures(network(Between(make())), (TOKENS,), verify=False)
    assert [group.name for group in structures.groups] == ["0:2", "1.two"]
    (frozen,) = (frozen for frozen in structures.frozen if frozen.name == "1.one")
    assert re.search(reason, frozen.reason), frozen.reason


def test_of_a_group_norm_only_whole_groups_go() -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv1d(8, 2, 1))
    structures = find_structures(model, (torch.randn(2, 3, 5),), verify=False)
    assert [group.size for group in structures.groups] == [4]
    reasons = [frozen.reason for frozen in structures.frozen]
    assert "the statistics of 1 (GroupNorm) run over it" in reasons
