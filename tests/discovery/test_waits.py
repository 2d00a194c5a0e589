"""Steps between two moves of the gates wait for no device."""

import torch
from cases import CASES
from torch import nn
from waits import Waits

from guyot import Discovery, DiscoveryConfig


def test_only_the_steps_that_move_gates_wait() -> None:
    case = CASES["mlp"]
    model = case.build()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, weight_decay=1e-4)
    discovery = Discovery(
        model,
        (case.inputs(),),
        optimizer,
        total_steps=4_000,
        target=0.5,
        config=DiscoveryConfig(warmup=0.01, round_to=1),
    )
    waited: dict[int, int] = {}
    copies: dict[int, int] = {}
    batch = case.inputs(16)
    for step in range(80):
        with Waits() as waits:
            loss = model(batch).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            discovery.step(loss=lambda: model(batch).square().mean())
        waited[step] = len(waits.found) + len(waits.inside)
        copies[step] = waits.found.count("cpu")
    controller = discovery._controller
    assert controller.every == 10
    moving = [step for step in range(40, 80) if controller.deciding(step)]
    assert moving == [40, 49, 59, 69, 79]
    assert all(waited[step] for step in moving)
    assert [step for step in range(41, 80) if waited[step]] == moving[1:]
    assert all(1 <= copies[step] <= 2 for step in moving[1:])  # sums of ten steps; what layers earn
    assert isinstance(discovery.abandon(), nn.Module)
