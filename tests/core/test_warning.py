"""Warnings point at the line of the user's program, however deep in guyot they arise."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

import guyot


class Sorted(nn.Module):
    """Has an operator between its layers that no rule covers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.first = nn.Linear(4, 8), nn.Linear(8, 8)
        self.last = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(self.before(x).relu()).logcumsumexp(1))


def discover(model: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    guyot.Discovery(model, inputs, optimizer, total_steps=100, nu=0.1)


@pytest.mark.parametrize("call", [guyot.find_structures, discover])
def test_a_warning_is_of_the_line_that_called_guyot(call: Callable[..., object]) -> None:
    with pytest.warns(guyot.GuyotWarning, match="no rule") as caught:
        call(Sorted(), (torch.ones(2, 4),))
    assert {warning.filename for warning in caught} == {__file__}
