"""Operators beside convolutions and matrices: units pass by them, and what they cost is counted.

`find_structures` compares masked and sliced networks in float64, so a wrong rule shows as a group
that is refused with a warning, which is an error here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import clamped, counted, random_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from guyot import Discovery, DiscoveryConfig, MisconfiguredError, find_structures
from guyot.core.reasons import ReasonKind
from guyot.costs.complexity import Complexity
from guyot.surgery import operate


class Through(nn.Module):
    """Two convolutions with an operator between them, on an image (batch, channels, 4, 6)."""

    def __init__(self, operator: Callable[[Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.operator = operator
        self.first = nn.Conv2d(2, width, 1)
        seen = operator(torch.zeros(4, width, 4, 6)).shape[1]
        self.second, self.last = nn.Conv2d(seen, width + 3, 1), nn.Conv2d(width + 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.operator(torch.tanh(self.first(x)))
        return self.last(torch.tanh(self.second(x)))


PAIRS = torch.tensor([3, 0, 2, 1])


def places(x: Tensor, dim: int) -> Tensor:
    return x.argsort(dim=dim).detach()


OPERATORS: dict[str, Callable[[Tensor], Tensor]] = {
    "concat": lambda x: torch.concat([x, x.relu()], 1),
    "concatenate": lambda x: torch.concatenate([x, x.relu()], dim=1),
    "hstack": lambda x: torch.hstack((x, x.cos())),
    "swapdims": lambda x: x.swapdims(1, 2).cos().swapdims(2, 1),
    "moveaxis": lambda x: x.movedim((1, 2), (-2, -1)).cos().movedim((-2, -1), (1, 2)),
    "max": lambda x: x.max(-1, keepdim=True).values,
    "min": lambda x: x.min(2, keepdim=True)[0],
    "median": lambda x: x.median(3, keepdim=True)[0],
    "aminmax": lambda x: x.aminmax(dim=3, keepdim=True)[1],
    "std_mean": lambda x: torch.std_mean(x, (2, 3), keepdim=True)[1],
    "var_mean": lambda x: torch.var_mean(x, dim=(2, 3), keepdim=True)[0],
    "sort": lambda x: x.sort(dim=2, descending=True)[0],
    "topk": lambda x: x.topk(3, dim=-1).values,
    "cummax": lambda x: x.cummax(3).values,
    "diff": lambda x: x.diff(dim=2),
    "gather": lambda x: x.gather(2, places(x, 2)),
    "take_along_dim": lambda x: x.take_along_dim(places(x, 3), 3),
    "index_add": lambda x: torch.zeros_like(x).index_add(0, PAIRS, x),
    "index_copy": lambda x: torch.zeros_like(x).index_copy(0, PAIRS, x.sin()),
    "index_fill": lambda x: x.index_fill(2, torch.tensor([0, 2]), 1.0),
    "scatter_add": lambda x: torch.zeros_like(x).scatter_add(3, places(x, 3), x),
    "scatter": lambda x: torch.zeros_like(x).scatter(2, places(x, 2), x),
    "tile": lambda x: x.tile(2, 1),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "unfold": lambda x: x.unfold(2, 3, 1).mean(-1),
    "fold": lambda x: F.fold(F.unfold(x, 2, padding=1), (4, 6), 2, padding=1),
    "grid_sample": lambda x: F.grid_sample(x, x.new_zeros(len(x), 3, 2, 2), align_corners=True),
    "max_unpool": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "rfft": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=x.shape[2:]),
    "fft": lambda x: torch.fft.ifft(torch.fft.fft(x, dim=2), dim=2).real,
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(3, (3, 2)))).flatten(
        3
    ),
    "tensor_split": lambda x: torch.cat(torch.tensor_split(x, 2, dim=3), 2),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_units_pass_by(name: str) -> None:
    torch.manual_seed(0)
    model = Through(OPERATORS[name], 7)
    structures = find_structures(model, (torch.randn(4, 2, 4, 6),))
    assert [group.name for group in structures.groups] == ["first", "second"]
    assert not any(frozen.kind is ReasonKind.NO_RULE for frozen in structures.frozen)


class Costly(nn.Module):
    """An operator that costs, between linear layers."""

    def __init__(self, middle: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first, self.middle = nn.Linear(5, inputs), middle
        self.hidden, self.last = nn.Linear(outputs, 9), nn.Linear(9, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(torch.tanh(self.first(x)))
        return self.last(torch.tanh(self.hidden(y[0] if isinstance(y, tuple) else y)))


def macs(model: nn.Module, x: Tensor) -> float:
    structures = find_structures(model, (x,))
    complexity = Complexity(structures)
    return float(complexity.macs(torch.ones(structures.index.total)))


class Dot(nn.Module):
    """A product of weights that the input decides: no sample has it alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mixed = nn.Parameter(torch.randn(3, width, width))

    def forward(self, x: Tensor) -> Tensor:
        share = x.mean((0, 1))[:3].softmax(0)
        return x @ torch.tensordot(share, self.mixed, dims=1)


