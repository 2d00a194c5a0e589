"""`guyot train --targets`: the folders of a family, how it goes on, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from typer.testing import CliRunner

from guyot import report
from guyot.app import running
from guyot.app.cli.commands import app
from guyot.app.config import RunConfig
from guyot.app.running import Silent
from guyot.core.errors import MisconfiguredError
from guyot.discovery.checkpoint import checkpoints_in

SRC = ROOT / "src"
QUICK = "--model mlp --epochs 3 --batch-size 32 --threads 1 --no-bf16 --round-to 4".split()


class Counting(Silent):
    """Counts steps over all members, and notes which of them began where."""

    def __init__(self) -> None:
        self.steps = 0
        self.targets: list[float | None] = []
        self.resumptions: list[int] = []
        self.branches: list[float] = []

    def started(self, config: RunConfig, steps: int, macs: int, params: int) -> None:
        self.targets.append(config.target)

    def resumed(self, step: int) -> None:
        self.resumptions.append(step)

    def branched(self, target: float) -> None:
        self.branches.append(target)

    def stepped(self, step: int, loss: float) -> None:
        self.steps += 1


def config(**choices: Any) -> RunConfig:
    short: dict[str, Any] = {"model": "mlp", "epochs": 3, "batch_size": 32, "bf16": False}
    return RunConfig.of("digits", **(short | {"round_to": 4, "targets": (0.7, 0.4)} | choices))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
        warnings.filterwarnings("ignore", "target=.* was not met")
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, running.Summary, Counting]:
    folder, counting = tmp_path_factory.mktemp("family") / "whole", Counting()
    return folder, running.FamilyRuns(folder, counting).train(config()), counting


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def lines(folder: Path) -> list[dict[str, Any]]:
    """What a run wrote down, without what clocks said."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


def assert_same(folder: Path, other: Path) -> None:
    for member in ("0.7", "0.4"):
        for name in ("model.safetensors", "structure.json", "config.json"):
            assert (folder / member / name).read_bytes() == (other / member / name).read_bytes()
        assert lines(folder / member) == lines(other / member)


def test_a_family_leaves_a_run_folder_per_member(
    whole: tuple[Path, running.Summary, Counting],
) -> None:
    folder, summary, counting = whole
    assert sorted(path.name for path in folder.iterdir()) == [
        "0.4",
        "0.7",
        "config.json",
        "result.json",
    ]
    assert counting.targets == [0.4, 0.7] and counting.branches == [0.7]
    (start,) = counting.resumptions
    assert 12 <= start < 48 and counting.steps == 120 + 120 - start
    assert summary == read(folder / "result.json") | {}
    assert summary["status"] == "finished"
    assert [member["target"] for member in summary["members"]] == [0.7, 0.4]
    for member in summary["members"]:
        own = folder / member["folder"]
        assert read(own / "result.json")["status"] == "finished"
        settings = RunConfig.from_dict(read(own / "config.json"))
        assert (settings.target, settings.targets) == (member["target"], ())
        share = member["after"]["macs"] / member["before"]["macs"]
        assert share == pytest.approx(member["target"], rel=0.05)
        assert running.evaluate_run(own).score == member["after"]["test_accuracy"] > 0.7
        assert [line["epoch"] for line in lines(own) if line["event"] == "epoch"] == [1, 2, 3]
    branch = [line for line in lines(folder / "0.4") if line["event"] == "branch"]
    assert branch == [{"event": "branch", "step": start, "target": 0.7}]
    first, other = lines(folder / "0.4"), lines(folder / "0.7")
    shared = first.index(branch[0])
    assert first[:shared] == other[:shared] and shared > 10


@pytest.mark.parametrize("steps", [8, 40, 119, 150])
def test_a_family_that_is_stopped_goes_on(
    tmp_path: Path, whole: tuple[Path, running.Summary, Counting], steps: int
) -> None:
    """Before the larger member begins, after it, at the end of the first, in the second."""
    counting = Counting()
    # the watcher hears of a step when the next one is over
    runs = running.FamilyRuns(tmp_path / "run", counting, lambda: counting.steps >= steps - 1)
    stopped = runs.train(config())
    assert counting.steps == steps
    assert stopped["status"] == "interrupted"
    expected = ["open", "interrupted"] if steps < 120 else ["interrupted", "finished"]
    assert [member["status"] for member in stopped["members"]] == expected
    assert running.FamilyRuns(tmp_path / "run").resume()["status"] == "finished"
    assert_same(tmp_path / "run", whole[0])
    with pytest.raises(MisconfiguredError, match=r"resume=.*run' is finished, there is nothing"):
        running.FamilyRuns(tmp_path / "run").resume()


def test_a_stop_between_members_is_heard(
    tmp_path: Path, whole: tuple[Path, running.Summary, Counting]
) -> None:
    counting = Counting()
    running.FamilyRuns(tmp_path / "run", counting, lambda: counting.steps >= 120).train(config())
    assert counting.targets == [0.4]
    member = tmp_path / "run" / "0.7"
    assert [path.name for path in member.iterdir()] == ["checkpoints"]
    (branch,) = checkpoints_in(member / "checkpoints")
    manifest = branch / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"step"', '"stop"'))
    with pytest.raises(MisconfiguredError, match=r"manifest.json is damaged"):
        running.FamilyRuns(tmp_path / "run").resume()
    manifest.write_text(text)
    running.FamilyRuns(tmp_path / "run").resume()
    assert_same(tmp_path / "run", whole[0])


