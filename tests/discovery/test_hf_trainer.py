"""The Trainer of Hugging Face trains a real model, which ends smaller; checkpoints go on."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import guyot
from guyot import Discovery, DiscoveryConfig, MisconfiguredError, UnsupportedError
from guyot.discovery.integrations.transformers import DiscoveryCallback
from guyot.gates.module import Gated

EXACT = DiscoveryConfig(round_to=1)
INPUTS = {
    "input_ids": torch.ones(2, 8, dtype=torch.int64),
    "attention_mask": torch.ones(2, 8, dtype=torch.int64),
}


class Words(Dataset[dict[str, Tensor]]):
    """Eight words of 32; the class is the one of three words that comes first."""

    def __init__(self, count: int = 960) -> None:
        generator = torch.Generator().manual_seed(5)
        self.words = torch.randint(4, 32, (count, 8), generator=generator)
        self.classes = torch.randint(3, (count,), generator=generator)
        places = torch.randint(8, (count,), generator=generator)
        self.words[torch.arange(count), places] = 1 + self.classes

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        words = self.words[number]
        return {
            "input_ids": words,
            "attention_mask": torch.ones_like(words),
            "labels": self.classes[number],
        }


def bert(seed: int = 0) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=32, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def arguments(folder: Path, **choices: Any) -> TrainingArguments:
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "num_train_epochs": 4,
            "per_device_train_batch_size": 32,
            "learning_rate": 5e-3,
            "lr_scheduler_type": "cosine",
            "save_strategy": "epoch",
            "logging_strategy": "no",
            "report_to": [],
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 1,
            **choices,
        }
    )


def trained(
    folder: Path, model: nn.Module, resume: Path | None = None, **choices: Any
) -> DiscoveryCallback:
    callback = DiscoveryCallback(INPUTS, target=0.5, config=EXACT)
    trainer = Trainer(
        model,
        arguments(folder, **choices),
        train_dataset=Words(),
        callbacks=[callback],
        eval_dataset=Words(64),
    )
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return callback


def test_what_is_logged(tmp_path: Path):
    seen: list[dict[str, Any]] = []

    class Logger(TrainerCallback):
        def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
            seen.append(dict(logs))

    callback = DiscoveryCallback(INPUTS, target=0.5, config=EXACT)
    every: dict[str, Any] = {"logging_strategy": "steps", "logging_steps": 40, "max_steps": 120}
    settings = arguments(tmp_path, **every, save_strategy="no")
    logger: Any = Logger()
    trainer = Trainer(bert(), settings, train_dataset=Words(), callbacks=[logger, callback])
    callback.front(trainer)
    trainer.train()
    for figures in (seen, trainer.state.log_history):
        macs = [line["guyot/macs"] for line in figures if "loss" in line]
        assert len(macs) == 3 and macs[0] > macs[1] >= macs[2]
    assert callback.discovery is not None and seen[-1]["guyot/macs"] == callback.discovery.macs
    with pytest.raises(MisconfiguredError, match="does not have this callback"):
        DiscoveryCallback(INPUTS, target=0.5).front(trainer)


def same(left: nn.Module, right: nn.Module) -> bool:
    ours, theirs = left.state_dict(), right.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Discovery, Path]:
    """A whole training, with a checkpoint of every epoch."""
    folder, model = tmp_path_factory.mktemp("trainer"), bert()
    discovery = trained(folder, model).discovery
    assert discovery is not None
    return model, discovery, folder


def test_the_model_ends_smaller_plain_and_good(run: tuple[nn.Module, Discovery, Path]):
    model, discovery, _ = run
    assert discovery.removals
    assert discovery.macs == pytest.approx(0.5 * discovery.full_macs, rel=0.03)
    assert sum(p.numel() for p in model.parameters()) < 0.9 * discovery.full_params
    assert not any(isinstance(module, Gated) for module in model.modules())
    data = Words()
    logits = model.eval()(data.words, attention_mask=torch.ones_like(data.words)).logits
    assert (logits.argmax(1) == data.classes).float().mean() > 0.9


@pytest.mark.parametrize("step", [30, 60, 120])
def test_a_checkpoint_goes_on_bit_for_bit(
    step: int, run: tuple[nn.Module, Discovery, Path], tmp_path: Path
):
    model, discovery, folder = run
    checkpoint = folder / f"checkpoint-{step}"
    names = {path.name for path in checkpoint.iterdir()}
    assert {"guyot.json", "guyot.safetensors", "model.safetensors"} <= names
    assert "optimizer.pt" not in names
    shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    again = bert(seed=7)
    resumed = trained(tmp_path, again, tmp_path / checkpoint.name).discovery
    assert resumed is not None and resumed.removals == discovery.removals
    assert same(again, model)


def test_accumulation_and_clipping_count_steps_of_the_optimiser(tmp_path: Path):
    model = bert()
    discovery = trained(
        tmp_path, model, gradient_accumulation_steps=2, max_grad_norm=0.5, num_train_epochs=7,
        save_strategy="no",
    ).discovery  # fmt: skip
    assert discovery is not None and discovery.removals
    assert discovery.macs == pytest.approx(0.5 * discovery.full_macs, rel=0.06)


def test_the_network_is_saved_without_the_trainer(
    run: tuple[nn.Module, Discovery, Path], tmp_path: Path
):
    model, discovery, _ = run
    guyot.save(tmp_path / "bert", model, INPUTS, discovery.structure)
    assert same(guyot.load(tmp_path / "bert", bert), model)


def test_a_checkpoint_elsewhere_is_found_or_asked_for(
    run: tuple[nn.Module, Discovery, Path], tmp_path: Path
):
    checkpoint = run[2] / "checkpoint-60"
    with pytest.raises(MisconfiguredError, match=r"from step 60, but there is no guyot.json in .*"):
        trained(tmp_path, bert(seed=7), checkpoint)
    callback = DiscoveryCallback(INPUTS, checkpoint, target=0.5, config=EXACT)
    model = bert(seed=7)
    Trainer(model, arguments(tmp_path), train_dataset=Words(), callbacks=[callback]).train(
        resume_from_checkpoint=str(checkpoint)
    )
    assert same(model, run[0])


def test_the_best_model_at_the_end_is_refused(tmp_path: Path):
    with pytest.raises(MisconfiguredError, match="load_best_model_at_end=True: the best check"):
        trained(
            tmp_path, bert(), load_best_model_at_end=True, eval_strategy="epoch",
            save_strategy="epoch",
        )  # fmt: skip


def test_a_late_callback_is_refused(tmp_path: Path):
    trainer = Trainer(bert(), arguments(tmp_path), train_dataset=Words())
    trainer.add_callback(DiscoveryCallback(INPUTS, target=0.5))
    with pytest.raises(MisconfiguredError, match=r"give it to the constructor, Trainer\(\.\.\., "):
        trainer.train()


def test_several_devices_are_refused(tmp_path: Path):
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(UnsupportedError, match=r"copy the model to 2 .*a process per device with"):
        Trainer(bert(), args, train_dataset=Words(), callbacks=[DiscoveryCallback(INPUTS, nu=0.1)])


def test_a_wrapper_that_is_no_ddp_is_refused(tmp_path: Path):
    model, settings = bert(), arguments(tmp_path)
    callback = DiscoveryCallback(INPUTS, target=0.5, config=EXACT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingArguments, "world_size", property(lambda _: 2))
        trainer = Trainer(model, settings, train_dataset=Words(), callbacks=[callback])
        nn.Sequential(model)  # what something else puts around it
        with pytest.raises(UnsupportedError, match=r"without DistributedDataParallel, .* out FSDP"):
            callback.on_train_begin(
                settings, trainer.state, trainer.control, model=model, optimizer=None,
                lr_scheduler=None,
            )  # fmt: skip
    assert callback._hook is None  # nothing of torch's is watched any longer


def test_an_unknown_dial_is_told():
    with pytest.raises(MisconfiguredError, match=r"goal=0.5 is no dial .*target, nu, alpha"):
        DiscoveryCallback(INPUTS, goal=0.5)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "guyot.discovery.integrations.transformers")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MisconfiguredError, match=r"pip install 'guyot\[transformers\]'"):
        importlib.import_module("guyot.discovery.integrations.transformers")
