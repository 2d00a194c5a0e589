import copy
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from guyot import report
from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.data import Batches, load_dataset
from guyot.app.models import build, count_macs
from guyot.app.running import Progress, RunFolder, Silent, load_run
from guyot.app.training import score
from guyot.core.errors import GuyotError, MisconfiguredError
from guyot.core.metric import ACCURACY, filed
from guyot.report import Outcome
from guyot.surgery.record import Removal

FILES = [
    "checkpoints",
    "config.json",
    "environment.json",
    "metrics.jsonl",
    "model.safetensors",
    "result.json",
    "structure.json",
]


class Recorder(Silent):
    """Keeps what a run told."""

    def __init__(self) -> None:
        self.epochs: list[Progress] = []
        self.removals: list[Removal] = []
        self.steps = 0

    def stepped(self, step: int, loss: float) -> None:
        self.steps += 1

    def removed(self, removal: Removal) -> None:
        self.removals.append(removal)

    def epoch_ended(self, progress: Progress) -> None:
        self.epochs.append(progress)


def short(**choices: Any) -> RunConfig:
    return RunConfig.of(
        "digits", **({"epochs": 3, "batch_size": 32, "threads": 1, "bf16": False} | choices)
    )


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


def metrics(folder: Path, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == event]


def after(steps: int, recorder: Recorder) -> Callable[[], bool]:
    """Stop after so many steps: the watcher hears of a step when the next one is over."""
    return lambda: recorder.steps >= steps - 1


@pytest.fixture(scope="module", autouse=True)
def short_measurements() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome, Recorder]:
    folder, recorder = tmp_path_factory.mktemp("run") / "new", Recorder()
    return folder, running.train(short(), folder, recorder), recorder


def test_the_folder_holds_everything(finished: tuple[Path, Outcome, Recorder]):
    folder, outcome, recorder = finished
    assert sorted(path.name for path in folder.iterdir()) == FILES
    config = RunConfig.from_dict(read(folder, "config.json"))
    assert config.round_to in (1, 2, 4, 8, 16, 32)
    assert config == dataclasses.replace(short(), device=config.device, round_to=config.round_to)
    lines = metrics(folder, "epoch")
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    epochs = [filed(dataclasses.asdict(progress), ACCURACY) for progress in recorder.epochs]
    assert [{k: v for k, v in line.items() if k != "event"} for line in lines] == epochs
    removals = metrics(folder, "removal")
    assert removals and len(removals) == len(recorder.removals)
    assert [line["step"] for line in removals] == [r.step for r in recorder.removals]
    result = read(folder, "result.json")
    assert result["status"] == "finished"
    assert result["after"]["macs"] == outcome.after.macs
    assert set(result["before"]["latency"]) == {"1", "64"}


def test_the_outcome_is_what_was_asked(finished: tuple[Path, Outcome, Recorder]):
    folder, outcome, recorder = finished
    assert outcome.after.macs == pytest.approx(0.5 * outcome.before.macs, rel=0.015)
    assert outcome.before.macs == count_macs(build("digits", 10), torch.zeros(1, 1, 8, 8))
    assert outcome.after.macs == recorder.epochs[-1].macs
    assert outcome.interrupted is None and outcome.before.test_score is None
    assert (outcome.after.test_score or 0) > 0.8
    kept = read(folder, "structure.json")["units"]
    smaller = {w.name: w.after for w in outcome.widths if 0 < w.after < w.before}
    gone = {w.name for w in outcome.widths if w.after == 0}
    assert smaller == {name: len(units) for name, units in kept.items() if name not in gone}


def test_the_folder_gives_the_network_back(finished: tuple[Path, Outcome, Recorder]):
    folder, outcome, _ = finished
    model = load_run(folder)
    assert not model.training
    assert count_macs(model, torch.zeros(1, 1, 8, 8)) == outcome.after.macs
    dataset = load_dataset("digits")
    test = Batches(dataset, dataset.test, 500, augment=False)
    assert score(model, test.epoch(0), bf16=False).value == outcome.after.test_score


