"""Settings follow from each other where they are not given."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import nn

from guyot import Discovery, DiscoveryConfig, MisconfiguredError
from guyot.planning.config import DIALS, Dials
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


ODD = [None, "8", "", [], [1], ["a"], {}, {"*": "8"}, -1, 0.5, True, float("nan"), object, 1 + 2j]
ODD += [torch.ones(2), torch.ones(40).numpy()]
"""Values of every kind; each setting takes some of them."""

TAKES = {
    "trained": [True],
    "warmup": [None, -1, 0.5],  # the order of the two is judged with the steps
    "discovery_end": [None, -1, 0.5],
    "theta0": [0.5],
    "epsilon": [None],
    "sharpness": [None],
    "patience": [0.5],
    "estimator": [],
    "decay": [0.5],
    "max_speed": [0.5],
    "round_to": [{}],
    "units": [True],
    "layers": [True],
    "ignore": ["8", "", [], ["a"]],
    "freeze": ["8", "", [], ["a"]],
    "tie": [[], ["a"]],
    "removals": [],
    "seed": [-1],
    "nu": [0.5],
    "target": [0.5],
    "alpha": [0.5],
    "beta": [0.5],
}


def test_the_table_has_every_setting_and_dial() -> None:
    fields = [*dataclasses.fields(DiscoveryConfig), *dataclasses.fields(Dials)]
    assert list(TAKES) == [field.name for field in fields]


@pytest.mark.parametrize("name", TAKES)
@pytest.mark.parametrize("value", ODD, ids=lambda value: repr(value)[:12])
def test_settings_take_values_of_their_kind_only(name: str, value: Any) -> None:
    if repr(value) in map(repr, TAKES[name]):
        assert build(name, value) is not None
    elif name in ("nu", "target") and value is None:
        pytest.skip("the other one is given then")
    else:
        with pytest.raises(MisconfiguredError) as refused:
            build(name, value)
        lines = str(refused.value).splitlines()
        assert len(lines) == 1
        assert re.match(rf"{name}=.+: (give|choose|a width comes)", lines[0])
        assert len(lines[0]) < 240


def build(name: str, value: Any) -> object:
    if name not in DIALS:
        return DiscoveryConfig(**{name: value})
    other = {"nu": None, "target": None if name == "nu" else 0.5}
    return Dials(**{**other, name: value})


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
