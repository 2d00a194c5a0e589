"""Lightning trains a real network, which ends smaller; its checkpoints go on bit for bit."""

from __future__ import annotations

import csv
import importlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from cases import counted
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from guyot import Discovery, DiscoveryConfig, MisconfiguredError
from guyot.app.models.cifar import resnet
from guyot.discovery.integrations.lightning import DiscoveryCallback
from guyot.gates.module import Gated

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.`.*"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists"),
]
EXACT = DiscoveryConfig(round_to=1)
IMAGE = torch.zeros(2, 1, 8, 8)


def images(count: int = 960) -> tuple[Tensor, Tensor]:
    pixels, labels = load_digits(return_X_y=True)
    scaled = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    return scaled[:count], torch.tensor(labels)[:count]


class Digits(pl.LightningModule):
    """A residual network on digits; nothing in it knows about guyot."""

    def __init__(self) -> None:
        super().__init__()
        self.net = resnet(8, 10, widths=(8, 12, 16), in_channels=1)
        self.example_input_array = IMAGE

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.log("accuracy", (self(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), 0.1, momentum=0.9, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=120)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def loader(size: int = 32) -> DataLoader[Any]:
    return DataLoader(TensorDataset(*images()), size)


def trainer_of(
    folder: Path, *callbacks: pl.Callback, epochs: int = 4, **choices: Any
) -> pl.Trainer:
    settings: dict[str, Any] = {"enable_checkpointing": False, "logger": False, **choices}
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def macs(model: nn.Module) -> int:
    return counted(model, IMAGE)


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Digits, DiscoveryCallback, Path]:
    """A whole run, with a checkpoint of every epoch."""
    folder = tmp_path_factory.mktemp("lightning")
    torch.manual_seed(0)
    model, callback = Digits(), DiscoveryCallback(target=0.4, config=EXACT)
    every = ModelCheckpoint(folder, "{epoch}", save_top_k=-1)
    trainer = trainer_of(folder, every, callback, enable_checkpointing=True)
    trainer.fit(model, loader(), loader(320))
    return model, callback, folder


def test_loggers_get_the_figures(tmp_path: Path):
    callback, logger = DiscoveryCallback(target=0.4, config=EXACT), CSVLogger(tmp_path)
    trainer = trainer_of(tmp_path, callback, logger=logger, log_every_n_steps=40)
    trainer.fit(Digits(), loader())
    with Path(logger.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["guyot/macs"]]
    assert [row["step"] for row in rows] == ["39", "79", "119"]
    assert callback.discovery is not None
    macs = [float(row["guyot/macs"]) for row in rows]
    assert macs[0] > macs[2] == callback.discovery.macs
    assert [float(row["guyot/phase"]) for row in rows] == [1, 2, 2]
    assert {f"guyot/{name}" for name in ("params", "undecided", "nu")} <= rows[0].keys()


def test_the_network_ends_smaller_plain_and_good(
    fitted: tuple[Digits, DiscoveryCallback, Path],
):
    model, callback, _ = fitted
    assert callback.discovery is not None and callback.discovery.removals
    assert macs(model) == pytest.approx(0.4 * callback.discovery.full_macs, rel=0.03)
    assert not any(isinstance(module, Gated) for module in model.modules())
    held_out = [each[960:] for each in images(1797)]
    accuracy = (model.eval()(held_out[0]).argmax(1) == held_out[1]).float().mean()
    assert accuracy > 0.8


def test_it_is_the_loop_of_ones_own_bit_for_bit(fitted: tuple[Digits, DiscoveryCallback, Path]):
    torch.manual_seed(0)
    model = Digits()
    (optimizer,), (schedule,) = model.configure_optimizers()
    discovery = Discovery(model, (IMAGE,), optimizer, total_steps=120, target=0.4, config=EXACT)
    for _ in range(4):
        for batch in loader():
            optimizer.zero_grad()
            model.train().training_step(batch, 0).backward()
            optimizer.step()
            schedule["scheduler"].step()
            discovery.step(loss=lambda: model.training_step(batch, 0))  # noqa: B023
    assert same(discovery.finish(), fitted[0])


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_a_checkpoint_goes_on_bit_for_bit(
    epoch: int, fitted: tuple[Digits, DiscoveryCallback, Path], tmp_path: Path
):
    model, callback, folder = fitted
    torch.manual_seed(1)
    again, resumed = Digits(), DiscoveryCallback(target=0.4, config=EXACT)
    trainer = trainer_of(tmp_path, resumed)
    trainer.fit(again, loader(), ckpt_path=folder / f"epoch={epoch}.ckpt", weights_only=True)
    assert resumed.discovery is not None and callback.discovery is not None
    assert resumed.discovery.removals == callback.discovery.removals
    assert same(again, model)
    assert not any(isinstance(module, Gated) for module in again.modules())


class Part(Digits):
    """Accumulation, clipping and Adam; the discovery is told of the network only."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), 2e-3)


def test_part_of_a_module_with_accumulation_clipping_and_averages(tmp_path: Path):
    def fit(ckpt_path: Path | None = None) -> tuple[Part, DiscoveryCallback]:
        model, average = Part(), EMAWeightAveraging(decay=0.9)
        callback = DiscoveryCallback("net", (IMAGE,), target=0.5, config=EXACT)
        every = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        trainer = trainer_of(
            tmp_path, average, callback, every, epochs=7, enable_checkpointing=True,
            accumulate_grad_batches=2, gradient_clip_val=1.0,
        )  # fmt: skip
        trainer.fit(model, loader(), loader(320), ckpt_path=ckpt_path, weights_only=True)
        assert trainer.global_step == 105
        return model, callback

    model, callback = fit()
    assert callback.discovery is not None
    assert macs(model) == pytest.approx(0.5 * callback.discovery.full_macs, rel=0.03)
    again, _ = fit(tmp_path / "epoch=2.ckpt")
    assert same(again, model)


def test_a_gradient_scaler(tmp_path: Path):
    """Its factor is taken out of the gates' gradients; steps that it skips are no error."""
    runs: list[DiscoveryCallback] = []
    for factor in (1.0, 2.0**12):
        torch.manual_seed(0)
        scaler = torch.amp.GradScaler("cpu", init_scale=factor, growth_interval=10**6)
        plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
        callback = DiscoveryCallback(nu=1.0, config=EXACT)
        trainer = trainer_of(tmp_path, callback, plugins=[plugin])
        with warnings.catch_warnings(), torch.amp.autocast("cpu", enabled=False):
            warnings.simplefilter("ignore")
            trainer.fit(Wide(), loader())
        runs.append(callback)
    first, second = (run.discovery for run in runs)
    assert first is not None and second is not None and first.removals
    assert [(r.step, r.units) for r in first.removals] == [
        (r.step, r.units) for r in second.removals
    ]


class Wide(Digits):
    """Full precision whatever the trainer says: only the scaler is on trial."""

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().training_step(batch, batch_idx)


class Nothing(Digits):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = None


REFUSED: dict[str, tuple[type[Digits], dict[str, Any], type[Exception], str]] = {
    "inputs": (Nothing, {}, MisconfiguredError, "example_inputs=None, and Nothing has no example_"),
    "module": (Digits, {"module": "body"}, MisconfiguredError, r"module='body' .* \['net'\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_told(name: str, tmp_path: Path):
    kind, choices, error, message = REFUSED[name]
    callback = DiscoveryCallback(**choices, target=0.5)
    with pytest.raises(error, match=message):
        trainer_of(tmp_path, callback, epochs=1).fit(kind(), loader())


def test_an_unknown_dial_is_told():
    with pytest.raises(MisconfiguredError, match=r"goal=0.5 is no dial .*target, nu, alpha"):
        DiscoveryCallback(goal=0.5)


def test_a_small_checkpoint_without_its_discovery_is_refused(
    fitted: tuple[Digits, DiscoveryCallback, Path], tmp_path: Path
):
    checkpoint = torch.load(fitted[2] / "epoch=3.ckpt", weights_only=True)
    checkpoint["callbacks"] = {}
    torch.save(checkpoint, tmp_path / "bare.ckpt")
    trainer = trainer_of(tmp_path, DiscoveryCallback(target=0.4, config=EXACT))
    with pytest.raises(MisconfiguredError, match="weights of another size and no discovery"):
        trainer.fit(Digits(), loader(), ckpt_path=tmp_path / "bare.ckpt", weights_only=True)


def test_without_lightning_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "guyot.discovery.integrations.lightning")
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(MisconfiguredError, match=r"lightning.*pip install 'guyot\[lightning\]'"):
        importlib.import_module("guyot.discovery.integrations.lightning")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    import logging

    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


class Counting(Digits):
    """Has a metric and logs; counts how often it is asked for a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.right, self.calls = MulticlassAccuracy(10, average="micro"), 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        logits = self(batch[0])
        self.calls += 1
        self.right.update(logits, batch[1])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.log("loss", loss, on_step=True)
        self.log_dict({"graph": float(loss.requires_grad)}, on_epoch=True, on_step=False)
        return loss


def test_branches_are_measured_and_nothing_shows_it(tmp_path: Path):
    model, callback = Counting(), DiscoveryCallback(target=0.4, config=EXACT)
    trainer = trainer_of(tmp_path, callback)
    trainer.fit(model, loader())
    assert model.calls > 120
    assert int(model.right.tp + model.right.fn) == 4 * 960  # every sample of an epoch once
    assert trainer.callback_metrics["graph"] == 1.0  # nothing was logged without gradients
    assert "log" not in vars(model) and "log_dict" not in vars(model)


def test_a_loss_of_ones_own_is_asked_instead(tmp_path: Path):
    asked: list[Tensor] = []

    def loss(module: Counting, batch: tuple[Tensor, Tensor]) -> Tensor:
        asked.append(batch[1])
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    model, callback = Counting(), DiscoveryCallback(loss=loss, target=0.4, config=EXACT)
    trainer_of(tmp_path, callback).fit(model, loader())
    assert model.calls == 120 and asked
    assert callback.discovery is not None and callback.discovery.removals


class Manual(pl.LightningModule):
    """Steps two optimisers itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.manual_backward(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.dim() == 2]
        biases = [p for p in self.parameters() if p.dim() != 2]
        return [torch.optim.Muon(matrices, 0.01), torch.optim.AdamW(biases, 0.01)]


def test_manual_optimization_with_two_optimizers(tmp_path: Path):
    def fit(ckpt_path: Path | None = None, **choices: Any) -> tuple[Manual, Discovery]:
        model, every = Manual(), ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
        callback = DiscoveryCallback("net", (IMAGE,), target=0.5, config=EXACT)
        trainer = trainer_of(tmp_path, callback, every, enable_checkpointing=True, **choices)
        trainer.fit(model, loader(), ckpt_path=ckpt_path, weights_only=True)
        assert callback.discovery is not None
        return model, callback.discovery

    torch.manual_seed(0)
    model, discovery = fit()
    assert discovery.standing.step == discovery.standing.steps == 120
    assert discovery.attained == pytest.approx(0.5, rel=0.03)
    assert model.net[1].out_features < 24
    again, resumed = fit(tmp_path / "epoch=0.ckpt")
    assert resumed.removals == discovery.removals
    assert same(again, model)
    _, short = fit(max_steps=200)  # Lightning counts the steps of both
    assert short.standing.step == short.standing.steps == 100
