"""Nobody chooses a network when nothing was measured, and "nothing was removed" has a reason."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from guyot import Discovery, DiscoveryConfig, GuyotWarning, SequenceError

STEPS, START, STOP = 60, 10, 30
CONFIG = DiscoveryConfig(warmup=START / STEPS, discovery_end=STOP / STEPS, round_to=1)


class Loop:
    """A small network, and training steps with and without what the gates need."""

    def __init__(self, **dials: float) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.5)
        self.discovery = Discovery(
            self.model,
            (torch.randn(2, 4),),
            self.optimizer,
            total_steps=STEPS,
            config=CONFIG,
            **dials,
        )

    def train(self, steps: int, spoil: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
        for _ in range(steps):
            x = torch.randn(256, 4)
            loss = nn.functional.cross_entropy(self.model(x), x[:, :3].argmax(1))
            loss = spoil(loss)
            if loss.requires_grad:
                loss.backward()
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    parameter.grad.nan_to_num_(0.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.discovery.step()


def evaluation(loop: Loop) -> None:
    loop.model.eval()
    loop.train(STOP)


@pytest.mark.filterwarnings("ignore:no gradient reached", "ignore:NaN or inf")
@pytest.mark.parametrize("dials", [{"target": 0.5}, {"nu": 1.0}])
@pytest.mark.parametrize(
    "train",
    [
        evaluation,
        lambda loop: loop.train(STOP, lambda loss: loss.detach()),
        lambda loop: loop.train(STOP, lambda loss: loss * torch.nan),
    ],
    ids=["eval", "no backward", "nan"],
)
def test_no_step_measured_anything(train: Callable[[Loop], None], dials: dict[str, float]) -> None:
    loop = Loop(**dials)
    with pytest.raises(SequenceError, match=r"at step 30: 0 of 20 .* skipped, .*model\.train\(\)"):
        train(loop)
    assert loop.model[0].out_features == 6
    assert not loop.discovery.removals
    weights = copy.deepcopy(loop.model.state_dict())
    model = loop.discovery.abandon()  # the way out that the error names
    kept = model.state_dict()
    assert all(torch.equal(value, kept[name]) for name, value in weights.items())


def test_an_end_long_before_that_of_discovery() -> None:
    loop = Loop(target=0.5)
    loop.train(START + 1)
    with pytest.raises(SequenceError, match=r"at step 11: 1 of 20 .* ends at step 30: train until"):
        loop.discovery.finish()
    assert loop.model[0].out_features == 6
    loop.train(STOP - START)  # the error changed nothing
    assert loop.discovery.finish()[0].out_features < 6


def test_a_modest_number_of_steps_is_enough() -> None:
    loop = Loop(target=0.5)
    loop.train(START + 5)
    assert loop.discovery.finish()[0].out_features < 6


@pytest.mark.parametrize(
    ("steps", "dials", "message"),
    [
        (0, {"nu": 0.1}, r"step\(\) was never called"),
        (0, {"target": 0.5}, r"step\(\) was never called"),
        (4, {"target": 0.5}, r"gates begin at step 10 of total_steps=60, .* ended after 4"),
        (STEPS, {"nu": 1e-6}, r"in 60 steps: every structure earned its price; raise nu=1e-06"),
    ],
)
def test_nothing_was_removed_says_why(steps: int, dials: dict[str, float], message: str) -> None:
    loop = Loop(**dials)
    loop.train(steps)
    with pytest.warns(GuyotWarning, match=f"nothing was removed.*{message}"):
        loop.discovery.finish()
