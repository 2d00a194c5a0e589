"""Heads that run in training mode only: what they read shrinks with them, or stays."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from guyot import find_structures
from guyot.core.types import KeepPlan, Structures
from guyot.structures.verify.behaviour import Calm
from guyot.surgery import operate


class Supervised(nn.Module):
    """A head beside the network's own; `kind` says what it does with the hidden channels."""

    def __init__(self, kind: str = "plain") -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        self.head = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        h = self.a(x).relu()
        y = self.out(self.b(h).relu())
        if not self.training:
            return y
        match self.kind:
            case "mean":
                return y, self.head(h) + h.mean(1, keepdim=True)
            case "noise":
                return y, self.head(h) * torch.randperm(7)[0]
            case "data" if float(h.sum()) > 1e9:
                return y
            case _:
                return y, self.head(h)


def found(kind: str) -> tuple[Supervised, Structures]:
    torch.manual_seed(0)
    model = Supervised(kind)
    return model, find_structures(model, (torch.randn(4, 5),))


def test_a_head_that_runs_in_training_only_shrinks_with_what_it_reads() -> None:
    model, structures = found("plain")
    assert {g.name: g.size for g in structures.groups} == {"a": 8, "b": 6, "head.0": 4}
    kept = {0: torch.tensor([0, 2, 5]), 2: torch.tensor([1, 3])}
    cut, masked = copy.deepcopy(model), copy.deepcopy(model)
    operate(cut, structures, KeepPlan(kept))
    with torch.no_grad():
        unread = torch.ones(8, dtype=torch.bool)
        unread[kept[0]] = False
        for layer in (masked.b, masked.head[0]):
            layer.weight[:, unread] = 0
        masked.head[3].weight[:, [0, 2]] = 0  # pyright: ignore[reportIndexIssue]
    x = torch.randn(4, 5)
    with Calm():
        for ours, theirs in zip(cut.train()(x), masked.train()(x), strict=True):
            assert torch.allclose(ours, theirs, atol=1e-5)
    assert cut.head[1].num_features == 2 and cut.b.in_features == 3


def test_what_a_head_averages_over_in_training_stays() -> None:
    _, structures = found("mean")
    assert {g.name for g in structures.groups} == {"b", "head.0"}
    reasons = {f.name: f.reason for f in structures.frozen}
    assert "reduces over it" in reasons["a"]


@pytest.mark.filterwarnings("ignore::guyot.GuyotWarning")
@pytest.mark.parametrize(
    ("kind", "reason"), [("noise", "no output reacts"), ("data", "no weight reads it")]
)
def test_a_head_that_cannot_be_compared_stays(kind: str, reason: str) -> None:
    """It draws numbers that nobody can hold still, or goes two ways, which no graph shows."""
    _, structures = found(kind)
    assert {f.name: f.reason for f in structures.frozen}["head.0"].startswith(reason)


class Penalised(nn.Module):
    """Keeps what its user adds to the loss; `kind` says what that is."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)
        self.penalty: Any = None
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        y = self.b(h)
        match self.kind:
            case "per unit":
                self.penalty = y.square().mean() / h.shape[1]
            case "hidden":
                self.penalty = h
            case "outputs":
                self.penalty = [y, y.square().mean()]
        return y


@pytest.mark.parametrize("kind", ["per unit", "hidden", "outputs"])
def test_what_forward_keeps_for_the_loss_has_the_same_value(kind: str) -> None:
    """Divided by the number of units that stay, it is another number than with zeros."""
    torch.manual_seed(0)
    structures = find_structures(Penalised(kind), (torch.randn(4, 5),))
    if kind != "per unit":
        assert [group.name for group in structures.groups] == ["a"]
        return
    assert not structures.groups
    (reason,) = {f.reason for f in structures.frozen if f.name == "a"}
    assert reason == "forward sets penalty to another value than in the masked network"
