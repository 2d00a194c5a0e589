"""Large networks are verified on narrow twins: the verdicts are those of the whole."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from architectures import architecture
from torch import Tensor, nn

from guyot import find_structures
from guyot.core.errors import MisconfiguredError
from guyot.core.inputs import Inputs, sharing_copy
from guyot.core.types import Structures
from guyot.structures import trace as tracing
from guyot.structures.axis_graph import AxisGraph
from guyot.structures.rules import rule_for
from guyot.structures.trace import trace
from guyot.structures.verify import narrow
from guyot.structures.verify.narrow import Twin, narrow_twins
from guyot.structures.verify.verify import Verifier


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each twin computed what the graph says; small networks get twins, too."""
    monkeypatch.setattr(tracing, "LARGE", 0)
    monkeypatch.setattr(narrow, "SHORT", 2)
    found: list[bool] = []
    as_in_graph = Verifier.as_in_graph

    def noting(*args: object) -> bool:
        found.append(as_in_graph(*args))  # pyright: ignore[reportArgumentType]
        return found[-1]

    monkeypatch.setattr(Verifier, "as_in_graph", noting)
    return found


def found_in(model: nn.Module, inputs: Inputs) -> Structures:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return find_structures(model, inputs)


def twins_of(model: nn.Module, inputs: Inputs) -> list[Twin]:
    graph = AxisGraph(trace(model, inputs), model, rule_for)
    graph.run()
    return list(narrow_twins(model, inputs, graph))


def without_lengths(structures: Structures) -> Structures:
    """Return structures whose reasons quote no lengths: those of a twin are its own."""
    frozen = tuple(replace(f, reason=re.sub(r"\d+", "N", f.reason)) for f in structures.frozen)
    return replace(structures, frozen=frozen)


def same_without_twins(patch: pytest.MonkeyPatch, seed: int) -> bool:
    model, inputs = architecture(seed)
    patch.setattr(tracing, "LARGE", 0)
    found = found_in(model, inputs)
    patch.setattr(tracing, "LARGE", 10**12)
    return without_lengths(found) == without_lengths(found_in(model, inputs))


def test_the_verdicts_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, verdicts: list[bool]
) -> None:
    assert all(same_without_twins(monkeypatch, seed) for seed in (1, 5, 9, 18))
    assert verdicts.count(True) >= 3


@pytest.mark.slow
def test_the_verdicts_on_many_random_architectures(
    monkeypatch: pytest.MonkeyPatch, verdicts: list[bool]
) -> None:
    other = [seed for seed in range(11, 111) if not same_without_twins(monkeypatch, seed)]
    assert not other
    assert verdicts.count(True) >= 20


class Attention(nn.Module):
    """Heads whose width is stated by an attribute, halves of which are turned."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size, self.num_heads, self.head_dim = 144, 4, 36
        self.query, self.key = nn.Linear(144, 144), nn.Linear(144, 144)
        self.value, self.out = nn.Linear(144, 144), nn.Linear(144, 144)

    def forward(self, x: Tensor) -> Tensor:
        shape = (x.shape[0], x.shape[1], self.num_heads, self.head_dim)
        q, k, v = (
            part(x).view(shape).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        low, high = q.chunk(2, -1)
        mixed = nn.functional.scaled_dot_product_attention(torch.cat((-high, low), -1), k, v)
        return self.out(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], self.hidden_size))


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.norm = nn.Embedding(500, 144), nn.LayerNorm(144)
        self.attention, self.head = Attention(), nn.Linear(144, 500)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids.view(-1, ids.shape[-1]))
        return self.head(x + self.attention(self.norm(x)))


def test_what_never_shrinks_is_narrow_as_well(verdicts: list[bool]) -> None:
    model, ids = Text(), torch.arange(490, 500).view(2, 5)
    twin = twins_of(model, ids)[0]
    assert isinstance(twin.model, Text)
    words, attention = twin.model.words, twin.model.attention
    assert words.weight.numel() < model.words.weight.numel() / 10
    assert attention.head_dim < 36
    assert attention.head_dim * attention.num_heads == attention.hidden_size
    assert twin.model.norm.normalized_shape == (attention.hidden_size,)
    assert int(torch.as_tensor(twin.inputs).max()) < len(words.weight)
    assert [layer.owner for layer in found_in(model, ids).layers] == [""]
    assert verdicts == [True]


def test_equal_lengths_stay_equal_and_others_do_not() -> None:
    sizes = (5, 1600, 1800, 1600, 1000, 700)
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    twin = twins_of(model, torch.ones(2, 5))[0]
    short = [module.weight.shape[0] for module in twin.model if isinstance(module, nn.Linear)]
    assert short[0] == short[2]
    assert len(set(short)) == 4 and max(short) < 20
    assert not twins_of(nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 2)), torch.ones(2, 5))


class Sized(nn.Module):
    """Takes another way where it is wide."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 40), nn.Linear(40, 40), nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).relu()
        return self.three(self.two(x) if x.shape[1] > 20 else x)


def test_a_forward_that_depends_on_a_length_is_verified_as_it_is(verdicts: list[bool]) -> None:
    found = found_in(Sized(), torch.ones(2, 6))
    assert verdicts and True not in verdicts
    assert {group.name: group.size for group in found.groups} == {"one": 40, "two": 40}


def test_a_network_without_weights() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 1 << 20), nn.ReLU(), nn.Linear(1 << 20, 1 << 20))
        model.append(nn.Linear(1 << 20, 4))
    found = find_structures(model, torch.ones(2, 8))
    assert {group.name: group.size for group in found.groups} == {"0": 1 << 20, "2": 1 << 20}
    assert all(parameter.is_meta for parameter in model.parameters())
    assert found == find_structures(model, torch.ones(2, 8, device="meta"))


def test_a_network_without_weights_that_has_no_twin() -> None:
    with torch.device("meta"):
        model = Sized()
    with pytest.raises(MisconfiguredError, match=r"no weights to check.*to_empty.*verify=False"):
        find_structures(model, torch.ones(2, 6))
    assert len(find_structures(model, torch.ones(2, 6), verify=False).groups) == 2


class Clamping(nn.Module):
    """Its `forward` writes its own weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.one.weight.clamp_(-0.1, 0.1)
        return self.two(self.one(x))


@pytest.mark.parametrize("large", [0, 10**12])
def test_tracing_leaves_weights_alone(monkeypatch: pytest.MonkeyPatch, large: int) -> None:
    monkeypatch.setattr(tracing, "LARGE", large)
    model = Clamping()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    found_in(model, torch.ones(2, 6))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert addresses == [parameter.data_ptr() for parameter in model.parameters()]


def test_a_copy_that_shares_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    copy = sharing_copy(model)
    assert copy[1].weight is copy[0].weight is not model[0].weight
    assert copy[0].weight.data_ptr() == model[0].weight.data_ptr()
