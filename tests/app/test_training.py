import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from guyot.app import training
from guyot.app.data import Batches, load_dataset
from guyot.app.data.batches import on_device
from guyot.app.models import build
from guyot.app.training import Recipe
from guyot.core.errors import MisconfiguredError


def test_schedule_warms_up_and_ends_at_zero():
    factor = training.lr_factor(Recipe(epochs=4, warmup_epochs=1), 40, 10)
    assert [factor(step) for step in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert factor(10) == 1
    assert factor(40) == pytest.approx(0)
    assert factor(25) == pytest.approx(0.5)
    assert factor(17) == pytest.approx(0.5 * (1 + math.cos(math.pi * 7 / 30)))
    linear = training.lr_factor(Recipe(epochs=4, decay="linear", warmup_epochs=0), 40, 10)
    assert [linear(0), linear(10), linear(40)] == pytest.approx([1, 0.75, 0])


def fit(epochs: int, stop_after: int, state: dict[str, Any] | None = None) -> dict[str, Any]:
    torch.manual_seed(0)
    dataset = load_dataset("digits")
    recipe = Recipe(epochs=epochs, batch_size=64, bf16=False)
    model = build("digits")
    batches = Batches(dataset, dataset.train, recipe.batch_size, augment=True)
    optimizer = training.make_optimizer(model, recipe)
    scheduler = training.make_scheduler(optimizer, recipe, len(batches))
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    first = 0
    if state is not None:
        first = state["epoch"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    results = [
        training.train_epoch(model, batches.epoch(epoch), optimizer, scheduler, recipe)
        for epoch in range(first, stop_after)
    ]
    test = Batches(dataset, dataset.test, 128, augment=False)
    accuracy = training.score(model, test.epoch(0), bf16=False).value
    saved = {name: part.state_dict() for name, part in parts.items()}
    return saved | {"epoch": stop_after, "results": results, "accuracy": accuracy}


def test_digits_are_learned_and_a_resumed_run_is_the_same():
    whole = fit(3, 3)
    resumed = fit(3, 3, fit(3, 1))
    assert whole["accuracy"] > 0.9
    assert whole["results"][-1].loss < whole["results"][0].loss
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name


def test_discovery_is_stepped_once_per_step_with_cleared_gradients():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    recipe = Recipe(epochs=1, bf16=False, warmup_epochs=0)
    optimizer = training.make_optimizer(model, recipe)
    calls: list[bool] = []
    again: list[float] = []
    losses: list[tuple[int, float]] = []

    class Spy:
        def step(self, *, loss: Callable[[], torch.Tensor]) -> None:
            calls.append(all(parameter.grad is None for parameter in model.parameters()))
            again.append(float(loss().detach()))

    batches = [(torch.randn(3, 1, 2, 2), torch.tensor([0, 1, 0])) for _ in range(5)]
    result = training.train_epoch(
        model,
        batches,
        optimizer,
        training.make_scheduler(optimizer, recipe, 5),
        recipe,
        discovery=Spy(),
        on_step=lambda step, loss: losses.append((step, float(loss))),
    )
    assert calls == [True] * 5
    # the loss is that of the same batch, after the step
    assert all(after < before for after, (_, before) in zip(again, losses, strict=True))
    assert result.steps == 5
    assert [step for step, _ in losses] == [1, 2, 3, 4, 5]
    assert result.loss == pytest.approx(sum(loss for _, loss in losses) / 5, rel=1e-6)


def test_evaluation_counts_and_restores_the_mode():
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(2)).train()
    model[1].eval()
    batches = [(torch.tensor([[3.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0]))]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert training.score(model, batches, bf16=False).value == 0.5
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_recipes_are_told_all_at_once():
    with pytest.raises(MisconfiguredError, match=r"epochs=0.*\nlr=-1.*\ndecay='step'.*cosine"):
        Recipe(epochs=0, lr=-1, decay="step")  # type: ignore[arg-type]
    with pytest.raises(MisconfiguredError, match=r"label_smoothing=1: .*\[0, 1\)"):
        Recipe(label_smoothing=1)


def test_an_empty_epoch_is_an_error():
    model = torch.nn.Linear(2, 2)
    recipe = Recipe()
    optimizer = training.make_optimizer(model, recipe)
    with pytest.raises(MisconfiguredError, match="batch_size exceeds"):
        training.train_epoch(
            model, [], optimizer, training.make_scheduler(optimizer, recipe, 1), recipe
        )


def test_batches_go_to_a_gpu_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: what is asked of the tensors."""
    asked: list[tuple[str, object]] = []

    def pinned(tensor: torch.Tensor) -> torch.Tensor:
        asked.append(("pin", tuple(tensor.shape)))
        return tensor

    def to(tensor: torch.Tensor, device: torch.device, *, non_blocking: bool) -> torch.Tensor:
        asked.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: len(tensor) == 5)
    monkeypatch.setattr(torch.Tensor, "to", to)
    for rows, device in ((2, "cuda"), (5, "cuda"), (2, "cpu")):
        on_device(torch.ones(rows), torch.device(device))
    assert asked == [("pin", (2,)), ("cuda", True), ("cuda", True), ("cpu", True)]
