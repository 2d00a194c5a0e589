"""How many predictions a loss is the mean of, and what the gates make of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guyot.gates.bank import Gates
from guyot.gates.predictions import Predictions, predictions_of
from guyot.planning.benefits import SideMeans, SideSums, fisher
from guyot.structures import find_structures

LOGITS = torch.zeros(6, 5, 77)


@pytest.mark.parametrize(
    ("output", "inputs", "count"),
    [
        (torch.zeros(6, 10), None, 6),
        (LOGITS, None, 30),
        (torch.zeros(6, 21, 9, 9), None, 6),
        ({"loss": torch.zeros(()), "logits": LOGITS, "cache": torch.zeros(6, 4, 5, 8)}, None, 30),
        ((torch.zeros(6), torch.zeros(6, 3)), None, 6),
        (torch.zeros(6), None, 6),
        (torch.zeros(()), ((), {"ids": torch.zeros(6, 5)}), 6),
        ("nothing", None, 1),
    ],
)
def test_what_counts_as_a_prediction(output: object, inputs: object, count: int) -> None:
    assert predictions_of(output, inputs) == count


def test_forward_passes_of_a_step_add_up_and_others_do_not_count() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(5, 4)
    gates = Gates(find_structures(model, (x,)), torch.device("cpu"))
    gates.attach(model)
    assert gates.predictions == 1 and not gates.called
    for _ in range(3):
        model(x).sum().backward()
    assert gates.called
    model.eval()(x)
    with torch.no_grad():
        model.train()(x)
    assert gates.predictions == 15
    copy.deepcopy(model)(x)
    assert gates.predictions == 15
    gates.zero_grad()
    assert gates.predictions == 5  # those of the last pass: a replayed graph calls nobody
    gates.detach()
    model(x[:2])
    assert gates.predictions == 5
    assert not model._forward_hooks


def test_a_compiled_model_counts() -> None:
    torch._dynamo.reset()
    model = nn.Linear(4, 3)
    counter = Predictions()
    counter.attach(model)
    run = torch.compile(model, backend="eager")
    for size in (5, 5, 7):
        run(torch.randn(size, 4))
    assert counter.count == 17


class Words(nn.Module):
    """Predicts a class for every token from the token alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.relu(self.hidden(self.embedding(ids))))


def test_fisher_through_gates_is_that_of_single_tokens() -> None:
    """B Var of the gates' gradients over batches against gradients of every token by itself."""
    torch.manual_seed(0)
    model = Words()
    gates = Gates(
        find_structures(model, (torch.zeros(2, 4, dtype=torch.int64),)), torch.device("cpu")
    )
    gates.attach(model)
    total = len(gates.sampled)
    ids = torch.randint(11, (600, 5, 4))
    labels = torch.distributions.Categorical(logits=model(ids).detach()).sample()
    means = SideMeans.start(total)
    for batch, label in zip(ids, labels, strict=True):
        gates.zero_grad()
        F.cross_entropy(model(batch).flatten(0, 1), label.flatten()).backward()
        assert gates.predictions == 20
        sums = SideSums.from_sample(gates.gradient, gates.sampled, gates.predictions)
        means = means.updated(sums, decay=0.999)
    singles = []
    for token, label in zip(ids.flatten()[:4000], labels.flatten()[:4000], strict=True):
        gates.zero_grad()
        F.cross_entropy(model(token[None, None])[0], label[None]).backward()
        singles.append(gates.gradient)
    curvature = torch.stack(singles).var(0)
    sigma = (curvature / 20 / 600 + 3 * curvature.square() / 2 / 600).sqrt()
    error = fisher(means, torch.ones(total)) - curvature / 2
    assert (error.abs() < 5 * sigma + 1e-7).all()
    assert (curvature > 0).sum() >= 8
