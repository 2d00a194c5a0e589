"""A network that was compiled is compiled again when it does not change any more."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from guyot import Discovery, DiscoveryConfig
from guyot.planning.dynamics import Phase


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x).relu())


@pytest.mark.parametrize("in_place", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_finished_network_is_compiled(in_place: bool) -> None:
    torch.compiler.reset()
    widths: list[list[int]] = []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        widths.append([x.shape[0] for x in inputs if isinstance(x, nn.Parameter)])
        return graph.forward

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 16), *[Block() for _ in range(4)], nn.Linear(16, 4))
    model = network
    if in_place:
        network.compile(backend=backend)
    else:
        model = torch.compile(network, backend=backend)  # pyright: ignore[reportAssignmentType]
    optimizer = torch.optim.SGD(network.parameters(), 0.02)
    x = torch.randn(16, 8)
    config = DiscoveryConfig(round_to=1)
    discovery = Discovery(model, x, optimizer, total_steps=150, target=0.4, config=config)
    by_phase = dict.fromkeys(Phase, 0)
    for _ in range(150):
        before, phase = len(widths), discovery.phase
        nn.functional.cross_entropy(model(x), x[:, :4].argmax(1)).backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
        by_phase[phase] += len(widths) - before
    discovery.finish()
    assert by_phase[Phase.FINE_TUNE] == 1
    assert sum(by_phase.values()) <= 2 * (len(discovery.removals) + 2)
    assert sum(widths[-1]) < sum(widths[0])
    torch.compiler.reset()