def keep_networks(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    kept: list[nn.Module] = []
    write = RunFolder.network

    def network(self: RunFolder, model: nn.Module, *rest: Any) -> None:
        kept.append(copy.deepcopy(model).eval())
        write(self, model, *rest)

    monkeypatch.setattr(RunFolder, "network", network)
    return kept


def test_a_network_without_some_layers_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = keep_networks(monkeypatch)
    outcome = running.train(short(beta=1.0), tmp_path / "run")
    assert outcome.removed_layers
    assert same(load_run(tmp_path / "run"), kept[0])


def test_the_seed_decides_everything(tmp_path: Path, finished: tuple[Path, Outcome, Recorder]):
    running.train(short(), tmp_path / "again")
    folders = [finished[0], tmp_path / "again"]
    first, second = (load_run(folder).state_dict() for folder in folders)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    for kind in ("epoch", "removal"):
        lines = [metrics(folder, kind) for folder in folders]
        for line in [*lines[0], *lines[1]]:
            line.pop("seconds", None)
        assert lines[0] == lines[1]


def test_another_seed_gives_another_network(tmp_path: Path):
    weights: list[torch.Tensor] = []
    for seed in (1, 2):
        recorder = Recorder()
        folder = tmp_path / str(seed)
        running.train(short(seed=seed), folder, recorder, after(2, recorder))
        weights.append(load_run(folder).state_dict()["conv1.weight"])
    assert not torch.allclose(weights[0], weights[1])


def same(model: nn.Module, other: nn.Module) -> bool:
    images = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    return torch.allclose(model.double()(images), other.double()(images), rtol=0, atol=1e-10)


def test_without_discovery_the_full_network_is_trained(tmp_path: Path):
    outcome = running.train(short(epochs=1, discovery=False), tmp_path / "run")
    assert (outcome.after.macs, outcome.after.params) == (
        outcome.before.macs,
        outcome.before.params,
    )
    assert outcome.before.test_score == outcome.after.test_score is not None
    assert metrics(tmp_path / "run", "epoch")[0]["phase"] == "dense"
    assert load_run(tmp_path / "run")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("steps", "phase"), [(3, "warm-up"), (20, "discovery"), (38, "discovery"), (90, "fine-tune")]
)
def test_a_stopped_run_leaves_a_usable_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, phase: str
):
    kept, recorder = keep_networks(monkeypatch), Recorder()
    outcome = running.train(short(), tmp_path / "run", recorder, after(steps, recorder))
    assert recorder.steps == steps
    assert outcome.interrupted == phase
    assert outcome.epochs == len(recorder.epochs) == steps // 40
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == FILES
    result = read(tmp_path / "run", "result.json")
    assert result["status"] == "interrupted" and result["interrupted"] == phase
    assert not result["after"]["latency"] and result["after"]["test_accuracy"] is None
    model = load_run(tmp_path / "run")
    assert not any("parametrizations" in name for name, _ in kept[0].named_modules())
    dataset = load_dataset("digits").hold_out(144)
    assert dataset.validation is not None
    held_out = Batches(dataset, dataset.validation, 500, augment=False)
    assert score(model, held_out.epoch(0), bf16=False).value == outcome.validation_score
    assert same(model, kept[0])


def test_stopping_while_measuring_only_skips_the_latency(tmp_path: Path):
    asked: list[bool] = []

    class Impatient(Silent):
        def measuring(self) -> None:
            asked.append(True)

    config = short(epochs=1, discovery=False)
    outcome = running.train(config, tmp_path / "run", Impatient(), lambda: bool(asked))
    assert outcome.interrupted is None and outcome.after.test_score is not None
    assert not outcome.after.latency


def test_threads_come_back(tmp_path: Path):
    before = torch.get_num_threads()
    with pytest.raises(MisconfiguredError, match="did you mean resnet56"):
        running.train(short(threads=before + 1, model="resnet65"), tmp_path / "run")
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"model": "resnet65"}, "model='resnet65' is unknown, did you mean resnet56"),
        ({"model": "fcn_resnet50"}, "model='fcn_resnet50' is unknown"),
        (
            {"model": "resnet20"},
            "'resnet20' does not fit data='digits' with images of 1x8x8: .*3 ch",
        ),
        ({"device": "abacus"}, "device='abacus' cannot be used .*give cpu or cuda"),
        (
            {"batch_size": 1300},
            "batch_size=1300: give a number between 1 and the 1294 training samples",
        ),
        ({"epochs": 1}, "total_steps=40 is too small.*an epoch is 40 steps: give epochs=3 or"),
        ({"target": 0.001, "round_to": 8}, "target=0.001 is below"),
    ],
)
def test_what_cannot_be_run_is_told(tmp_path: Path, choices: dict[str, Any], message: str):
    with pytest.raises(GuyotError, match=message):
        running.train(short(**choices), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_folders_in_use_are_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(MisconfiguredError, match=r"out=.* is not empty: give a new folder"):
        running.train(short(), tmp_path)
    with pytest.raises(MisconfiguredError, match=r"out=.*file' is a file"):
        running.train(short(), tmp_path / "file")
    with (
        pytest.raises(MisconfiguredError, match=r"out=.*cannot be made.*another folder"),
        RunFolder(tmp_path / "file" / "below").locked(),
    ):
        pass


def folder_of_images(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("a", "b"):
            (root / part / label).mkdir(parents=True)
            for number in range(8):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / label / f"{number}.png")
    return root


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder_of_images(tmp_path / "images")


def test_a_folder_of_images(images: Path, tmp_path: Path):
    config = RunConfig.of(
        f"imagefolder:{images}", epochs=1, batch_size=4, threads=1, discovery=False, image_size=16
    )
    outcome = running.train(config, tmp_path / "run")
    assert outcome.image_shape == (3, 16, 16) and outcome.data == f"imagefolder:{images}"
    assert load_run(tmp_path / "run")(torch.zeros(1, 3, 16, 16)).shape == (1, 2)


def test_a_corrupt_image_is_named(images: Path, tmp_path: Path):
    (images / "train" / "b" / "3.png").write_bytes(b"no picture")
    config = RunConfig.of(f"imagefolder:{images}", batch_size=4)
    with pytest.raises(MisconfiguredError, match=r"3\.png is not a readable image"):
        running.train(config, tmp_path / "run")


def test_networks_with_several_outputs_are_refused(images: Path, tmp_path: Path):
    (tmp_path / "two.py").write_text(
        "from torch import nn\n"
        "class Two(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return x, super().forward(x)\n"
        "def two():\n"
        "    return Two(32, 2)\n"
    )
    config = RunConfig.of(f"imagefolder:{images}", batch_size=4, model=f"{tmp_path}/two.py:two")
    with pytest.raises(MisconfiguredError, match=r"two' does not fit .*another image_size"):
        running.train(config, tmp_path / "run")


def test_the_wishes_of_a_configuration_are_kept(tmp_path: Path):
    config = short(
        epochs=5,
        freeze=["conv1"],
        ignore=("stages.2",),
        tie=["stages.0.0.conv1,stages.0.1.conv1"],
        target=0.7,
        beta=0.0,
        round_to=1,
    )
    outcome = running.train(config, tmp_path / "run")
    assert RunConfig.from_dict(read(tmp_path / "run", "config.json")).tie == config.tie
    names = {width.name for width in outcome.widths}
    assert "conv1" not in names and not {n for n in names if n.startswith("stages.2")}
    model = load_run(tmp_path / "run")
    assert model.conv1.weight.shape[0] == 16 and model.fc.in_features == 64
    first, second = (model.stages[0][n].conv1.weight.shape[0] for n in (0, 1))
    assert first == second < 16


def test_networks_of_others_train_and_come_back(tmp_path: Path):
    config = short(model="timm:test_resnet.r160_in1k", epochs=5, target=0.7)
    assert config.name == "digits-timm-test_resnet.r160_in1k"
    outcome = running.train(config, tmp_path / "run")
    assert outcome.after.macs < 0.72 * outcome.before.macs
    assert load_run(tmp_path / "run")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_missing_packages_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MisconfiguredError, match=r"data='digits' needs .*sklearn.*guyot\[data\]"):
        running.train(short(), tmp_path / "run")


