"""Settings follow from each other where they are not given."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from guyot import Discovery, DiscoveryConfig, MisconfiguredError
from guyot.planning.dynamics import Phase


@pytest.mark.parametrize(
    ("settings", "steps", "shares"),
    [
        ({}, 1000, (0.1, 0.4)),
        ({}, 100, (0.1, 0.4)),
        ({"trained": True}, 1000, (0.02, 0.2)),
        ({"trained": True}, 400, (0.0, 0.2)),
        ({"trained": True, "warmup": 0.1}, 400, (0.1, 0.2)),
        ({"discovery_end": 0.9}, 1000, (0.1, 0.9)),
    ],
)
def test_shares_of_the_phases(settings: dict, steps: int, shares: tuple[float, float]) -> None:
    assert DiscoveryConfig(**settings).shares(steps) == shares


@pytest.mark.parametrize("steps", ["500", None, float("nan")])
@pytest.mark.parametrize("trained", [True, False])
def test_steps_that_are_no_number(steps: Any, trained: bool) -> None:
    with pytest.raises(MisconfiguredError, match=rf"total_steps='?{steps}'?: give the number of"):
        DiscoveryConfig(trained=trained).shares(steps)


def test_discovery_comes_early_where_weights_are_trained() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(16, 4)

    def steps(trained: bool) -> list[int]:
        """Return at which steps the gates come on and discovery ends."""
        network = copy.deepcopy(model)
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        config = DiscoveryConfig(trained=trained, round_to=1, patience=1.0)
        discovery = Discovery(network, x, optimizer, total_steps=500, target=0.5, config=config)
        phases: list[Phase] = []
        for _ in range(500):
            network(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            discovery.step()
            phases.append(discovery.phase)
        return [phases.index(phase) + 1 for phase in (Phase.DISCOVERY, Phase.FINE_TUNE)]

    assert steps(trained=False) == [50, 200]
    assert steps(trained=True) == [10, 100]
