"""A student learns from labels and from a teacher that stays as it is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import guyot
from guyot.core.errors import MisconfiguredError


def batch(classes: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(3, classes), torch.randn(8, 3), torch.randint(classes, (8,))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_it_is_the_divergence_of_softened_predictions(temperature: float) -> None:
    teacher, inputs, labels = batch()
    logits = torch.randn(8, 5)
    distillation = guyot.Distillation(teacher, weight=0.3, temperature=temperature)
    loss = F.cross_entropy(logits, labels)
    p = (teacher(inputs) / temperature).softmax(1)
    q = (logits / temperature).softmax(1)
    by_hand = (p * (p.log() - q.log())).sum() / 8
    expected = 0.7 * loss + 0.3 * temperature**2 * by_hand
    torch.testing.assert_close(distillation(loss, logits, inputs), expected)


def test_classes_may_be_in_another_dimension() -> None:
    teacher = nn.Conv2d(2, 4, 1)
    images, logits = torch.randn(3, 2, 5, 5), torch.randn(3, 4, 5, 5)
    loss = torch.zeros(())
    found = guyot.Distillation(teacher, weight=1, temperature=1, dim=1)(loss, logits, images)
    p, q = teacher(images).softmax(1), logits.softmax(1)
    torch.testing.assert_close(found, (p * (p / q).log()).sum(1).mean())


def test_the_teacher_stays_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))
    _, inputs, labels = batch()
    distillation = guyot.Distillation(model, weight=1.0)
    before = {name: value.clone() for name, value in distillation.teacher.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        logits = model(inputs)
        distillation(F.cross_entropy(logits, labels), logits, inputs).backward()
        optimizer.step()
    assert all(p.grad is None for p in distillation.teacher.parameters())
    for name, value in distillation.teacher.state_dict().items():
        assert torch.equal(value, before[name])
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_a_network_gets_smaller_under_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))
    inputs = torch.randn(64, 6)
    labels = inputs[:, :4].argmax(1)
    distillation = guyot.Distillation(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    discovery = guyot.Discovery(
        model,
        inputs,
        optimizer,
        total_steps=120,
        target=0.5,
        config=guyot.DiscoveryConfig(round_to=1),
    )
    for _ in range(120):
        logits = model(inputs)
        distillation(F.cross_entropy(logits, labels), logits, inputs).backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
    assert discovery.finish()[0].out_features == 16
    assert distillation.teacher[0].out_features == 32


def test_outputs_with_logits_and_arguments_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(3, 5)

        def forward(self, *, values: Tensor) -> SimpleNamespace:
            return SimpleNamespace(logits=self.body(values))

    model, inputs = Named(), torch.randn(2, 3)
    loss = torch.tensor(2.0)
    found = guyot.Distillation(model, weight=0.5)(loss, model(values=inputs), values=inputs)
    assert float(found.detach()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 1.5}, "weight=1.5: give the teacher's share, from 0 to 1"),
        ({"weight": float("nan")}, "weight=nan"),
        ({"temperature": 0.0}, "temperature=0.0: give a positive number, such as 2"),
        ({"temperature": float("nan")}, "temperature=nan"),
    ],
)
def test_bad_settings(settings: dict[str, float], message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        guyot.Distillation(nn.Linear(2, 2), **settings)


def test_bad_outputs() -> None:
    teacher, inputs, _ = batch()
    distillation = guyot.Distillation(teacher)
    with pytest.raises(MisconfiguredError, match=r"shape \(4, 5\) and the teacher's \(8, 5\)"):
        distillation(torch.zeros(()), torch.zeros(4, 5), inputs)
    with pytest.raises(MisconfiguredError, match="outputs are a dict without logits"):
        distillation(torch.zeros(()), {"scores": torch.zeros(8, 5)}, inputs)
