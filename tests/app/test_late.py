"""The losses of a run are read one step late, so that a GPU has work while the host reads."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from waits import Waits

from guyot import report
from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.running.late import Late
from guyot.app.running.together import SharedStep
from guyot.app.running.watcher import Silent
from guyot.core.parallel import Ranks


def test_numbers_come_when_the_next_ones_are_given() -> None:
    late = Late()
    assert late.give(torch.tensor([1.0, 2.0])) is None
    assert late.give(torch.tensor([3.0])) == [1, 2]
    assert late.take() == [3]
    assert late.take() is None


class Waiting(Silent):
    """Keeps what would have waited for a GPU from one loss to the next."""

    def __init__(self, waits: Waits) -> None:
        self._waits, self._before = waits, 0
        self.found: list[list[str]] = []
        self.steps: list[int] = []

    def stepped(self, step: int, loss: float) -> None:
        self.steps.append(step)
        self.found.append(self._waits.found[self._before :])
        self._before = len(self._waits.found)


def test_most_steps_read_nothing_but_the_loss_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
    config = RunConfig.of(
        "digits", model="mlp", epochs=6, batch_size=32, bf16=False, discovery=False
    )
    with Waits() as waits:
        watcher = Waiting(waits)
        running.train(config, tmp_path / "run", watcher)
    assert watcher.steps == 6 * [*range(1, 41)]
    # every second step writes figures
    assert sum(found == ["tolist"] for found in watcher.found) >= 110


class Wishes(Ranks):
    """Two ranks, of which the other one sends what it is told to."""

    def __init__(self, *others: tuple[float, float, float]) -> None:
        super().__init__()
        self.size = 2
        self._others = iter(others)

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        return (values + torch.tensor(next(self._others))) / 2


def test_ranks_hear_wishes_one_step_late_and_a_wish_once() -> None:
    late, nothing, stop = (4.0, 0.0, 1.0), (4.0, 0.0, 0.0), (4.0, 1.0, 0.0)
    shared = SharedStep(Wishes(nothing, late, late, nothing, stop, nothing), lambda: False)
    heard = [shared.step(torch.tensor(2.0), overdue=False) for _ in range(5)]
    assert [float(loss) for loss, _ in heard] == [3] * 5
    # the second message was sent before the first one was heard
    assert [overdue for _, overdue in heard] == [False, False, True, False, False]
    assert not shared()
    shared.step(torch.tensor(2.0), overdue=False)
    assert shared()