@settings(max_examples=4, deadline=None)
@given(st.integers(3, 9), st.integers(1, 2), st.booleans())
def test_recurrent_macs_are_all_there(width: int, layers: int, both: bool) -> None:
    """As PyTorch's own counter where it counts: it does not count an LSTM on a CPU."""
    x, ways = torch.randn(3, 4, 5), 1 + both
    for kind, gates in ((nn.GRU, 3), (nn.RNN, 1), (nn.LSTM, 4)):
        middle = kind(width, width, layers, batch_first=True, bidirectional=both)
        model = Costly(middle, width, ways * width)
        per_token = sum(
            ways * gates * width * ((width if layer == 0 else ways * width) + width)
            for layer in range(layers)
        )
        other = 5 * width + ways * width * 9 + 9 * 2
        assert macs(model, x) == 4 * (per_token + other)
        if kind is not nn.LSTM:
            assert macs(model, x) == counted(model, x)


@settings(max_examples=4, deadline=None)
@given(st.integers(3, 9), st.integers(2, 6))
def test_bilinear_and_tensordot_macs(width: int, outputs: int) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = nn.Bilinear(width, width, outputs)

        def forward(self, x: Tensor) -> Tensor:
            return self.both(x, x)

    linear = 5 * width + outputs * 9 + 9 * 2
    assert macs(Costly(Twice(), width, outputs), torch.randn(3, 4, 5)) == 4 * (
        linear + outputs * width * width
    )
    model = Costly(Dot(width), width, width)
    x = torch.randn(1, 4, 5)
    assert macs(model, x) == counted(model, x)


def test_a_target_below_what_cannot_shrink_is_refused() -> None:
    model = Costly(nn.LSTM(6, 40, proj_size=5), 6, 5)
    x = torch.randn(3, 4, 5)
    structures = find_structures(model, (x,), ignore="middle")
    tokens = 4 * (5 * 6 + 160 * (6 + 5) + 5 * 40 + 5 * 9 + 9 * 2)
    assert float(Complexity(structures).macs(torch.ones(structures.index.total))) == tokens
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    config = DiscoveryConfig(round_to=1, ignore="middle")
    with pytest.raises(MisconfiguredError, match=r"target=0\.2 is below 0\.9\d+, the least"):
        Discovery(model, (x,), optimizer, total_steps=100, target=0.2, config=config)


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
@settings(max_examples=3, deadline=None)
@given(st.integers(4, 8), st.integers(1, 2), st.booleans(), st.booleans(), st.integers(0, 99))
def test_hidden_units_of_recurrent_layers(
    kind: Any, width: int, layers: int, both: bool, bias: bool, seed: int
) -> None:
    """Gated as sliced, in every layer and direction; what a module computes with is gated."""
    torch.manual_seed(seed)
    middle = kind(6, width, layers, bias=bias, bidirectional=both, batch_first=True)
    model = Costly(middle, 6, (1 + both) * width).double()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    structures = find_structures(model, (x,))
    assert {group.name: group.size for group in structures.groups}["middle"] == width
    plan = random_plan(structures, seed)
    gates = clamped(model, structures, plan)
    masked, trained = model.eval()(x), model.train()(x)
    gates.detach()
    operate(model, structures, plan)
    torch.testing.assert_close(model.eval()(x), masked, atol=1e-10, rtol=0)
    torch.testing.assert_close(model.train()(x), trained, atol=1e-10, rtol=0)
    number = [group.name for group in structures.groups].index("middle")
    assert middle.hidden_size == len(plan.kept.get(number, range(width)))


def conv_net(norm: Callable[[nn.Module], nn.Module], width: int) -> nn.Module:
    return nn.Sequential(
        norm(nn.Conv1d(2, width, 3)),
        nn.ReLU(),
        norm(nn.Conv1d(width, width + 2, 3)),
        nn.ReLU(),
        norm(nn.Conv1d(width + 2, 3, 1)),
    )


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, nn.utils.weight_norm])
@settings(max_examples=4, deadline=None)
@given(st.integers(4, 9), st.integers(0, 99))
def test_weight_norm(norm: Any, width: int, seed: int) -> None:
    """Rows of g and v, columns of v; also with the hook, whose weight cannot be copied."""
    torch.manual_seed(seed)
    model, x = conv_net(norm, width), torch.randn(3, 2, 9)
    model(x)
    structures = find_structures(model, (x,))
    assert [group.size for group in structures.groups] == [width, width + 2]
    plan = random_plan(structures, seed)
    before = [len(plan.kept.get(n, range(group.size))) for n, group in enumerate(structures.groups)]
    operate(model, structures, plan)
    found = find_structures(model, (x,))
    assert [group.size for group in found.groups if group.size > 1] == [n for n in before if n > 1]
    assert model[0].out_channels == before[0] == model[2].in_channels


def test_gates_of_a_weight_norm_are_discovered_with() -> None:
    torch.manual_seed(0)
    model = conv_net(parametrizations.weight_norm, 12)
    x = torch.randn(8, 2, 9)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    config = DiscoveryConfig(round_to=1)
    discovery = Discovery(model, (x,), optimizer, total_steps=100, target=0.5, config=config)
    for _ in range(100):
        (model(x) - x[:, :, :5].sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
    found = discovery.finish()
    assert discovery.removals and found[0].out_channels < 12
    assert torch.isfinite(found(x)).all()


def test_outputs_in_a_plain_dataclass() -> None:
    @dataclasses.dataclass
    class Inner:
        score: Tensor

    @dataclasses.dataclass
    class Outputs:
        logits: Tensor
        inner: Inner
        note: str | None = None

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Outputs:
            logits = self.last(torch.relu(self.first(x)))
            return Outputs(logits, Inner(logits.sum(1)))

    for _ in range(2):  # registered once
        structures = find_structures(Net(), (torch.randn(4, 3),))
        assert [group.name for group in structures.groups] == ["first"]
