"""Sweeps: grids and searches that several processes work on, and that survive being killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terminal import run as command
from warm import FORKS

from guyot import GuyotWarning, MisconfiguredError
from guyot.app.config import RunConfig
from guyot.app.running import load_run
from guyot.app.sweep import Sweep, objective, run, trial_name
from guyot.app.sweep.study import open_study
from guyot.app.sweep.trial import run_trial

QUICK = ["--model", "mlp", "--epochs", "5", "--threads", "1", "--round-to", "4"]


def base(**choices: Any) -> RunConfig:
    return RunConfig.of("digits", model="mlp", epochs=5, threads=1, round_to=4, **choices)


def started(folder: Path, *arguments: str, workers: int = 2) -> subprocess.Popen[str]:
    program = [
        sys.executable,
        "-c",
        "from guyot.app.cli import main\nif __name__ == '__main__': main()",
    ]
    options = [*QUICK, "--workers", str(workers), *arguments]
    return subprocess.Popen(
        [*program, "sweep", str(folder), *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def until(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    assert condition()


@pytest.mark.slow
def test_a_grid_runs_once(tmp_path: Path) -> None:
    told: list[str] = []
    sweep = Sweep(base(), {"target": [0.5, 0.8]}, objectives=("accuracy", "macs", "params"))
    study = open_study(sweep, tmp_path, None)
    for target in (0.5, 0.8):  # as two machines do that begin at the same moment
        dials = {"target": target}
        asked = {"name": trial_name(sweep.config(dials)), "dials": dials}
        study.enqueue_trial(dials, user_attrs=asked)
        study.enqueue_trial(dials, user_attrs=asked)
    found = run(sweep, tmp_path, workers=2, told=told.append)
    assert not found["failed"] and len(found["trials"]) == 2
    assert sum("begins" in line for line in told) == sum("ends" in line for line in told) == 2
    for trial in found["trials"]:
        config = RunConfig.from_dict(
            json.loads((Path(trial["folder"]) / "config.json").read_text())
        )
        assert {"target": config.target} == trial["dials"]
        result = json.loads((Path(trial["folder"]) / "result.json").read_text())
        assert [objective(result, n) for n in found["objectives"]] == [
            trial[n] for n in found["objectives"]
        ]
        assert objective(result, "latency") > 0
        assert load_run(trial["folder"]) is not None
    small, large = sorted(found["trials"], key=lambda trial: trial["macs"])
    assert small["macs"] < large["macs"] and small["pareto"]
    assert large["pareto"] == (large["accuracy"] > small["accuracy"])
    told.clear()
    assert run(sweep, tmp_path, told=told.append) == found
    assert told == []
    result = command(
        "sweep", str(tmp_path), *QUICK, "--target", "0.5,0.8", "--objective", "accuracy,macs,params"
    )
    assert result.exit_code == 0, result.output
    assert re.search(r"^ +\* +0\.5 +\d\d\.\d\d% +[\d.]+ [kM]", result.stdout, re.MULTILINE)
    with pytest.raises(MisconfiguredError, match="holds a sweep with another epochs"):
        run(Sweep(RunConfig.of("digits", epochs=6), {"nu": [1.0]}), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_sweep_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    arguments = ["--target", "0.4,0.6,0.8"]
    process = started(tmp_path, *arguments)
    try:
        until(lambda: any(tmp_path.glob("trials/*/metrics.jsonl")), process)
        until(lambda: any(f.read_text() for f in tmp_path.glob("trials/*/metrics.jsonl")), process)
        process.send_signal(how)
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130)
    process = started(tmp_path, *arguments, "--json", "--quiet")
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output
    found = json.loads(output[output.index("{") :])
    assert sorted(trial["dials"]["target"] for trial in found["trials"]) == [0.4, 0.6, 0.8]
    for trial in found["trials"]:
        lines = [json.loads(x) for x in (Path(trial["folder"]) / "metrics.jsonl").open()]
        epochs = [line["epoch"] for line in lines if line["event"] == "epoch"]
        assert epochs == [1, 2, 3, 4, 5]


@pytest.mark.slow
def test_a_search(tmp_path: Path) -> None:
    sweep = Sweep(base(), ranges={"nu": (0.1, 2.0), "beta": (0.0, 1.0)}, trials=3)
    found = run(sweep, tmp_path, workers=2)
    assert len(found["trials"]) == 3
    for trial in found["trials"]:
        assert 0.1 <= trial["dials"]["nu"] <= 2 and 0 <= trial["dials"]["beta"] <= 1
    assert any(trial["pareto"] for trial in found["trials"])
    assert run(sweep, tmp_path) == found
    more = run(replace(sweep, trials=5), tmp_path)  # its sampler begins with the same points
    names = [trial["name"] for trial in more["trials"]]
    assert names[:3] == [trial["name"] for trial in found["trials"]] and len(names) == 5


def test_what_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run(Sweep(base(), {"target": [0.001]}), tmp_path)
    assert found["trials"] == []
    (error,) = found["failed"].values()
    assert error.startswith("target=0.001 is below")
    monkeypatch.setattr("multiprocessing.get_context", lambda _: FORKS)  # that was a real start
    result = command("sweep", str(tmp_path), *QUICK, "--target", "0.001,0.0005", "--quiet")
    assert (result.exit_code, result.stdout) == (1, "")
    reasons = result.stderr.strip().splitlines()
    assert [re.search(r"^error: \w{12} failed: target=0\.(\d+)", line)[1] for line in reasons] == [  # type: ignore[index]
        "001", "0005",
    ]  # fmt: skip


def test_a_warning_of_a_trial_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(*_: Any, **__: Any) -> None:
        for _ in range(2):
            warnings.warn("not\nmet", GuyotWarning, stacklevel=2)

    monkeypatch.setattr("guyot.app.running.train", train)
    monkeypatch.setattr("signal.signal", lambda *_: None)  # those of the tests stay
    run_trial(base().to_dict(), str(tmp_path / "abc"), os.getppid())
    assert capsys.readouterr().err == 2 * "note: abc: not\\nmet\n"


def test_a_trial_is_its_configuration() -> None:
    names = {trial_name(base(target=target, seed=s)) for target in (0.4, 0.5) for s in (0, 1)}
    assert len(names) == 4
    sweep = Sweep(base(), {"nu": [0.5], "alpha": [0.0, 1.0]})
    configs = [sweep.config(values) for values in sweep.configs()]
    assert [(c.nu, c.target, c.alpha) for c in configs] == [(0.5, None, 0.0), (0.5, None, 1.0)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to sweep over: give values, such as"),
        (["--target", "0.5,x"], "--target='0.5,x': give 0.3,0.5,0.7 for a grid"),
        (["--target", "0.5", "--nu", "1"], "give values of nu or of target, and not of both"),
        (["--alpha", "0,1"], "give values of nu or of target"),
        (["--target", "0.5", "--beta", "0..1"], "for a search, not both"),
        (["--nu", "2..1"], r"--nu=2..1: the first must be less"),
        (["--nu", "1", "--objective", "accuracy,size"], "--objective='size' is unknown"),
        (["--nu", "1", "--workers", "0"], "--workers=0: give at least 1"),
        (["--nu", "0.1..1", "--trials", "0"], "--trials=0: give at least 1"),
        (["--target", "0.5,1.5"], "--target=1.5: give the share"),
        (
            ["--target", "0.5", "--storage", "sqlite:////no/s"],
            "--storage='sqlite:.* cannot be used",
        ),
        (["--target", "0.5", "--storage", "x"], r"--storage='x' cannot be used \(.*give the URL"),
        (
            ["--target", "0.5", "--storage", "mysql+no://me:secret@host/name"],
            r"--storage='mysql\+no://me:\*\*\*@host/name' cannot be used",
        ),
    ],
)
def test_bad_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = command("sweep", str(tmp_path / "sweep"), *arguments)
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_without_optuna_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MisconfiguredError, match=r"pip install 'guyot\[sweep\]'"):
        run(Sweep(base(), {"target": [0.5]}), tmp_path)
