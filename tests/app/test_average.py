"""`guyot train --ema`: the average of the weights is what comes out, also of a run that resumes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from paths import ROOT
from run_folders import assert_same
from terminal import run
from torch import nn

from guyot import report
from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.running import Silent
from guyot.app.running.average import adopt, averaged
from guyot.core.errors import MisconfiguredError
from guyot.core.storage import read_tensors


def test_the_decay_grows_to_what_was_asked_for() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = averaged(model, 0.4, None)
    found = expected = None
    for step, weight in enumerate((1.0, 3.0, -2.0, 5.0, 4.0, 4.5)):
        model.weight.data.fill_(weight)
        average.update_parameters(model)
        decay = min(0.4, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
        found = float(average.module.weight.detach())
        assert found == pytest.approx(expected)


def test_statistics_are_those_of_the_averaged_weights() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = averaged(model, 0.9, None)
    average.update_parameters(model)
    nn.init.zeros_(model[0].weight)
    average.update_parameters(model)
    images = [torch.randn(8, 3) for _ in range(4)]
    adopt(model, average, images)
    assert torch.equal(model[0].weight, average.module[0].weight) and model[0].weight.any()
    outputs = model[0](torch.cat(images)).detach()
    assert torch.allclose(model[1].running_mean, outputs.mean(0), atol=1e-6)


class Counting(Silent):
    steps = 0

    def stepped(self, step: int, loss: float) -> None:
        self.steps += 1


def test_a_run_that_was_stopped_ends_with_the_same_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
    settings = {"model": "mlp", "epochs": 3, "batch_size": 32, "bf16": False, "round_to": 4}
    config = RunConfig.of("digits", threads=1, ema=0.9, **settings)
    whole = running.train(config, tmp_path / "whole")
    assert whole.after.macs < 0.55 * whole.before.macs and whole.validation_score > 0.8
    counting = Counting()
    running.train(config, tmp_path / "run", counting, lambda: counting.steps >= 70)
    running.resume(tmp_path / "run")
    assert_same(tmp_path / "run", tmp_path / "whole")
    last = max((tmp_path / "whole/checkpoints").iterdir())
    raw = read_tensors(last / "model.safetensors")
    out = read_tensors(tmp_path / "whole/model.safetensors")
    name = next(name for name in out if name.endswith("weight"))
    assert out[name].shape == raw[name].shape and not torch.equal(out[name], raw[name])


@pytest.mark.parametrize("recipe", [*(ROOT / "recipes").iterdir()], ids=lambda file: file.stem)
def test_recipes_are_settings(recipe: Path) -> None:
    config = RunConfig.with_defaults(yaml.safe_load(recipe.read_text()))
    assert config.ema is not None and config.discovery
    assert f"--config recipes/{recipe.name}" in recipe.read_text()


@pytest.mark.parametrize("decay", ["0", "1", "-0.5"])
def test_no_decay_is_refused(decay: str) -> None:
    done = run("train", "--ema", decay)
    assert done.exit_code == 2 and "give the decay per step, such as 0.999" in done.stderr
    with pytest.raises(MisconfiguredError, match=r"ema=.*: give the decay per step, such as 0.999"):
        RunConfig.of("digits", ema=float(decay))
