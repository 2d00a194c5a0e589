"""A loop of one's own gets the page of `guyot report`."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import guyot
from guyot.core.errors import MisconfiguredError, SequenceError, StorageError

STEPS = 100


def start() -> tuple[nn.Module, torch.optim.Optimizer, guyot.Discovery]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    discovery = guyot.Discovery(
        model,
        torch.randn(2, 6),
        optimizer,
        total_steps=STEPS,
        target=0.5,
        config=guyot.DiscoveryConfig(round_to=2),
    )
    return model, optimizer, discovery


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    discovery: guyot.Discovery,
    steps: range,
    recorder: guyot.Recorder | None = None,
) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(16, 6, generator=generator)
        loss = nn.functional.cross_entropy(model(x), x[:, :3].argmax(1))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if recorder is not None:
            recorder.note(loss=loss)
        discovery.step()


def data_of(page: Path) -> dict[str, Any]:
    text = page.read_text(encoding="utf-8")
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_two_lines_give_the_page(tmp_path: Path) -> None:
    model, optimizer, discovery = start()
    recorder = guyot.Recorder(discovery)
    train(model, optimizer, discovery, range(STEPS))
    discovery.finish()
    page = recorder.report(tmp_path / "page.html")
    text = page.read_text(encoding="utf-8")
    assert "Sequential, target 50 % of the MACs" in text
    assert f"The network ended at {100 * discovery.macs / discovery.full_macs:.1f} %" in text
    assert "Training loss" not in text and ">step</text>" in text
    network = data_of(page)["networks"][0]
    assert network["steps"][0] == discovery.phases.discovery_start
    assert network["groups"][0]["expected"][-1] == discovery.structures.groups[0].size < 24
    assert network["macs"][-1] and sum(values[-1] for values in network["macs"]) == discovery.macs


def test_losses_and_accuracies_are_shown_over_epochs(tmp_path: Path) -> None:
    model, optimizer, discovery = start()
    recorder = guyot.Recorder(discovery, model="net", data="noise", steps_per_epoch=20)
    for epoch in range(STEPS // 20):
        train(model, optimizer, discovery, range(20 * epoch, 20 * epoch + 20), recorder)
        recorder.note(validation_accuracy=0.5 + epoch / 10)
    discovery.finish()
    page = recorder.report(tmp_path / "page.html", test_accuracy=0.9, test_samples=200)
    text = page.read_text(encoding="utf-8")
    assert "net on noise" in text and "Test accuracies count 200 images" in text
    panels = {panel["title"]: panel for panel in data_of(page)["curves"]["panels"]}
    assert panels["Validation accuracy"]["x"] == [[1, 2, 3, 4, 5]]
    assert panels["Validation accuracy"]["text"][0][-1] == "90.0 %"
    assert len(panels["Training loss"]["x"][0]) == STEPS


def test_a_run_under_way_and_one_that_is_resumed(tmp_path: Path) -> None:
    model, optimizer, discovery = start()
    recorder = guyot.Recorder(discovery)
    checkpoints = guyot.Checkpointer(
        tmp_path / "kept", model, discovery, optimizer=optimizer, recorder=recorder
    )
    train(model, optimizer, discovery, range(60), recorder)
    assert "is not finished" in recorder.report(tmp_path / "now.html").read_text(encoding="utf-8")
    checkpoints.save(60)

    model, optimizer, discovery = start()
    again = guyot.Recorder(discovery)
    guyot.Checkpointer(
        tmp_path / "kept", model, discovery, optimizer=optimizer, recorder=again
    ).resume()
    train(model, optimizer, discovery, range(60, STEPS), again)
    discovery.finish()
    panels = data_of(again.report(tmp_path / "end.html"))["curves"]["panels"]
    assert panels[0]["title"] == "Training loss" and len(panels[0]["x"][0]) == STEPS


def test_wrong_use_is_said(tmp_path: Path) -> None:
    _, _, discovery = start()
    with pytest.raises(MisconfiguredError, match=r"steps_per_epoch=0: give the number"):
        guyot.Recorder(discovery, steps_per_epoch=0)
    recorder = guyot.Recorder(discovery)
    with pytest.raises(MisconfiguredError, match=r"accuracy=93: give a share from 0 to 1, not per"):
        recorder.note(accuracy=93)
    with pytest.raises(StorageError, match=r"there is no folder '.*none'"):
        recorder.report(tmp_path / "none" / "page.html")
    discovery.abandon()
    with pytest.raises(SequenceError, match=r"Recorder\(discovery\) after finish\(\)"):
        guyot.Recorder(discovery)