def test_a_beginning_that_was_lost_is_told(tmp_path: Path) -> None:
    counting = Counting()
    running.FamilyRuns(tmp_path / "run", counting, lambda: counting.steps >= 120).train(config())
    for path in sorted((tmp_path / "run" / "0.7").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(MisconfiguredError, match=r"0.7 has no checkpoint, in which this member"):
        running.FamilyRuns(tmp_path / "run").resume()


def test_members_are_shown_together(
    tmp_path: Path, whole: tuple[Path, running.Summary, Counting]
) -> None:
    runs = report.read_runs([whole[0]])
    assert [run.name for run in runs] == ["target 0.7", "target 0.4"]
    page = report.render(runs)
    assert "target 0.7" in page and "target 0.4" in page
    alone = tmp_path / "alone"
    shutil.copytree(whole[0] / "0.7", alone)
    names = [run.name for run in report.read_runs([whole[0], alone])]
    assert names == ["whole: target 0.7", "whole: target 0.4", "alone"]
    with pytest.raises(MisconfiguredError, match=r"a run is given twice"):
        report.read_runs([whole[0], whole[0] / "0.7"])


def test_a_family_is_no_single_run(
    tmp_path: Path, whole: tuple[Path, running.Summary, Counting]
) -> None:
    told = r"whole' is a family of runs: give one of its members, .*whole/0.7, .*whole/0.4"
    with pytest.raises(MisconfiguredError, match=told):
        running.evaluate_run(whole[0])
    with pytest.raises(MisconfiguredError, match=told):
        running.export_run(whole[0], "pt2", tmp_path / "model.pt2")
    with pytest.raises(MisconfiguredError, match=r"targets=0.7,0.4 are those of several runs"):
        running.train(config(), tmp_path / "run")
    with pytest.raises(MisconfiguredError, match=r"targets=\(\): give the sizes of the family"):
        running.FamilyRuns(tmp_path / "run").train(config(targets=None, target=0.5))
    with pytest.raises(MisconfiguredError, match=r"out=.*whole' holds a run: continue it by"):
        running.FamilyRuns(whole[0]).train(config())
    assert not list(tmp_path.iterdir())


def invoke(*arguments: str | Path) -> Any:
    environment = {"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(app, ["train", *map(str, arguments)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--targets 0.5,0.7", "--targets=0.5,0.7: 0.7 after 0.5 is out of order"),
        ("--targets 0.5,0.5", "--targets=0.5,0.5: 0.5 and 0.5 are the same network"),
        ("--targets 1.5,0.5", "--targets=1.5,0.5: 1.5 is out of range"),
        ("--targets 0.5", "--targets=0.5: give at least two sizes"),
        ("--targets 0.5,half", "--targets='0.5,half': give a list of numbers, such as 0.7,0.5"),
        ("--targets 0.5,0.3 --target 0.4", "--targets=0.5,0.3 and --target=0.4: give one of them"),
        ("--targets 0.5,0.3 --nu 0.4", "--targets=0.5,0.3 and --nu=0.4: give one of them"),
        ("--targets 0.5,0.3 --keep 0", "--targets=0.5,0.3 and --keep=0: the members of a family"),
        ("--targets 0.5,0.3 --no-discovery", "no effect without discovery: leave it out"),
        ("--targets 0.5,0.3 --epochs 1", "total_steps=40 is too small"),
        ("--targets 0.5,0.001", "--target=0.001 is below"),
    ],
)
def test_what_is_refused(tmp_path: Path, arguments: str, message: str) -> None:
    result = invoke(*QUICK, "--out", tmp_path / "run", *arguments.split())
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "run").exists()


def test_settings_of_a_family_can_be_used_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config().to_dict()))
    found = invoke("--config", tmp_path / "config.json", "--target", "0.5", "--epochs", "1")
    assert "total_steps=40 is too small" in found.output  # one run, no family
    assert RunConfig.from_dict(read(tmp_path / "config.json")) == config()
    with pytest.raises(MisconfiguredError, match=r"targets='0.5': give a list of numbers"):
        RunConfig.from_dict(config().to_dict() | {"targets": "0.5"})


@pytest.mark.slow
def test_the_command_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    """In processes of their own, with a real Ctrl-C while the second member is trained."""
    run = tmp_path / "run"
    environment = os.environ | {"PYTHONPATH": str(SRC), "COLUMNS": "80", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "guyot", "train"]
    process = subprocess.Popen(
        [*command, *QUICK, "--targets", "0.7,0.4", "--out", str(run)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    told: list[str] = []
    try:
        for line in process.stdout:
            told.append(line)
            if "continuing after step" in line:
                process.send_signal(signal.SIGINT)
                break
        told += process.communicate(timeout=120)[0].splitlines(keepends=True)
    finally:
        process.kill()
    output = "".join(told)
    assert process.returncode == 130, output
    assert "down to 0.7: that member will continue from here" in output
    assert f"guyot train --resume {run} continues it" in " ".join(output.split())
    assert max(map(len, output.splitlines())) <= 80 or str(run) in output
    resumed = subprocess.run(
        [*command, "--resume", str(run), "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    summary = json.loads(resumed.stdout)
    assert summary["folder"] == str(run) and summary["status"] == "finished"
    assert [member["status"] for member in summary["members"]] == ["finished", "finished"]
    again = subprocess.run([*command, "--resume", str(run)], env=environment, check=False)
    assert again.returncode == 2


@pytest.mark.slow
def test_two_processes_train_a_family(tmp_path: Path) -> None:
    run = tmp_path / "run"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, "-m", "guyot", "train", *QUICK, "--targets", "0.7,0.4", "--out", str(run)],
        env=os.environ | {"PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    members = read(run / "result.json")["members"]
    assert [member["status"] for member in members] == ["finished", "finished"]
    branch = [line for line in lines(run / "0.4") if line["event"] == "branch"]
    assert branch[0]["target"] == 0.7
