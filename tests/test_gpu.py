"""The benchmark for a GPU, on the CPU with small networks."""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
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
    compiled: list[str | None] = []

    def noted(model: nn.Module, mode: str | None = None) -> nn.Module:
        compiled.append(mode)
        return model

    monkeypatch.setattr(torch, "compile", noted)
    asked = ("--device", "cpu", "--seconds", "0.01", "--results", str(tmp_path))
    run(
        gpu,
        monkeypatch,
        *asked,
        "--cells",
        "gates-resnet20,run-resnet50,graph-vit-s,reduced-llama,widths",
    )
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert set(found) == {
        "gates-resnet20",
        "run-resnet50",
        "graph-vit-s",
        "reduced-llama",
        "widths",
    }
    assert compiled.count("reduce-overhead") == 2 and compiled.count(None) == 4
    for name, captures in (("gates-resnet20", 0), ("graph-vit-s", 2), ("reduced-llama", 0)):
        assert found[name]["ratio"]["median"] > 0 and found[name]["captures"] == captures
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


def test_a_graph_is_captured_for_every_layout(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured: list[int] = []

    def noted(passes: Callable[[], None], device: torch.device) -> Callable[[], None]:
        assert arm.discovery is not None
        captured.append(arm.discovery.layout)
        return passes

    monkeypatch.setattr(gpu, "captured", noted)
    arm = gpu.Arm(gpu.WORKLOADS["resnet20"], torch.device("cpu"), {"round_to": 1}, 100, "graph")
    for _ in range(100):
        arm.step()
    assert arm.discovery.removals and arm.discovery.skipped == 0
    assert captured == sorted(set(captured)) and captured[-1] == arm.discovery.layout
    assert len(captured) == arm.captures >= len(arm.discovery.removals) + 2


def test_what_cannot_be_captured_is_noted_and_the_next_cell_measured(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(gpu, "captured", fails)
    asked = ("--device", "cpu", "--seconds", "0.01", "--results", str(tmp_path))
    run(gpu, monkeypatch, *asked, "--cells", "graph-resnet20,widths")
    found = json.loads((tmp_path / "graph-resnet20.json").read_text())
    assert "stream is capturing" in found["error"] and (tmp_path / "widths.json").exists()
    run(gpu, monkeypatch, "table", "--results", str(tmp_path))
