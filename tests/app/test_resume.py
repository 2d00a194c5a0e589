"""Runs that stop, are killed, or go wrong, and how they go on."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import killed
import pytest
import torch
from paths import HELPERS, ROOT
from run_folders import assert_same, lines
from warm import Started

from guyot import report
from guyot.app import running
from guyot.app.data import Batches, load_dataset
from guyot.app.running import RunFolder, Silent
from guyot.core.errors import (
    DivergedError,
    GuyotWarning,
    MisconfiguredError,
    StorageError,
)
from guyot.discovery.checkpoint import Checkpointer

pytestmark = pytest.mark.timeout(1200)  # processes share what cores there are
PROGRAM = HELPERS / "killed.py"


def start(folder: Path, moment: str = "never", number: int = 0) -> Started:
    return Started(PROGRAM, str(folder), moment, str(number))


def ended(process: Started) -> int:
    code, output = process.ended()
    assert code in (0, -signal.SIGKILL), output
    return code


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "undisturbed"
    assert ended(start(folder)) == 0
    removals = [line for line in lines(folder) if line["event"] == "removal"]
    assert len(removals) > 2
    return folder


# The largest number of events of each kind that one start may see before the kill.
EVENTS = {"step": 70, "slice": 40, "write": 60, "validation": 30, "end": 2}


def killed_often(folder: Path, kills: list[tuple[str, int]]) -> list[str]:
    """Kill a run at these moments, one after the other, then let it end; which moments came."""
    came: list[str] = []
    for moment, number in kills:
        if moment == "time":
            process = start(folder)
            while not (folder / "config.json").exists() and process.runs:
                time.sleep(0.01)
            time.sleep(number / 100)
            process.kill()
        else:
            process = start(folder, moment, number)
        if ended(process) == 0:
            return came
        came.append(moment)
    assert ended(start(folder)) == 0
    return came


def test_a_run_that_is_killed_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    kills = [("slice", 11), ("write", 30), ("validation", 9), ("step", 50)]
    assert killed_often(tmp_path / "run", kills) == [moment for moment, _ in kills]
    assert_same(tmp_path / "run", undisturbed)
    starts = json.loads((tmp_path / "run" / "environment.json").read_text())["starts"]
    assert 1 < len(starts) <= len(kills) + 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_run_that_is_killed_at_30_random_moments_goes_on(
    tmp_path: Path, undisturbed: Path
) -> None:
    """During steps, removals, writes of checkpoints, validation, at the end, and at any time."""
    chance = random.Random(1)
    came: list[str] = []
    for number in range(100):
        folder = tmp_path / str(number)
        kinds = [chance.choice([*EVENTS, "time"]) for _ in range(5)]
        bounds = {**EVENTS, "time": 1500}
        came += killed_often(folder, [(k, chance.randint(1, bounds[k])) for k in kinds])
        assert_same(folder, undisturbed)
        if len(came) >= 30 and {*EVENTS, "time"} == set(came):
            break
    assert len(came) >= 30 and {*EVENTS, "time"} == set(came), came


def test_two_processes_with_one_seed_agree(tmp_path: Path, undisturbed: Path) -> None:
    """Hashes of strings differ between them."""
    command = [sys.executable, str(PROGRAM), str(tmp_path / "again"), "never", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{HELPERS}:{ROOT}/src"}
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert_same(tmp_path / "again", undisturbed)


class Counting(Silent):
    def __init__(self) -> None:
        self.steps = 0
        self.resumptions: list[int] = []

    def stepped(self, step: int, loss: float) -> None:
        self.steps += 1

    def resumed(self, step: int) -> None:
        self.resumptions.append(step)


def stopped(folder: Path, steps: int, **choices: Any) -> None:
    """Stop after so many steps: the watcher hears of a step when the next one is over."""
    counting = Counting()
    running.train(killed.config(**choices), folder, counting, lambda: counting.steps >= steps - 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "target=.* was not met")
        yield


def test_a_run_that_was_stopped_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    stopped(folder, 33)
    assert json.loads((folder / "result.json").read_text())["status"] == "interrupted"
    counting = Counting()
    running.resume(folder, counting, lambda: counting.steps >= 20, trust=True)
    assert counting.resumptions == [33]
    outcome = running.resume(folder, trust=True)
    assert outcome.interrupted is None
    assert_same(folder, undisturbed)
    with pytest.raises(MisconfiguredError, match=r"resume=.* is finished, there is nothing to"):
        running.resume(folder, trust=True)


def test_full_networks_go_on(tmp_path: Path) -> None:
    choices: dict[str, Any] = {"discovery": False, "epochs": 2}
    running.train(killed.config(**choices), tmp_path / "whole")
    stopped(tmp_path / "stopped", 50, **choices)
    running.resume(tmp_path / "stopped", trust=True)
    assert_same(tmp_path / "stopped", tmp_path / "whole")


def test_a_checkpoint_can_be_chosen(tmp_path: Path, undisturbed: Path) -> None:
    folder = tmp_path / "run"
    stopped(folder, 50)
    first = min((folder / "checkpoints").iterdir())
    counting = Counting()
    running.resume(first, counting, trust=True)
    assert counting.resumptions == [int(first.name.removeprefix("step-"))]
    assert_same(folder, undisturbed)


def test_what_cannot_go_on_is_told(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match=r"resume=.*no run folder, it has no config.json"):
        running.resume(tmp_path, trust=True)
    folder = tmp_path / "run"
    stopped(folder, 5)
    with pytest.raises(
        MisconfiguredError, match=r"out=.* holds a run: continue it .*guyot train --res"
    ):
        running.train(killed.config(), folder)
    config, metrics = folder / "config.json", folder / "metrics.jsonl"
    text, written = config.read_text(), metrics.read_text()
    config.write_text(text.replace('"lr": 0.1', '"lr": 0.2'))
    with pytest.raises(MisconfiguredError, match=r"another configuration: lr is 0.1, expected 0.2"):
        running.resume(folder, trust=True)
    config.write_text(text)
    metrics.write_text("")
    with pytest.raises(MisconfiguredError, match=r"metrics.jsonl has 0 lines and .* after \d+"):
        running.resume(folder, trust=True)
    metrics.write_text(written)
    with (
        RunFolder(folder, resumed=True).locked(),
        pytest.raises(MisconfiguredError, match=r"run is in use by another process: wait"),
    ):
        running.resume(folder, trust=True)
    (max((folder / "checkpoints").iterdir()) / "state.json").write_text("{}")
    with pytest.raises(MisconfiguredError, match=r"state.json is damaged"):
        running.resume(folder, trust=True)


def test_without_checkpoints_nothing_goes_on(tmp_path: Path) -> None:
    stopped(tmp_path / "run", 5, keep=0)
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(MisconfiguredError, match=r"keep=0.*no checkpoints"):
        running.resume(tmp_path / "run", trust=True)


def test_nan_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = killed.config(lr=1e30, warmup_epochs=0.0, max_nan_steps=5, discovery=False)
    with pytest.raises(DivergedError, match=r"NaN or inf in 5 steps in a row.*lr=1e\+30"):
        running.train(config, folder)
    assert not (folder / "result.json").exists()


def test_the_last_good_checkpoint_is_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights spoilt at step 40 are never saved; the checkpoint that is named is from before."""
    folder, take = tmp_path / "run", torch.optim.SGD.step
    count = [0]

    def spoil(self: torch.optim.SGD, closure: None = None) -> None:
        count[0] += 1
        if count[0] == 40:
            self.param_groups[0]["params"][0].grad.fill_(torch.nan)
        take(self, closure)

    monkeypatch.setattr(torch.optim.SGD, "step", spoil)
    warnings.simplefilter("ignore", GuyotWarning)
    with pytest.raises(DivergedError, match=r"the last good checkpoint is .*step-\d+$") as said:
        running.train(killed.config(max_nan_steps=12), folder)
    # the loss is NaN from step 40 on
    assert "NaN or inf in 12 steps in a row, the last of them step 51:" in str(said.value)
    good = int(str(said.value)[-9:])
    assert 27 <= good < 40
    monkeypatch.setattr(torch.optim.SGD, "step", take)
    counting = Counting()
    assert running.resume(folder, counting, trust=True).interrupted is None
    assert counting.resumptions == [good]


