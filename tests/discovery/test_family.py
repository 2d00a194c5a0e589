"""`Family`: members begin where the smallest run passes their size, and end at it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loops import STEPS, Run, same

from guyot import Checkpointer, Family, MisconfiguredError, SequenceError
from guyot.discovery.checkpoint import checkpoints_in
from guyot.discovery.family import Member
from guyot.discovery.snapshot import branched
from guyot.planning.dynamics import Phase, Phases

TARGETS = (0.75, 0.55, 0.4)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "target=.* was not met")
        yield


def begun(family: Family, target: float, **choices: Any) -> tuple[Run, Member]:
    run = Run("cifar", target=target, **choices)
    parts = {"average": run.average, "optimizer": run.optimizer, "schedule": run.schedule}
    return run, family.member(target, run.model, run.discovery, **parts)


def trained(family: Family, target: float, stop: int = STEPS) -> tuple[Run, Member]:
    run, member = begun(family, target)
    for step in range(member.start, stop):
        run.train(step, step + 1)
        member.step()
    return run, member


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Family, dict[float, dict[str, Any]]]:
    """A family that was never disturbed, and the states in which its members ended."""
    family = Family(tmp_path_factory.mktemp("family"), TARGETS)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "target=.* was not met")
        return family, {target: trained(family, target)[0].states() for target in family}


def test_the_smallest_member_is_the_run_alone(
    whole: tuple[Family, dict[float, dict[str, Any]]],
) -> None:
    alone = Run("cifar", target=0.4)
    alone.train(0, STEPS)
    assert same(whole[1][0.4], alone.states())


def test_members_begin_with_the_smallest_and_end_at_their_size(
    whole: tuple[Family, dict[float, dict[str, Any]]],
) -> None:
    family, _ = whole
    starts: list[int] = []
    for target in family.larger:
        run, member = begun(family, target)
        alone = Run("cifar", target=0.4)
        alone.train(0, member.start - 1)
        assert not alone.discovery.passed(target)
        alone.train(member.start - 1, member.start)
        assert alone.discovery.passed(target)
        mine, theirs = run.states(), alone.states()
        for part in ("model", "average", "optimizer", "schedule"):
            assert same(mine[part], theirs[part])
        assert all("momentum_buffer" in s for s in mine["optimizer"]["state"].values())
        assert run.discovery.phase is Phase.DISCOVERY
        starts.append(member.start)
        run.train(member.start, member.start + 1)
        assert run.discovery.phase is Phase.FINE_TUNE
        run, _ = trained(family, target)
        assert run.discovery.attained == pytest.approx(target, rel=0.02)
        model = run.discovery.finish()
        assert not any("parametrizations" in name for name, _ in model.named_modules())
    assert 10 <= starts[0] <= starts[1] < 40


def test_a_member_is_what_it_was_the_last_time(
    whole: tuple[Family, dict[float, dict[str, Any]]],
) -> None:
    family, ended = whole
    for target in family.larger:
        assert same(trained(family, target)[0].states(), ended[target])


def test_a_family_that_is_disturbed_goes_on(
    tmp_path: Path, whole: tuple[Family, dict[float, dict[str, Any]]]
) -> None:
    """Killed before and after members began, and while the others are trained."""
    _, ended = whole
    for stop in (5, 18, 30, 60):
        family = Family(tmp_path, TARGETS)
        trained(family, 0.4, stop)[1].save()
        trained(family, 0.4, stop + 4)  # lost: it was not saved
    for target in Family(tmp_path, TARGETS):
        if target != 0.4:
            trained(Family(tmp_path, TARGETS), target, 50)[1].save()
        run, _ = trained(Family(tmp_path, TARGETS), target)
        assert same(run.states(), ended[target])


def test_beginnings_of_another_future_go(tmp_path: Path) -> None:
    family = Family(tmp_path, TARGETS)
    trained(family, 0.4)
    assert all(checkpoints_in(family.folder_of(target)) for target in family.larger)
    begun(family, 0.4)
    assert not any(checkpoints_in(family.folder_of(target)) for target in family.larger)


def test_a_size_that_is_never_passed_begins_where_gates_commit(tmp_path: Path) -> None:
    """A size little above the smallest is passed before it, or not, by noise."""
    family = Family(tmp_path, (0.42, 0.4))
    trained(family, 0.4)
    run, member = begun(family, 0.42)
    assert member.start <= Phases(STEPS).discovery_stop - 6
    assert run.discovery.phase is Phase.DISCOVERY


@given(st.integers(100, 5000), st.data())
def test_discovery_may_end_early(total: int, data: st.DataObject) -> None:
    phases = Phases(total)
    step = data.draw(st.integers(phases.discovery_start, phases.discovery_stop - 1))
    early = phases.ending(step)
    assert (early.discovery_steps, early.horizon) == (phases.discovery_steps, phases.horizon)
    assert (early.progress(step), early.commitment(step)) == (
        phases.progress(step),
        phases.commitment(step),
    )
    assert early.at(step) is Phase.DISCOVERY and early.at(step + 1) is Phase.FINE_TUNE
    assert early.ending(step) == early


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ((), r"targets=: give at least two sizes, such as 0.7,0.5, or one target"),
        ((0.5,), r"targets=0.5: give at least two sizes"),
        ((0.5, 0.7), r"targets=0.5,0.7: 0.7 after 0.5 is out of order, give the largest first"),
        ((0.7, 0.7, 0.5), r"targets=0.7,0.7,0.5: 0.7 and 0.7 are the same network.*leave one out"),
        ((0.5, 0.495), r"0.5 and 0.495 are the same network, since a target is met within 1 %"),
        ((1.2, 0.5), r"targets=1.2,0.5: 1.2 is out of range, give shares .* between 0 and 1"),
        ((0.7, 0.0), r"targets=0.7,0: 0 is out of range"),
        ((0.7, float("nan")), r"nan is out of range"),
        (0.5, r"targets=0\.5: give the shares of several networks, such as \(0\.75, 0\.5\)"),
        (("0.7", 0.5), r"targets='0.7',0.5: '0.7' is out of range, give shares"),
    ],
)
def test_targets_that_are_no_family(tmp_path: Path, targets: Any, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        Family(tmp_path, targets)


def test_members_that_cannot_begin(tmp_path: Path) -> None:
    family = Family(tmp_path, TARGETS)
    with pytest.raises(SequenceError, match=r"target=0.75 has no beginning in .*target=0.4 first"):
        begun(family, 0.75)
    with pytest.raises(MisconfiguredError, match=r"target=0.6 is not in the family: choose of 0.7"):
        begun(family, 0.6)
    trained(family, 0.4, 30)
    with pytest.raises(MisconfiguredError, match=r"state is of another run: .*beta"):
        begun(family, 0.75, beta=0.1)


def test_what_cannot_branch_off() -> None:
    run = Run("cifar")
    before = copy.deepcopy(run.states())
    with pytest.raises(SequenceError, match=r"target=0.6 at step 0: branch off while the gates"):
        branched(run.discovery.state_dict(), 0.6)
    run.train(0, 20)
    with pytest.raises(MisconfiguredError, match=r"target=0.4 from a run with target=0.4: branch"):
        branched(run.discovery.state_dict(), 0.4)
    priced = Run("cifar", target=None, nu=0.3)
    priced.train(0, 20)
    with pytest.raises(MisconfiguredError, match=r"target=0.6 from a run with target=None"):
        branched(priced.discovery.state_dict(), 0.6)
    state = run.discovery.state_dict()
    kept = copy.deepcopy(state)
    assert branched(state, 0.6)["run"]["target"] == 0.6
    assert same(state, kept)
    run.train(20, STEPS)
    with pytest.raises(SequenceError, match=r"target=0.6 at step 100"):
        branched(run.discovery.state_dict(), 0.6)
    assert before["discovery"]["run"]["target"] == 0.4


def test_a_run_without_discovery_does_not_branch(tmp_path: Path) -> None:
    checkpoints = Checkpointer(tmp_path, torch.nn.Linear(2, 2))
    with pytest.raises(MisconfiguredError, match=r"target=0.5 from a run without a discovery"):
        checkpoints.branch(tmp_path / "0.5", 0.5, 3)
    assert not (tmp_path / "0.5").exists()
