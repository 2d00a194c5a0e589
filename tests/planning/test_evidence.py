"""Sums over the steps between two moves of the gates."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from waits import Waits

from guyot.planning.benefits import SideMeans, SideSums
from guyot.planning.evidence import Evidence


def same(values: Tensor) -> Tensor:
    """One rank."""
    return values


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6))
def test_sums_are_those_of_the_steps(steps: int, gates: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    evidence, each = Evidence(gates, "cpu"), list[SideSums]()
    for _ in range(steps):
        gradient = torch.randn(gates, generator=generator)
        gate = torch.randint(2, (gates,), generator=generator).float()
        evidence.add(gradient, gate, 3, same)
        each.append(SideSums.from_sample(gradient, gate, 3))
    told = evidence.take()
    assert (told.skipped, told.sums.steps, told.sums.predictions) == (0, steps, 3)
    for name in ("sum_one", "count_one", "sum_zero", "count_zero", "square_one", "square_zero"):
        expected = torch.stack([getattr(sums, name) for sums in each]).sum(0)
        torch.testing.assert_close(getattr(told.sums, name), expected)
    assert evidence.take().sums.steps == 0


def test_predictions_are_a_mean_over_steps() -> None:
    evidence, one = Evidence(1, "cpu"), torch.ones(1)
    for predictions in (2, 4, 9):
        evidence.add(one, one, predictions, same)
    assert evidence.take().sums.predictions == 5


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_steps_without_a_finite_gradient_do_not_count(bad: float) -> None:
    evidence, one = Evidence(2, "cpu"), torch.ones(2)
    counted = [
        bool(evidence.add(torch.tensor(values), one, 1, same).counts)
        for values in ([1.0, 2.0], [1.0, bad], [0.0, 0.0], [3.0, 0.0])
    ]
    assert counted == [True, False, False, True]
    told = evidence.take()
    assert (told.silent, told.broken, told.skipped, told.sums.steps) == (1, 1, 2, 2)
    assert told.sums.sum_one.tolist() == [4, 2]


def test_ranks_are_averaged_at_every_step() -> None:
    """Of two ranks one sampled 0; what a step adds is the mean of both."""
    ranks = [Evidence(1, "cpu"), Evidence(1, "cpu")]
    gradient, gates = torch.tensor([[4.0], [-2.0]]), torch.tensor([[1.0], [0.0]])
    flat = list[Tensor]()
    for rank, evidence in enumerate(ranks):
        evidence.add(gradient[rank], gates[rank], 2, lambda values: flat.append(values) or values)
    mean = torch.stack(flat).mean(0)
    whole = Evidence(1, "cpu")
    latest = whole.add(gradient[0], gates[0], 2, lambda _: mean)
    assert (latest.active.tolist(), latest.share.tolist()) == ([2], [0.5])
    sums = whole.take().sums
    assert (sums.sum_one.tolist(), sums.sum_zero.tolist()) == ([2], [-1])
    assert (sums.count_one.tolist(), sums.count_zero.tolist()) == ([0.5], [0.5])
    assert (sums.square_one.tolist(), sums.square_zero.tolist()) == ([16], [4])


def test_a_mean_of_several_steps_at_once_has_the_weight_of_these_steps() -> None:
    evidence, one = Evidence(1, "cpu"), torch.ones(1)
    for value in (1.0, 2.0, 6.0):
        evidence.add(value * one, one, 1, same)
    means = SideMeans.start(1).updated(evidence.take().sums, decay=0.9)
    assert means.weight_one.item() == pytest.approx(1 - 0.9**3)
    assert means.sides[0].item() == pytest.approx(3)


def test_the_state_continues_where_it_was() -> None:
    first, again, one = Evidence(2, "cpu"), Evidence(2, "cpu"), torch.ones(2)
    first.add(torch.tensor([1.0, 2.0]), one, 4, same)
    again.load_state_dict(first.state_dict())
    for evidence in (first, again):
        evidence.add(torch.tensor([float("nan"), 2.0]), one, 4, same)
        evidence.add(torch.tensor([0.5, 0.25]), one, 4, same)
    ours, theirs = first.take(), again.take()
    assert ours.skipped == theirs.skipped == 1
    assert torch.equal(ours.sums.square_one, theirs.sums.square_one)


def test_saved_sums_do_not_change_with_the_next_step() -> None:
    evidence, ones = Evidence(2, "cpu"), torch.ones(2)
    evidence.add(ones, ones, 4, same)
    saved = evidence.state_dict()
    before = {name: value.clone() for name, value in saved.items()}
    evidence.add(3 * ones, ones, 4, same)
    assert all(torch.equal(saved[name], value) for name, value in before.items())


def test_a_step_waits_for_nothing() -> None:
    evidence, one = Evidence(3, "cpu"), torch.ones(3)
    with Waits() as waits:
        evidence.add(torch.randn(3), one, 1, same)
        assert waits.found == waits.inside == []
        evidence.take()
    assert waits.found.count("cpu") == 1