def test_what_is_no_run_folder_is_told(tmp_path: Path):
    with pytest.raises(MisconfiguredError, match=r"holds no complete network .*structure.json"):
        load_run(tmp_path)


def test_numbers_that_json_lacks_become_null(tmp_path: Path):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        folder.begin(short(), {})
    folder.metric("epoch", {"loss": float("nan"), "nested": [{"x": float("inf")}, 1.5]})
    assert metrics(folder.path, "epoch") == [
        {"event": "epoch", "loss": None, "nested": [{"x": None}, 1.5]}
    ]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"data": "digit"}, "data='digit' is unknown: choose digits, cifar10"),
        ({"data": "imagefolder"}, "data='imagefolder' is unknown.*imagefolder:DIR"),
        ({"data_dir": "x"}, "data_dir='x' is for CIFAR only.*leave it out"),
        ({"validation": 1.0}, "validation=1.0: give the share"),
        ({"image_size": 0}, "image_size=0: "),
        ({"epochs": 0, "lr": -1.0}, r"epochs=0: give at least 1\nlr=-1.0: give a positive"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"batch_size": 0}, "batch_size=0: give at least 1"),
        ({"threads": 0}, "threads=0: give at least 1"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0: give 0 or more"),
        ({"warmup_epochs": -1.0}, "warmup_epochs=-1.0"),
        ({"decay": "step"}, "decay='step': choose cosine or linear"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0: give a value in \[0, 1\)"),
        ({"seed": -1}, "seed=-1: "),
        ({"nu": 0.3, "target": 0.5}, "nu=0.3 and target=0.5: give one of them"),
        ({"nu": -0.3}, "nu=-0.3: give the nats"),
        ({"target": 1.0}, "target=1.0: give the share of the complexity"),
        ({"alpha": 2.0}, "alpha=2.0: give a number from 0 to 1"),
        ({"beta": -1.0}, "beta=-1.0: give a number from 0 to 1"),
        ({"estimator": "magic"}, "estimator='magic': choose two-sided, fisher, straight-thr"),
        ({"round_to": 0}, "round_to=0: give at least 1"),
        ({"discovery": False, "target": 0.3}, "target=0.3 has no effect without discovery"),
    ],
)
def test_bad_settings_are_told(choices: dict[str, Any], message: str):
    with pytest.raises(MisconfiguredError, match=message):
        RunConfig.of(**({"data": "digits"} | choices))


def test_settings_survive_json():
    config = RunConfig.of("cifar10", data_dir="somewhere", nu=0.3, beta=0.5, bf16=False)
    assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert (config.model, config.target, config.name) == ("resnet20", None, "cifar10-resnet20")
    with pytest.raises(
        MisconfiguredError, match=r"'epoch' is no setting .* did you mean epochs\?: known are alpha"
    ):
        RunConfig.from_dict({"epoch": 3})
