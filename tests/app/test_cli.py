import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from terminal import run

from guyot import report
from guyot.app import cli
from guyot.app.cli.display import Display
from guyot.app.cli.interrupt import Interruption
from guyot.app.config import RunConfig
from guyot.app.running import Progress, load_run
from guyot.core.errors import GuyotWarning, MisconfiguredError
from guyot.surgery.record import Removal

QUICK = ["--epochs", "3", "--batch-size", "32", "--threads", "1", "--no-bf16"]


@pytest.fixture(scope="module", autouse=True)
def short_measurements() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
        yield


def test_version():
    result = run("--version")
    assert result.exit_code == 0
    assert re.fullmatch(r"guyot \d+\.\d+\.\S+ \(torch \d+\.\d+\S*\)\n", result.output)


def test_a_run_from_start_to_table(tmp_path: Path):
    result = run("train", *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert re.search(r"^ +3/3 .*%.*fine-tune +0:00$", result.output, re.MULTILINE)
    assert "target 50% of the MACs; 3 epochs on" in result.output
    assert re.search(r"^parameters +175 k  => .* k +0\.\d\d$", result.output, re.MULTILINE)
    assert f"Everything is in {tmp_path / 'run'}" in result.output
    lines = [line for line in result.output.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    commands = re.findall(r"^  (guyot \w+) (\S+)", result.output, re.MULTILINE)
    assert [command for command, _ in commands] == [
        "guyot report", "guyot evaluate", "guyot export",
    ]  # fmt: skip
    assert {folder for _, folder in commands} == {str(tmp_path / "run")}
    assert not load_run(tmp_path / "run").training


def test_quiet_prints_the_table_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = run("train", *QUICK, "--quiet", "--no-discovery")
    assert result.exit_code == 0
    assert result.output.startswith("\nmodel digits, data digits")
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"digits-\d{8}-\d{6}", folder.name)


def test_tensorboard_reads_what_was_written(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run("train", *QUICK, "--tensorboard", "--out", tmp_path / "run").exit_code == 0
    folder, everything = str(tmp_path / "run" / "tensorboard"), {"histograms": 0}
    board = EventAccumulator(folder, size_guidance=everything).Reload()
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for tag, event, name in [
        ("loss/training", "steps", "loss"),
        ("cost/macs", "steps", "macs"),
        ("seconds/step", "steps", "seconds"),
        ("accuracy/validation", "epoch", "validation_accuracy"),
        ("gates/nu", "gates", "nu"),
    ]:
        shown = [(scalar.step, scalar.value) for scalar in board.Scalars(tag)]
        written = [(x["step"], x[name]) for x in lines if x["event"] == event]
        assert written and shown == [
            (s, pytest.approx(v, rel=1e-6)) for s, v in written if v is not None
        ]
    first = board.Histograms("keep probability/conv1")[0].histogram_value
    assert (first.num, first.min, first.max) == (16, pytest.approx(0.9), pytest.approx(0.9))


def test_without_tensorboard_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    result = run("train", *QUICK, "--tensorboard", "--out", tmp_path / "run")
    assert result.exit_code == 2 and not (tmp_path / "run").exists()
    assert re.search(r"--tensorboard needs .* pip install 'guyot\[tensorboard\]'", result.stderr)


def test_report(tmp_path: Path):
    assert run("train", *QUICK, "--no-discovery", "--out", tmp_path / "a").exit_code == 0
    page = tmp_path / "page.html"
    result = run("report", tmp_path / "a", "--output", page)
    assert result.exit_code == 0 and re.search(r"page\.html: 1 run, \d+ kB", result.output)
    assert page.read_text().startswith("<!doctype html>")
    values = json.loads(run("report", tmp_path / "a", "--output", page, "--json").stdout)
    assert values["output"] == str(page) and values["runs"][0]["status"] == "finished"
    result = run("report", tmp_path / "a", "--output", page, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    for arguments, message in [
        ((tmp_path,), r"error: run='.*' is not a folder that `guyot train` wrote"),
        ((tmp_path / "a", "--output", tmp_path), r"error: --output='.*' cannot be written .*give"),
    ]:
        result = run("report", *arguments)
        assert result.exit_code == 2 and re.match(message, result.stderr)
        assert len(result.stderr.strip().splitlines()) == 1


def test_json_is_all_there_is_on_stdout(tmp_path: Path):
    result = run("train", *QUICK, "--no-discovery", "--json", "--out", tmp_path / "run")
    assert result.exit_code == 0
    values = json.loads(result.stdout)
    assert values.pop("folder") == str(tmp_path / "run")
    assert values == json.loads((tmp_path / "run" / "result.json").read_text())
    assert re.search(r"^ +3/3 ", result.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nu", "0.3", "--target", "0.5"], "--nu=0.3 and --target=0.5: give one of them"),
        (["--no-discovery", "--nu", "1"], "--nu=1.0 has no effect without discovery"),
        (["--target", "1.5"], "--target=1.5: give the share of the complexity"),
        (["--batch-size", "0"], "--batch-size=0: give at least 1"),
        (["--model", "resnet65"], "--model='resnet65' is unknown, did you mean resnet56"),
        (["--data", "digit"], "--data='digit' is unknown: choose digits"),
        (["--data", "cifar10", "--data-dir", "no/such"], "--data-dir='no/such' holds no train"),
        (["--data", "imagefolder:no/such"], "imagefolder:no/such: there is no such folder"),
        (["--epochs", "1"], "total_steps=20 is too small.*an epoch is 20 steps"),
        (["--ignore", "stages.9"], "--ignore='stages.9' matches no module; close are stages"),
        (["--freeze", "conv2"], "--freeze='conv2' matches no group and no layer; close .*conv1"),
        (["--tie", "conv1,fc"], "--tie='fc' chooses fc, which cannot shrink: an output"),
        (["--no-discovery", "--tie", "a,b"], r"--tie=\('a,b',\) has no effect without discovery"),
        (["--estimator", "magic"], "--estimator='magic': choose two-sided"),
        (["--device", "abacus"], "--device='abacus' cannot be used"),
        (["--out", "."], r"--out='.*' is not empty: give a new folder"),
    ],
)
def test_bad_input_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    result = run("train", *arguments)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert re.search(message, result.stderr)
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


def test_warnings_become_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def train(*_: object, **__: object) -> None:
        warnings.warn("one group was left out", GuyotWarning, stacklevel=1)
        raise MisconfiguredError("batch_size=7 of data_dir='x/data_dir' and (lr=1)")

    monkeypatch.setattr("guyot.app.running.train", train)
    before = warnings.showwarning
    result = run("train", "--quiet", "--out", tmp_path / "run")
    note, error = result.stderr.splitlines()
    assert note == "note: one group was left out"
    assert error == "error: --batch-size=7 of --data-dir='x/data_dir' and (--lr=1)"
    assert warnings.showwarning is before


def test_without_typer_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    for name in [name for name in sys.modules if name.startswith("guyot.app.cli.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(cli, "commands", raising=False)
    monkeypatch.setitem(sys.modules, "typer", None)
    with pytest.raises(SystemExit, match=r"needs the package 'typer'.*pip install 'guyot\[cli\]'"):
        cli.main()


def test_ctrl_c_asks_first_and_aborts_second():
    told: list[bool] = []
    before = signal.getsignal(signal.SIGINT)
    with Interruption(lambda: told.append(True)) as stop:
        with pytest.raises(KeyboardInterrupt):  # nothing to save yet
            signal.raise_signal(signal.SIGINT)
        assert not stop() and not told
        stop.armed = True
        signal.raise_signal(signal.SIGINT)
        assert stop() and told == [True]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def interrupt(monkeypatch: pytest.MonkeyPatch, times: int, when: str) -> None:
    """Press Ctrl-C that often, once, when the display is told something."""
    method: Callable[..., None] = getattr(Display, when)
    left = [times]

    def told(self: Display, *arguments: Any) -> None:
        method(self, *arguments)
        while left[0]:
            left[0] -= 1
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Display, when, told)


def test_ctrl_c_ends_cleanly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupt(monkeypatch, 1, "epoch_ended")
    result = run("train", *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert "stopping after this step; Ctrl-C again to abort" in result.output
    assert "interrupted during discovery" in result.output
    assert json.loads((tmp_path / "run" / "result.json").read_text())["epochs"] == 1
    assert not load_run(tmp_path / "run").training


def test_a_run_goes_on_and_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped and resumed, and once more from its configuration: the same weights."""
    interrupt(monkeypatch, 1, "epoch_ended")
    first, second = tmp_path / "first", tmp_path / "second"
    stopped = run("train", *QUICK, "--out", first)
    assert stopped.exit_code == 130
    assert f"guyot train --resume {first} continues it" in stopped.output
    result = run("train", "--resume", first)
    assert result.exit_code == 0, result.output
    assert "continuing after step 40" in result.output
    repeated = run("train", "--config", first / "config.json", "--out", second, "--quiet")
    assert repeated.exit_code == 0, repeated.output
    for name in ("model.safetensors", "structure.json", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    again = run("train", "--resume", first)
    assert again.exit_code == 2 and "is finished, there is nothing to continue" in again.stderr
    for option in (["--epochs", "3"], ["--no-discovery"], ["--out", "x"]):
        mixed = run("train", "--resume", first, *option)
        assert mixed.exit_code == 2
        assert re.search(rf"{option[0]}\S* has no effect with --resume=", mixed.stderr)


def test_options_overrule_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[RunConfig] = []

    def train(config: RunConfig, *_: object, **__: object) -> None:
        seen.append(config)
        raise MisconfiguredError("stop here")

    monkeypatch.setattr("guyot.app.running.train", train)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(RunConfig.of("digits", target=0.3, epochs=7).to_dict()))
    for option, expected in (
        (["--nu", "0.2"], {"nu": 0.2, "target": None}),
        (["--target", "0.4"], {"nu": None, "target": 0.4}),
        (["--no-discovery"], {"discovery": False, "target": None}),
        (["--seed", "3"], {"target": 0.3, "seed": 3}),
    ):
        assert run("train", "--config", file, *option).exit_code == 2
        settings = seen[-1].to_dict()
        assert settings["epochs"] == 7
        assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json cannot be read: No such file"),
        ("{", "config.json cannot be read: Expecting"),
        ("[1]", "the configuration is a list: give settings by name"),
        ('{"epoch": 3}', "'epoch' is no setting of a run, did you mean epochs.*: known are alpha"),
        ('{"a\\u000ab": 3}', r"'a\\nb' is no setting of a run: known are alpha"),
        ('{"epochs": "3"}', "--epochs='3': give a whole number"),
        ('{"lr": null}', "--lr=None: give a num"),
        ('{"epochs": true}', "--epochs=True: give a whole number"),
        ('{"epochs": 1e3}', "--epochs=1000.0: give a whole number"),
        ('{"ignore": "conv1"}', "--ignore='conv1': give a list of patterns"),
        ('{"data": "digits\\u0000"}', r"--data='digits.x00': leave out characters"),
        ('{"model": "\\ud800"}', r"--model='.ud800': leave out characters"),
        ('{"seed": 9999999999}', "--seed=9999999999: give a number below 2147483648"),
        ('{"nu": 0.3, "target": 0.5}', "--nu=0.3 and --target=0.5: give one of them"),
    ],
)
def test_bad_configurations_are_one_paragraph(tmp_path: Path, text: str | None, message: str):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    result = run("train", "--config", file, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: digits\nepoch: 3", "'epoch' is no setting of a run, did you mean epochs"),
        (
            "epochs: few\nlr: -1e-3",
            "--epochs='few': give a whole number\nerror: --lr=-0.001: give a",
        ),
        ("- digits", "the configuration is a list: give settings by name, such as data: digits"),
        ("epochs: [3", "config.yaml cannot be read: while parsing"),
        ("ignore: conv1", "--ignore=.*'conv1'"),
        ("a: &a [*a]", "'a' is no setting"),
        ("!!python/object/apply:os.system [exit]", "cannot be read: could not determine a constr"),
    ],
)
def test_bad_yaml(tmp_path: Path, text: str, message: str):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    result = run("train", "--config", file, "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert re.search(message, result.stderr), result.stderr
    assert not (tmp_path / "run").exists()


def test_a_file_names_what_differs_from_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[RunConfig] = []

    def train(config: RunConfig, *_: object, **__: object) -> None:
        seen.append(config)
        raise MisconfiguredError("stop here")

    monkeypatch.setattr("guyot.app.running.train", train)
    for text, expected in (
        ("epochs: 3\nlr: 1e-2\nfreeze: [conv1]", {"epochs": 3, "lr": 0.01, "freeze": ("conv1",)}),
        ("data: cifar10\nnu: 0.2\nbf16: false", {"data": "cifar10", "nu": 0.2, "bf16": False}),
    ):
        for file in (tmp_path / "config.yaml", tmp_path / "config.json"):
            values = {name: v if v != "1e-2" else 0.01 for name, v in yaml.safe_load(text).items()}
            file.write_text(text if file.suffix == ".yaml" else json.dumps(values))
            run("train", "--config", file)
        assert seen[-2] == seen[-1] == RunConfig.of(**{"data": "digits", **expected})


def test_a_second_ctrl_c_aborts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    interrupt(monkeypatch, 2, "stepped")
    result = run("train", *QUICK, "--out", tmp_path / "run")
    assert result.exit_code == 130
    assert re.search(r"aborted: .*run is incomplete", result.stderr)
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_the_program_stops_at_a_real_signal(tmp_path: Path, number: signal.Signals):
    program = [sys.executable, "-c", "from guyot.app.cli import main; main()"]
    command = [*program, "train", *QUICK, "--epochs", "500", "--out", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text()) and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number, output
    assert "interrupted during warm-up" in output and "Traceback" not in output
    saved = [int(folder.name[-4:]) for folder in (tmp_path / "run" / "checkpoints").iterdir()]
    assert max(saved) % 20  # in the middle of an epoch
    assert not load_run(tmp_path / "run").training


def test_a_terminal_gets_a_bar_and_the_same_rows(capsys: pytest.CaptureFixture[str]):
    console = Console(force_terminal=True, width=80)
    config = RunConfig.of("digits", nu=0.3, alpha=0.5, device="cpu", threads=1, bf16=True)
    epoch = Progress(1, 20, 1.5, 0.5, 0.75, 800_000, 90_000, 12, 0.6, "discovery", 0.1, 70.0)
    began: list[bool] = []
    with Display(console, lambda: began.append(True), quiet=False) as display:
        display.started(config, 20, 1_600_000, 180_000)
        display.stepped(1, 2.25)
        display.removed(Removal(3, {}, ("stages.1.0",), 900_000))
        display.epoch_ended(epoch)
        display.measuring()
    output = capsys.readouterr().out
    assert began == [True]
    assert "nu 0.3; 60 epochs on cpu, 1 thread, bf16" in output
    assert "the layer stages.1.0 is gone" in output
    assert "  1/60   1.5000   50.0%   75.0%   50.0%   50.0%     12  discovery   1h08" in output
    assert "testing and timing" in output
