"""Forwards that write their own weights, or read all parameters, are not cut in silence."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from guyot import UnsupportedError, find_structures


class Net(nn.Module):
    """Two groups of units; what else a subclass does, it does to the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(4, 6), nn.Linear(6, 7), nn.Linear(7, 3)

    def write(self) -> None:
        """Change weights before they are used."""

    def also(self, y: Tensor) -> Tensor:
        return y

    def forward(self, x: Tensor) -> Tensor:
        self.write()
        return self.also(self.three(self.two(self.one(x).relu()).relu()))


class Clipping(Net):
    def write(self) -> None:
        if self.training:
            with torch.no_grad():
                self.one.weight.clamp_(-0.3, 0.3)


class Replacing(Net):
    def write(self) -> None:
        self.one.weight = nn.Parameter(self.one.weight.detach().clamp(-0.3, 0.3))


class Data(Net):
    def write(self) -> None:
        self.one.weight.data.clamp_(-0.3, 0.3)


class Penalty(Net):
    def also(self, y: Tensor) -> Tensor:
        return y + sum(parameter.square().sum() for parameter in self.parameters())


class Late(Net):
    def also(self, y: Tensor) -> Tensor:
        return y + self.one.weight.square().sum() if self.training else y


@pytest.mark.parametrize("kind", [Clipping, Replacing])
def test_weights_that_forward_writes_have_no_gates(kind: type[Net]) -> None:
    """What is written would be the weight times its gates, or be lost."""
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match=r"units of one .*forward writes into one\.weight"):
        structures = find_structures(kind(), (torch.randn(5, 4),))
    assert [group.name for group in structures.groups] == ["two"]


def test_writing_into_data_is_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"weight\.data in forward must move"):
        find_structures(Data(), (torch.randn(5, 4),))


@pytest.mark.filterwarnings("ignore::guyot.GuyotWarning")
@pytest.mark.parametrize(("kind", "left"), [(Penalty, []), (Late, ["two"])])
def test_weights_that_forward_sums_stay(kind: type[Net], left: list[str]) -> None:
    """A sum over a masked weight has the numbers that slicing takes away."""
    torch.manual_seed(0)
    structures = find_structures(kind(), (torch.randn(5, 4),))
    assert [group.name for group in structures.groups] == left
    assert "one" in {frozen.name for frozen in structures.frozen}
