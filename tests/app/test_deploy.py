"""`guyot evaluate` and `guyot export`, on the folder of a real run."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from guyot import report
from guyot.app import running
from guyot.app.cli.commands import app
from guyot.app.config import RunConfig
from guyot.app.data import Batches, load_dataset
from guyot.app.models import count_macs
from guyot.app.running import evaluate_run, export_run, load_run
from guyot.core.errors import GuyotWarning, MisconfiguredError


@pytest.fixture(scope="module", autouse=True)
def short_measurements() -> Iterator[None]:
    quick = partial(report.measure, seconds=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guyot.costs.timing.measure", quick)
        yield


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run; nobody writes to it."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    config = RunConfig.of("digits", epochs=3, batch_size=32, threads=1, bf16=False, round_to=4)
    running.train(config, folder)
    return folder


@pytest.fixture
def run(ended: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(ended, tmp_path / "run"))


def guyot(*arguments: str | Path) -> Any:
    environment = {"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(app, [str(a) for a in arguments])


def test_evaluation_agrees_with_the_run(ended: Path):
    result = json.loads((ended / "result.json").read_text())
    found = evaluate_run(ended)
    assert found.score == result["after"]["test_accuracy"]
    assert (found.macs, found.params) == (result["after"]["macs"], result["after"]["params"])
    assert set(found.latency) == {1, 64} and found.latency[1].median > 0
    dataset = load_dataset("digits")
    images, labels = next(Batches(dataset, dataset.test, 500, augment=False).epoch(0))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(load_run(ended)(images), labels)
    assert found.images == len(labels) == 359
    assert found.loss == pytest.approx(float(loss), rel=1e-5)


def test_evaluate_prints_a_table_or_json(ended: Path):
    result = guyot("evaluate", ended)
    assert result.exit_code == 0, result.output
    assert re.search(r"^359 images of 1x8x8; cpu, \d+ threads?$", result.output, re.MULTILINE)
    assert re.search(r"^test accuracy +\d\d\.\d\d%$", result.output, re.MULTILINE)
    assert re.search(r"^test loss +0\.\d{4} nats$", result.output, re.MULTILINE)
    assert re.search(r"^latency, batch 64 +\d", result.output, re.MULTILINE)
    figures = guyot("evaluate", ended, "--quiet").output
    assert re.match(r"test accuracy .*\ntest loss ", figures) and "images of" not in figures
    assert max(map(len, figures.splitlines())) <= 80
    values = json.loads(guyot("evaluate", ended, "--json").stdout)
    assert (
        values["accuracy"]
        == json.loads((ended / "result.json").read_text())["after"]["test_accuracy"]
    )
    assert values["data"] == "digits" and set(values["latency"]["1"]) >= {"median", "low", "high"}


def test_export_to_onnx(run: Path):
    result = guyot("export", run, "--format", "onnx")
    assert result.exit_code == 0, result.output
    output = result.output.replace("\n", "")
    assert f"{run / 'model.onnx'}: " in output
    time = r"[\d.]+ ms \([\d.]+-[\d.]+\)"  # median and quartiles
    assert re.search(rf"^batch +torch +onnxruntime\n +1 +{time} +{time}$", result.output, re.M)
    session = importlib.import_module("onnxruntime").InferenceSession(run / "model.onnx")
    dataset = load_dataset("digits")
    images, labels = next(Batches(dataset, dataset.test, 500, augment=False).epoch(0))
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.contiguous().numpy()})
    accuracy = float((torch.from_numpy(logits).argmax(1) == labels).float().mean())
    assert accuracy == pytest.approx(evaluate_run(run).score, abs=0.5 / len(labels))


@pytest.mark.parametrize(("kind", "name"), [("pt2", "model.pt2"), ("state-dict", "state-dict")])
def test_export_to_the_run_folder(run: Path, kind: str, name: str):
    values = json.loads(guyot("export", run, "--format", kind, "--json").stdout)
    assert values["output"] == str(run / name) and (run / name).exists()
    assert values["size"] > 4 * evaluate_run(run).params and values["latency"] == {}
    assert values["difference"] < 1e-5


def test_export_to_another_place(run: Path, tmp_path: Path):
    arguments = ("--format", "state-dict", "--output", tmp_path / "plain", "--quiet")
    result = guyot("export", run, *arguments)
    assert (result.exit_code, result.output) == (0, f"{tmp_path / 'plain'}\n")
    sys.path.insert(0, str(tmp_path))
    try:
        network = importlib.import_module("plain.model").load()
    finally:
        sys.path.remove(str(tmp_path))
    images = torch.randn(9, 1, 8, 8)
    assert torch.allclose(network(images), load_run(run)(images), atol=1e-6)
    assert count_macs(network, images) == evaluate_run(run).macs


def test_what_exists_is_not_overwritten(run: Path):
    (run / "model.pt2").write_text("mine")
    result = guyot("export", run, "--format", "pt2")
    assert result.exit_code == 2
    assert re.search(r"error: --output='.*model.pt2' exists: give another", result.stderr)


def test_an_unknown_format_is_told(run: Path):
    result = guyot("export", run, "--format", "tflite")
    assert result.exit_code == 2
    assert "error: --format='tflite' is unknown: choose onnx, pt2, state-dict" in result.stderr


@pytest.mark.parametrize("command", [("evaluate",), ("export", "--format", "pt2")])
def test_what_is_no_finished_run_is_told(command: tuple[str, ...], run: Path, tmp_path: Path):
    result = guyot(*command, tmp_path)
    assert result.exit_code == 2
    assert re.search(r"error: '.*' is not a run folder \(.*config.json", result.stderr)
    (run / "model.safetensors").unlink()
    result = guyot(*command, run)
    assert result.exit_code == 2
    assert re.search(r"error: the run in '.*' has not ended, it has no model.saf", result.stderr)


def test_a_missing_extra_is_named(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    result = guyot("export", run, "--format", "onnx")
    assert result.exit_code == 2
    assert re.search(r"'onnxruntime', .*: pip install 'guyot\[onnx\]'", result.stderr)
    assert not (run / "model.onnx").exists()


def test_an_interrupted_run_says_so(run: Path):
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps(result | {"interrupted": "discovery"}))
    with pytest.warns(GuyotWarning, match="was interrupted during discovery: this is the network"):
        export_run(run, "pt2")


def test_other_data_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch):
    config = json.loads((run / "config.json").read_text())
    with pytest.raises(MisconfiguredError, match="data_dir='here' is for CIFAR only"):
        evaluate_run(run, "here")
    (run / "structure.json").write_text(
        (run / "structure.json").read_text().replace('"classes": 10', '"classes": 7')
    )
    monkeypatch.setattr(running.deploy, "load_run", lambda folder, trust: torch.nn.Linear(1, 1))
    with pytest.raises(MisconfiguredError, match=r"has 10 classes .*the network 7 and"):
        evaluate_run(run)
    (run / "config.json").write_text(json.dumps(config | {"data": "imagefolder:gone"}))
    with pytest.raises(MisconfiguredError, match="imagefolder:elsewhere: there is no such folder"):
        evaluate_run(run, "elsewhere")


def test_a_device_that_is_not_here(run: Path):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"device": "cuda:9"}))
    with pytest.warns(GuyotWarning, match="used the device cuda:9, which is not here"):
        assert evaluate_run(run).device == "cpu"
