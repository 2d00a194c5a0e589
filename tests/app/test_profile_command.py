"""`guyot profile`, and `guyot train` with a budget in milliseconds."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from guyot import report
from guyot.app.cli.commands import app
from guyot.app.config import RunConfig
from guyot.app.models import build
from guyot.app.running import load_run
from guyot.app.running.setup import cost_of, resolve
from guyot.core.errors import MisconfiguredError
from guyot.costs.latency import LatencyTable, Measurement, Rate
from guyot.structures import find_structures


def run(*arguments: str | Path) -> Any:
    environment = {"COLUMNS": "80", "TERMINAL_WIDTH": "80", "NO_COLOR": "1"}
    return CliRunner(env=environment).invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the digits network; every kernel takes 0.01 ms and a little for its MACs."""
    structures = find_structures(build("digits"), (torch.zeros(1, 1, 8, 8),), verify=False)
    made = LatencyTable(
        {kernel.name: Rate(0.01, 1e-7) for kernel in structures.kernels},
        batch=1,
        full=1.0,
        quantum=16,
        input_shapes=structures.input_shapes,
    )
    made = replace(made, full=made.milliseconds(structures))
    path = tmp_path_factory.mktemp("table") / "table.json"
    made.save(path)
    return path


def test_measure_and_say_how_well_it_predicts(tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    arguments = ("digits", "--threads", "1", "--seconds", "0", "--output", output)
    threads = torch.get_num_threads()
    result = run("profile", *arguments)
    assert result.exit_code == 0, result.output
    assert torch.get_num_threads() == threads
    assert max(len(line) for line in result.stdout.splitlines()[:-1]) <= 80
    for text in ("ms predicted, ", "goes with layers alone", "each predicted from the others:"):
        assert text in result.output
    assert LatencyTable.load(output).where["threads"] == "1"
    values = json.loads(run("profile", *arguments, "--json").stdout)
    assert values["table"] == str(output)
    assert len(values["measured"]) == len(values["predictions"]) == 17


def test_measurements_from_elsewhere(tmp_path: Path) -> None:
    networks = [
        Measurement({}, (), 5.0),
        Measurement({"conv1": 8}, (), 4.0),
        Measurement({"conv1": 8}, ("stages.0.1",), 3.5),
        Measurement({}, ("stages.0.1", "stages.1.1"), 3.0),
    ]
    (tmp_path / "phone.json").write_text(json.dumps({"networks": [asdict(n) for n in networks]}))
    output = tmp_path / "table.json"
    given = ("--measurements", tmp_path / "phone.json", "--output", output)
    assert run("profile", "digits", *given, "--quiet").output == f"{output}\n"
    table = LatencyTable.load(output)
    assert table.full == pytest.approx(5.0, rel=0.1)
    assert table.where == {"file": "phone.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digit"], "model='digit' is unknown, did you mean digits"),
        (["digits", "--batch", "0"], "--batch=0: give at least 1"),
        (["digits", "--input-size", "8x"], "--input-size='8x': give pixels as 224 or 3x224x224"),
        (["digits", "--device", "abacus"], "--device='abacus' cannot be used"),
        (["digits", "--output", "no/such/table.json"], "--output=.* its folder does not exist"),
        (["digits", "--measurements", "phone.json"], "--measurements='phone.json' cannot be read"),
    ],
)
def test_bad_input_is_one_paragraph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("profile", *arguments)
    assert result.exit_code == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert re.search(message, result.stderr), result.stderr
    assert not list(tmp_path.iterdir())


def test_train_within_milliseconds(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
    made = LatencyTable.load(table)
    result = run(
        *("train", "--epochs", "3", "--batch-size", "32", "--threads", "1", "--no-bf16"),
        *("--round-to", "8"),
        *("--cost", "latency", "--latency-table", table, "--target-ms", "0.4"),
        *("--out", tmp_path / "run"),
    )
    assert result.exit_code == 0, result.output
    assert "target 59% of the latency; 3 epochs" in result.output
    assert LatencyTable.load(tmp_path / "run" / "latency.json") == made
    network = load_run(tmp_path / "run")
    left = find_structures(network, (torch.zeros(1, 1, 8, 8),), verify=False)
    assert made.milliseconds(left) == pytest.approx(0.4, rel=0.1)


@pytest.mark.slow
def test_a_sweep_counts_latency(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
    quick = "--epochs 3 --batch-size 32 --threads 1 --round-to 8 --target 0.5,0.7".split()
    result = run(
        *("sweep", tmp_path / "sweep", *quick, "--json", "--quiet"),
        *("--cost", "latency", "--latency-table", table),
    )
    assert result.exit_code == 0, result.output
    made, example = LatencyTable.load(table), (torch.zeros(1, 1, 8, 8),)
    for trial in json.loads(result.stdout)["trials"]:
        left = find_structures(load_run(trial["folder"]), example, verify=False)
        assert made.milliseconds(left) / made.full == pytest.approx(trial["dials"]["target"], 0.1)
    result = run("sweep", tmp_path / "none", *quick, "--cost", "latency")
    assert result.exit_code == 2
    assert "--cost='latency' and --latency-table=None: give both" in " ".join(result.stderr.split())


def test_settings_become_a_cost(table: Path) -> None:
    config = RunConfig.of(
        "digits", cost="macs=1,latency=3", latency_table=str(table), target=0.5, device="cpu"
    )
    assert RunConfig.from_dict(config.to_dict()) == config
    cost = cost_of(config)
    assert not isinstance(cost, float)
    assert cost.shares == (0.25, 0.0, 0.75)
    assert cost.table == LatencyTable.load(table)
    assert cost_of(RunConfig.of("digits", alpha=0.3)) == 0.3
    assert (resolve(config).round_to or 0) >= 16  # what prediction asks for


def test_a_target_in_milliseconds_becomes_a_share(table: Path) -> None:
    config = RunConfig.of(
        "digits", cost="latency", latency_table=str(table), target_ms=0.4, device="cpu", round_to=8
    )
    assert config.target is None
    resolved = resolve(config)
    assert (
        resolved.target == pytest.approx(0.4 / LatencyTable.load(table).full)
        and resolved.target_ms is None
    )


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"cost": "latency"}, "cost='latency' and latency_table=None: give both"),
        ({"latency_table": "t.json"}, "cost=None and latency_table='t.json': give both"),
        ({"cost": "speed"}, "cost='speed': give weights of macs, params, latency"),
        ({"cost": "macs=fast"}, "cost='macs=fast': give weights of macs, params, latency"),
        ({"cost": "macs=-1"}, "cost='macs=-1': give weights of macs, params, latency"),
        ({"cost": "macs=0"}, "cost='macs=0' weighs nothing: give a weight above 0"),
        ({"cost": "macs", "alpha": 0.5}, "alpha=0.5 and cost='macs' both say what complexity"),
        ({"target_ms": 3.0}, "target_ms=3.0 is for cost=latency alone and cost is None"),
        ({"target_ms": 3.0, "target": 0.5}, "target=0.5 and target_ms=3.0: give one of them"),
        ({"discovery": False, "cost": "macs"}, "cost=macs has no effect without discovery"),
    ],
)
def test_contradictions(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        RunConfig.of("digits", **choices)


def test_a_table_that_is_not_there() -> None:
    config = RunConfig.of("digits", cost="latency", latency_table="none.json", device="cpu")
    with pytest.raises(MisconfiguredError, match=r"'none.json' cannot be read .* `guyot profile`"):
        resolve(config)
