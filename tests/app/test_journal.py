"""What a run writes down while it goes on, against what the discovery says at the time."""

import json
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guyot import report
from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.models import digits_resnet
from guyot.app.recording import Extent
from guyot.app.recording.lines import _spread
from guyot.app.running import Silent
from guyot.app.running.folder import RunFolder
from guyot.app.running.journal import Journal
from guyot.discovery.discovery import Discovery

Lines = list[dict[str, Any]]


def of(lines: Lines, event: str) -> Lines:
    return [line for line in lines if line["event"] == event]


def config(**choices: Any) -> RunConfig:
    return RunConfig.of("digits", epochs=3, batch_size=32, threads=1, bf16=False, **choices)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    folder = tmp_path_factory.mktemp("run") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
        running.train(config(beta=1.0, round_to=4), folder)
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_first_line_describes_the_network(lines: Lines):
    first = lines[0]
    assert [line["event"] for line in lines].count("network") == 1
    assert (first["steps"], first["steps_per_epoch"], first["discovery"]) == (120, 40, [12, 48])
    assert sum(operation["macs"] for operation in first["operations"]) == first["macs"]
    assert [group["name"] for group in first["groups"]][:2] == ["conv1", "stages.0.0.conv1"]
    inner = {g["name"]: [first["layers"][n] for n in g["layers"]] for g in first["groups"]}
    assert inner["stages.1.0.conv1"] == ["stages.1.0"] and inner["stages.1.0.conv2"] == []
    produced = {
        o["name"]: [first["groups"][g]["name"] for g in o["groups"]] for o in first["operations"]
    }
    assert produced["stages.1.0.conv2"] == ["stages.1.0.conv2"] and produced["fc"] == []


def test_figures_come_with_their_step(lines: Lines):
    figures = of(lines, "steps")
    assert [line["step"] for line in figures] == list(range(1, 121))
    assert figures[0]["macs"] == lines[0]["macs"] and figures[0]["expected_complexity"] == 1
    assert figures[-1]["macs"] == of(lines, "epoch")[-1]["macs"] < lines[0]["macs"]
    losses = [line["loss"] for line in figures]
    for epoch in of(lines, "epoch"):
        last = epoch["step"]
        mean = sum(losses[last - 40 : last]) / 40
        assert mean == pytest.approx(epoch["loss"], rel=0.02)  # the last batch is smaller
    unmeasured = [line["step"] for line in figures if line["seconds"] is None]
    assert unmeasured == [1, 41, 81]  # what happens between epochs is no step
    assert all(0 < line["seconds"] < 60 for line in figures if line["seconds"] is not None)


def test_a_removal_says_what_is_left(lines: Lines):
    removals = of(lines, "removal")
    assert any(line["layers"] for line in removals) and any(line["units"] for line in removals)
    sizes = {group["name"]: group["size"] for group in lines[0]["groups"]}
    for line in removals:
        assert sum(line["operations"].values()) == line["macs"]
        for name, units in line["units"].items():
            sizes[name] -= len(units)
        assert all(sizes[name] == width for name, width in line["widths"].items())


def test_snapshots_know_removed_units_by_their_original_number(lines: Lines):
    first, snapshots = lines[0], of(lines, "gates")
    assert 5 < len(snapshots) <= 62
    assert [line["step"] for line in snapshots] == sorted({line["step"] for line in snapshots})
    for line in snapshots:
        before = of(lines[: lines.index(line)], "removal")
        gone = {(name, u) for r in before for name, units in r["units"].items() for u in units}
        left = set(before[-1]["widths"]) if before else {g["name"] for g in first["groups"]}
        for group, theta, benefit in zip(
            first["groups"], line["theta"], line["benefit"], strict=True
        ):
            name = group["name"]
            marked = [(name, u) in gone or name not in left for u in group["rows"]]
            assert [value == -1 for value in theta] == marked
            assert all(0 <= value <= 100 for value in theta if value != -1)
            assert len(benefit) == len(theta)
        layers = {name for r in before for name in r["layers"]}
        assert [n in layers for n in first["layers"]] == [
            value == -1 for value in line["layers"]["theta"]
        ]
    assert {v for theta in snapshots[-1]["theta"] for v in theta} <= {-1, 0, 100}


class Folder(RunFolder):
    """Keeps the lines in memory."""

    def __init__(self) -> None:
        self.lines: Lines = []

    def metric(self, event: str, values: Any) -> None:
        self.lines.append(json.loads(json.dumps({"event": event, **values})))


def test_a_snapshot_is_what_the_discovery_says():
    model, steps = digits_resnet(), 100
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    discovery = Discovery(model, (torch.randn(2, 1, 8, 8),), optimizer, total_steps=steps, nu=0.5)
    folder = Folder()
    journal = Journal(folder, Silent(), discovery, Extent(steps, (1, 1), (1, 1)))
    for step in range(1, 17):
        model(torch.randn(4, 1, 8, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
        journal.stepped(step)
    last = of(folder.lines, "gates")[-1]
    assert (last["step"], last["nu"]) == (16, 0.5)
    names = [group.name for group in discovery.original.groups]
    for number, name in enumerate(names):
        theta, benefit = discovery.keep_probs[name], discovery.benefits[name]
        assert last["theta"][number] == [round(100 * value) for value in theta.tolist()]
        assert last["benefit"][number] == pytest.approx(benefit.tolist(), rel=0.01)
        assert last["expected"][number] == pytest.approx(float(theta.sum()), abs=0.01)
        assert last["earned"][number] == pytest.approx(float(benefit.sum()), rel=0.01)
        price = discovery.prices[name]
        assert last["price"][number] == pytest.approx(float(price.mean()), rel=0.01)
    layer = discovery.original.layers[2].name
    assert last["layers"]["price"][2] == pytest.approx(
        float(discovery.prices[f"layer {layer}"]), rel=0.01
    )


@given(st.integers(1, 5000), st.integers(1, 80))
def test_rows_are_spread_evenly(size: int, bound: int):
    rows = _spread(size, bound)
    assert len(rows) == min(size, bound) and rows[0] == 0 and rows[-1] < size
    gaps = {b - a for a, b in pairwise(rows)}
    assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_a_long_run_leaves_few_lines():
    folder = Folder()
    journal = Journal(folder, Silent(), None, Extent(100_000, (7, 5), (7, 5)))
    for step in range(1, 100_001):
        journal.loss(1.0)
        journal.stepped(step)
    assert len(folder.lines) == 200
    assert {(line["macs"], line["params"], line["loss"]) for line in folder.lines} == {(7, 5, 1.0)}
    assert folder.lines[-1]["step"] == 100_000
