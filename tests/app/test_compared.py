"""`guyot train --baseline` and `--seeds`: what is trained, resumed, refused and compared."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import assert_same
from terminal import run

from guyot import find_structures, report
from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.models import build, count_macs
from guyot.app.running import Silent, load_run
from guyot.core.errors import MisconfiguredError
from guyot.costs.widths import physical_plan, quanta_of, uniform_plan
from guyot.discovery.checkpoint import checkpoints_in
from guyot.report import read_runs
from guyot.surgery import operate

QUICK = "--model mlp --epochs 3 --batch-size 32 --threads 1 --no-bf16 --round-to 4".split()


def config(**choices: Any) -> RunConfig:
    short: dict[str, Any] = {"epochs": 3, "batch_size": 32, "bf16": False, "round_to": 4}
    return RunConfig.of("digits", **(short | {"model": "mlp", "threads": 1} | choices))


@pytest.fixture(scope="module", autouse=True)
def short_measurements() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "run"
    assert running.ComparedRuns(folder).train(config(baseline="slim"))
    return folder


class Counting(Silent):
    """Counts optimiser steps over all runs."""

    count = 0

    def stepped(self, step: int, loss: float) -> None:
        self.count += 1


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_the_slim_network_has_at_least_the_macs_of_the_result(whole: Path) -> None:
    found, full, slim = (result(whole / kind)["after"] for kind in (".", "full", "slim"))
    assert found["macs"] <= slim["macs"] < full["macs"] == result(whole)["before"]["macs"]
    assert slim["macs"] < found["macs"] + 0.15 * full["macs"]
    assert all(network["test_accuracy"] > 0.2 for network in (found, full, slim))
    model = load_run(whole / "slim")
    assert count_macs(model, torch.zeros(1, 1, 8, 8)) == slim["macs"]


def test_the_recipe_is_the_same(whole: Path) -> None:
    own, full, slim = (
        json.loads((whole / kind / "config.json").read_text()) for kind in (".", "full", "slim")
    )
    for name in ("seed", "epochs", "lr", "batch_size", "round_to", "data", "bf16", "threads"):
        assert own[name] == full[name] == slim[name]
    assert (own["baseline"], full["baseline"]) == ("slim", None)


def test_the_table_and_the_page_know_the_full_network(whole: Path) -> None:
    output = run("compare", whole).stdout
    for name in ("found", "full", "slim"):
        assert f"\n{name} " in output
    assert "of 359" in output and "against full network" in output and "1.00" in output
    values = json.loads(run("compare", whole, "--json").stdout)
    assert [one["name"] for one in values["runs"]] == ["found", "full", "slim"]
    assert values["runs"][0]["difference"] and not values["runs"][1]["difference"]
    runs = read_runs([whole])
    assert runs[0].before.test_score == result(whole / "full")["after"]["test_accuracy"]
    page = report.render(runs)
    assert "Against the full network: found " in page and "points (" in page
    assert "Test accuracies count 359 images" in page
    alone = report.render(runs[:1])
    assert "The full network, trained in the same way, has" in alone
    assert "not trained alone" not in alone


def test_a_baseline_that_was_stopped_continues(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "slim")
    (folder / "full/result.json").unlink()
    shutil.rmtree(checkpoints_in(folder / "full/checkpoints")[-1])
    assert read_runs([folder])[0].before.test_score is None
    steps = Counting()
    assert running.ComparedRuns(folder, steps).resume()
    assert steps.count == 40 + 120  # the last epoch of the full network, all of the slim one
    for kind in (".", "full", "slim"):
        assert_same(folder / kind, whole / kind)
    with pytest.raises(MisconfiguredError, match=r"is finished.*guyot compare"):
        running.ComparedRuns(folder).resume()


def test_nothing_more_is_trained_once_it_is_to_stop(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "slim")
    assert not running.ComparedRuns(folder, stop=lambda: True).resume()
    assert not (folder / "slim").exists()


def test_several_seeds(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = run("train", *QUICK, "--epochs", "1", "--no-discovery", "--seeds", "2", "--out", folder)
    assert done.exit_code == 0, done.output
    assert "over seeds" in done.stdout and f"Everything is in {folder}" in done.stdout
    seeds = [json.loads((folder / f"seed-{n}/config.json").read_text())["seed"] for n in range(2)]
    assert seeds == [0, 1]
    assert [found.name for found in read_runs([folder])] == ["seed 0: found", "seed 1: found"]
    for command in (["evaluate", folder], ["export", folder, "--format", "pt2"]):
        refused = run(*command)
        assert refused.exit_code == 2
        assert re.search(r"several seeds: give one of them, \S+seed-0, \S+seed-1", refused.stderr)
    (folder / "seed-1/result.json").unlink()
    again = run("train", "--resume", folder, "--json")
    assert again.exit_code == 0, again.output
    values = json.loads(again.stdout)
    assert values["status"] == "finished" and len(values["runs"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--baseline fat", "--baseline='fat': choose full or slim"),
        ("--baseline full --no-discovery", "--baseline=full has no effect without discovery"),
        ("--seeds 0", "--seeds=0: give at least 1"),
        ("--seeds 2 --targets 0.5,0.3", "--seeds=2 is for one size, and targets names several"),
        ("--baseline full --targets 0.5,0.3", "--baseline=full is for one size"),
        ("--slim 0.5", "--slim=0.5 is for a network that keeps its structure"),
        ("--slim 2 --no-discovery", "--slim=2.0: give the share of the MACs to keep"),
    ],
)
def test_wishes_that_cannot_be(options: str, message: str) -> None:
    done = run("train", *options.split())
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize("quantum", [1, 4])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.77, 1.0])
def test_widths_are_the_same_share_and_no_wider_than_needed(share: float, quantum: int) -> None:
    model, images = build("digits"), torch.zeros(2, 1, 8, 8)
    structures = find_structures(model, images)
    full = count_macs(model, images[:1])
    quanta = quanta_of(structures, quantum)
    plan = uniform_plan(structures, share * full, quanta)
    kept = [len(plan.kept.get(n, range(g.size))) for n, g in enumerate(structures.groups)]
    shares = [left / group.size for left, group in zip(kept, structures.groups, strict=True)]
    assert max(shares) - min(shares) <= quantum / min(group.size for group in structures.groups)
    assert all(left % quantum == 0 for left in kept) and not plan.removed_layers
    operate(model, structures, plan)
    macs = count_macs(model, images[:1])
    assert share * full <= macs
    narrower = torch.ones(structures.index.total, dtype=torch.bool)
    for n, group in enumerate(structures.groups):  # of 16, 32 or 64 units
        units = ceil((round(64 * min(shares)) - quantum) / 64 * group.size)
        narrower[structures.index.units(n)][max(units, 0) :] = False
    model = build("digits")
    operate(model, structures, physical_plan(structures, narrower, quanta))
    assert count_macs(model, images[:1]) < share * full
