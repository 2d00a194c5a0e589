"""The state of gates: what is saved is what was, and what is restored is what was saved."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from guyot.planning.vectors import GateState


@dataclass(frozen=True)
class Inner(GateState):
    means: Tensor


@dataclass(frozen=True)
class Outer(GateState):
    sums: Tensor
    inner: Inner
    last: int | None = None


def outer() -> Outer:
    return Outer(torch.tensor([1.0, 2.0, 3.0]), Inner(torch.tensor([4.0, 5.0, 6.0])), 7)


def test_states_inside_states_are_saved_shortened_and_restored() -> None:
    state = outer()
    saved = state.state_dict()
    assert set(saved) == {"sums", "inner", "last"} and set(saved["inner"]) == {"means"}
    again = Outer(torch.zeros(3), Inner(torch.zeros(3))).restored(saved)
    assert again.sums.tolist() == [1, 2, 3] and again.last == 7
    assert isinstance(again.inner, Inner) and again.inner.means.tolist() == [4, 5, 6]
    shorter = state.select(torch.tensor([2, 0]))
    assert (shorter.sums.tolist(), shorter.inner.means.tolist()) == ([3, 1], [6, 4])


def test_what_is_saved_or_restored_does_not_change_with_the_state() -> None:
    state = outer()
    saved = state.state_dict()
    again = outer().restored(saved)
    state.sums.zero_()
    assert saved["sums"].tolist() == [1, 2, 3]
    saved["sums"].zero_()
    assert again.sums.tolist() == [1, 2, 3]