def test_a_full_disk_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = Checkpointer.save, [0]

    def full(self: Checkpointer, step: int, position: Any = None) -> Path:
        calls[0] += 1
        if calls[0] in (2, 3):
            raise StorageError("checkpoints cannot be written: No space left on device")
        return save(self, step, position)

    monkeypatch.setattr(Checkpointer, "save", full)
    with pytest.warns(GuyotWarning, match=r"no checkpoint at step 18: .*No space left.*step-00000"):
        running.train(killed.config(), tmp_path / "run")
    assert calls[0] > 5


def test_lines_that_cannot_be_written_stop_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.begin(killed.config(), {})
    folder.path = Path("/proc/nowhere")
    with pytest.raises(StorageError, match=r"metrics.jsonl cannot be written: .*train --resume"):
        folder.metric("epoch", {})


@pytest.mark.parametrize("augment", [True, False])
def test_batches_go_on_in_the_middle(augment: bool) -> None:
    dataset = load_dataset("digits")
    batches = Batches(dataset, dataset.train, 100, augment=augment, seed=3)
    whole = [*batches.epoch(5)]
    for first in (1, 7, len(batches)):
        rest = [*batches.epoch(5, first)]
        assert len(rest) == len(batches) - first
        for (images, labels), (again, same) in zip(whole[first:], rest, strict=True):
            assert torch.equal(images, again) and torch.equal(labels, same)
