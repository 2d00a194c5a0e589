"""Weights that are computed: divided by their norm, or multiplied for each sample."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from guyot import Discovery, DiscoveryConfig, find_structures
from guyot.core.types import KeepPlan
from guyot.costs.polynomial import Polynomial, macs_of
from guyot.structures.verify.replay import reader_masks
from guyot.surgery import operate
from guyot.surgery.plan import masks_of


class Styled(nn.Module):
    """A convolution whose weight a style scales and whose rows have norm 1, for each sample."""

    def __init__(self, inputs: int, outputs: int, transposed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, outputs, inputs, 3, 3))
        self.style = nn.Linear(4, inputs)
        self.transposed = transposed

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        n, c, h, w = x.shape
        weight = self.weight * self.style(z).view(n, 1, c, 1, 1)
        weight = weight / (weight.square().sum((2, 3, 4), keepdim=True) + 1e-6).sqrt()
        x = x.reshape(1, n * c, h, w)
        if self.transposed:
            weight = weight.transpose(1, 2).flatten(0, 1)
            y = F.conv_transpose2d(x, weight, padding=1, groups=n)
        else:
            y = F.conv2d(x, weight.flatten(0, 1), padding=1, groups=n)
        return y.view(n, -1, h, w)


class Painter(nn.Module):
    """Two such convolutions between plain ones."""

    def __init__(self, transposed: bool = False) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 1)
        self.one, self.two = Styled(6, 9, transposed), Styled(9, 8, transposed)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        y = self.one(self.first(x), z).relu()
        return self.last(self.two(y, z).relu())


@pytest.mark.parametrize("transposed", [False, True])
def test_channels_of_convolutions_with_weights_for_each_sample(transposed: bool) -> None:
    model = Painter(transposed)
    inputs = (torch.randn(3, 2, 5, 5), torch.randn(3, 4))
    structures = find_structures(model, inputs)
    assert {g.name: g.size for g in structures.groups} == {"first": 6, "one": 9, "two": 8}
    assert all(group.block.size == 1 for group in structures.groups)
    plan = KeepPlan({n: torch.arange(g.size // 2) for n, g in enumerate(structures.groups)})
    masked, cut = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in reader_masks(structures, masks_of(structures, plan)).items():
            masked.get_parameter(name).mul_(mask.float())
    left = operate(cut, structures, plan).structures
    torch.testing.assert_close(cut(*inputs), masked(*inputs))
    for module, found in ((model, structures), (cut, left)):
        with FlopCounterMode(display=False) as counter:
            module(*inputs)
        widths = torch.tensor(found.index.group_sizes, dtype=torch.float64)
        macs = Polynomial(macs_of(found), found.index).at(widths, torch.ones(0))
        assert 3 * 2 * float(macs) == counter.get_total_flops()


@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_rows_and_columns_of_weights_with_a_spectral_norm(norm: Any) -> None:
    """The largest singular value is that of the rows that are left: gates are on rows as well."""
    model = nn.Sequential(
        norm(nn.Conv2d(2, 8, 3)),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        norm(nn.Conv2d(8, 8, 1)),
        nn.Flatten(),
        norm(nn.Linear(72, 2)),
    )
    x = torch.randn(3, 2, 5, 5)
    model(x)
    structures = find_structures(model, (x,))
    assert [group.name for group in structures.groups] == ["0", "3"]
    assert all({slot.dim for slot in g.readers} == {0, 1} for g in structures.groups)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    config = DiscoveryConfig(round_to=1)
    discovery = Discovery(model, (x,), optimizer, total_steps=100, target=0.6, config=config)
    for _ in range(100):
        F.cross_entropy(model(x), torch.tensor([0, 1, 0])).backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
    found = discovery.finish()
    assert discovery.removals and found[0].out_channels + found[3].out_channels < 16
    assert found[3].in_channels == found[0].out_channels == found[3].weight.shape[1]
    with torch.no_grad():
        largest = torch.linalg.matrix_norm(found[3].weight.flatten(1), 2)
    assert 0.5 < float(largest) < 2
    assert found(x).isfinite().all()
