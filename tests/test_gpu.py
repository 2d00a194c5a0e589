"""The benchmark for a GPU, on the CPU with small networks."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT
from torch import nn


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`benchmarks/gpu.py` with one small network and short runs."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = importlib.import_module("gpu")
    small = replace(
        found.WORKLOADS["resnet20"],
        make=lambda: nn.Sequential(
            nn.Conv2d(3, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)
        ),
        inputs=found.images(8),
        batch=2,
    )
    monkeypatch.setattr(found, "WORKLOADS", dict.fromkeys(found.WORKLOADS, small))
    monkeypatch.setattr(found, "STEPS", 100)
    monkeypatch.setattr(found, "WIDTHS", (8, 12))
    yield found
    for name in ("gpu", "costs", "runs"):
        sys.modules.pop(name, None)


def run(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu.py", *options])
    gpu.main()


def test_cells_are_measured_once_and_printed(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: model)
    asked = ("--device", "cpu", "--seconds", "0.01", "--results", str(tmp_path))
    run(gpu, monkeypatch, *asked, "--cells", "gates-resnet20,run-resnet50,widths")
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(found) == {"gates-resnet20", "run-resnet50", "widths"}
    assert found["gates-resnet20"]["ratio"]["median"] > 0
    assert 0 < found["run-resnet50"]["macs"] < 1
    assert set(found["widths"]["ms"]) == {"8", "12"}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    run(gpu, monkeypatch, *asked, "--minutes", "0")
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert "minutes are over before gates-resnet50" in capsys.readouterr().out
    run(gpu, monkeypatch, "table", "--results", str(tmp_path))
    assert "| run-resnet50 | " in capsys.readouterr().out


def test_a_machine_without_a_gpu_is_told(
    gpu: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run(gpu, monkeypatch, "--results", str(tmp_path / "none"))
    assert "there is no GPU here" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()
