"""The benchmark that restores what a run removed."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from paths import ROOT


@pytest.fixture(scope="module")
def removals() -> Iterator[ModuleType]:
    """`benchmarks/removals.py` with small validation sets."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        patch.setattr(importlib.import_module("arena.labels"), "HELD_OUT", 1_000)
        yield importlib.import_module("removals")
    for name in list(sys.modules):
        if name.partition(".")[0] in ("arena", "runs", "removals"):
            sys.modules.pop(name)


@pytest.fixture(scope="module")
def job(removals: ModuleType) -> Any:
    """Makes a job of a short run, the same at every call."""
    arena = {part: importlib.import_module(f"arena.{part}") for part in ("planted", "task")}
    task = arena["task"].shorter(arena["planted"].TASKS["residual"], 100, 100)
    run = removals.Run("residual", "scratch", "guyot", 0.5, False, 0)

    def make() -> Any:
        return removals.begin(task, run, (Path(), Path()), torch.device("cpu"))

    return make


@pytest.fixture(scope="module")
def watched(removals: ModuleType, job: Any) -> tuple[Any, Any]:
    """A discovery, and what it showed."""
    return removals.train(job())


def test_a_restored_network_is_that_of_the_run(
    removals: ModuleType, job: Any, watched: tuple[Any, Any]
) -> None:
    discovery, noted = watched
    moment = noted.moments[-1]
    assert 0 < moment.removals <= len(discovery.removals)
    before = discovery.removals[: moment.removals]
    removals.restored(again := job(), moment, discovery.original, before)
    assert again.step == moment.step
    for name, value in again.model.state_dict().items():
        assert torch.equal(value, moment.model[name])
    assert len(moment.names) == moment.structures.index.total == len(moment.price)
    assert set(moment.names) <= set(noted.paths)


def test_what_a_unit_earns_is_the_rise_without_its_weights(
    removals: ModuleType, job: Any, watched: tuple[Any, Any]
) -> None:
    discovery, noted = watched
    moment = noted.moments[0]
    gate = int(moment.probable.nonzero()[0])
    nothing = torch.zeros(len(moment.names), dtype=torch.bool)
    removals.restored(again := job(), moment, discovery.original, [])
    benefit, error = removals.earned(again, moment, gate, nothing, steps=0)

    removals.restored(other := job(), moment, discovery.original, [])
    present = removals.losses(other)
    group, unit = moment.structures.groups[0], gate
    with torch.no_grad():
        for slot in group.readers:
            other.model.get_parameter(slot.tensor).select(slot.dim, unit).zero_()
    rise = removals.losses(other) - present
    assert benefit == pytest.approx(float(rise.mean()), rel=1e-4, abs=1e-7) and benefit != 0
    assert 0 < error < 1


def test_every_removal_has_its_condition(removals: ModuleType, watched: tuple[Any, Any]) -> None:
    discovery, noted = watched
    gone = {name for removal in discovery.removals for name in removals.gone_at(removal)}
    left = set(removals.names_of(discovery))
    assert gone and not gone & left
    assert set(noted.evidence) <= gone
    assert {"certified", "observed"} >= set(noted.evidence.values())
