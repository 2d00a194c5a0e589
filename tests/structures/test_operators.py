"""Operators of convolutional networks: what shrinks, and that masked and sliced agree."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cases import gates_of, random_plan
from examine import count_macs, masked_against_sliced, train_and_evaluate
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from guyot import find_structures
from guyot.costs.complexity import Complexity

Make = Callable[[int, int], nn.Module]


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Halves(nn.Module):
    """Two halves go different ways, and one of them twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=1)
        return self.conv(torch.cat([one, two.sigmoid() * one], dim=1))


class CrossStage(nn.Module):
    """As in CSPNet: half of an expansion goes through, half goes around."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand_chs = 2 * width
        self.expand = nn.Conv2d(width, self.expand_chs, 1)
        self.through = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        around, through = self.expand(x).split(self.expand_chs // 2, dim=1)
        return torch.cat([around, self.through(through)], dim=1)


class Shared(nn.Module):
    """One convolution is called twice."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x)))


class Lateral(nn.Module):
    """As in a feature pyramid: a smaller image is enlarged and added."""

    def __init__(self, width: int, mode: str) -> None:
        super().__init__()
        self.small = nn.Conv2d(width, width, 3, padding=1)
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        small = self.small(functional.max_pool2d(x, 2))
        return torch.cat([x, functional.interpolate(small, size=x.shape[2:], mode=self.mode)], 1)


def two_d(make: Make, widen: int = 1) -> Make:
    """Convolution, what `make` makes, convolution, pooling, classifier."""

    def build(width: int, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        middle = make(width, seed)
        with torch.no_grad():
            channels = middle(torch.zeros(2, width, 8, 8)).shape[1]
        return nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            middle,
            nn.Conv2d(channels, 5, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 2),
        )

    return build


def grouped(width: int, groups: int, kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Module:
    return kind(width, 2 * width, 3, padding=1, groups=groups)


# What stands between two convolutions -> number of groups of units, with the classifier's input.
IMAGES: dict[str, tuple[Make, int]] = {
    "depthwise": (lambda w, s: grouped(w, w), 3),
    "grouped": (lambda w, s: grouped(w, 2), 4),
    "grouped wide": (lambda w, s: grouped(w, w // 2), 4),
    "transposed": (lambda w, s: nn.ConvTranspose2d(w, 7, 3, stride=2), 3),
    "transposed grouped": (lambda w, s: grouped(w, 2, nn.ConvTranspose2d), 4),
    "transposed depthwise": (lambda w, s: nn.ConvTranspose2d(w, w, 2, groups=w), 2),
    "pixel shuffle": (
        lambda w, s: nn.Sequential(nn.Conv2d(w, 4 * w, 1), nn.PixelShuffle(2)),
        3,
    ),
    "pixel unshuffle": (lambda w, s: nn.PixelUnshuffle(2), 2),
    "instance norm": (lambda w, s: nn.InstanceNorm2d(w, affine=True), 2),
    "group norm": (lambda w, s: nn.GroupNorm(2, w), 2),
    "local response": (lambda w, s: nn.LocalResponseNorm(3), 1),
    "channel shuffle": (lambda w, s: nn.ChannelShuffle(2), 2),
    "reflect": (lambda w, s: nn.ReflectionPad2d(1), 2),
    "replicate": (lambda w, s: nn.ReplicationPad2d(1), 2),
    "zero pad": (lambda w, s: nn.ZeroPad2d(2), 2),
    "max pool": (lambda w, s: nn.AdaptiveMaxPool2d(3), 2),
    "halves": (lambda w, s: Halves(w), 3),
    "cross stage": (lambda w, s: CrossStage(w), 4),
    "shared": (lambda w, s: Shared(w), 2),
    "nearest": (lambda w, s: Lateral(w, "nearest"), 3),
    "bilinear": (lambda w, s: Lateral(w, "bilinear"), 3),
    "bicubic": (lambda w, s: Lateral(w, "bicubic"), 3),
    "unfold": (lambda w, s: Apply(lambda x: functional.unfold(x, 2)[..., None]), 2),
    "prelu": (lambda w, s: nn.PReLU(w), 2),
    "channel mean": (lambda w, s: Apply(lambda x: x - x.mean(1, keepdim=True)), 1),
}


def assert_agrees(model: nn.Module, x: Tensor, seed: int, groups: int) -> None:
    """Groups as expected; masked and sliced outputs, MACs, and a training step agree."""
    structures = find_structures(model, (x,))
    assert len(structures.groups) == groups, [group.name for group in structures.groups]
    cost = Complexity(structures)
    assert float(cost.macs(torch.ones(structures.index.total))) == count_macs(model, (x,))
    plan = random_plan(structures, seed)
    sliced = copy.deepcopy(model)
    difference, _ = masked_against_sliced(sliced, structures, plan, (x,))
    assert difference < 1e-10
    assert float(cost.macs(gates_of(structures, plan))) == count_macs(sliced, (x,))
    train_and_evaluate(sliced, (x,))


@pytest.mark.parametrize("name", IMAGES)
@settings(max_examples=2, phases=[Phase.generate])
@given(width=st.sampled_from([4, 6, 8]), seed=st.integers(0, 99))
def test_images(name: str, width: int, seed: int) -> None:
    make, groups = IMAGES[name]
    assert_agrees(two_d(make)(width, seed), torch.randn(2, 3, 8, 8), seed, groups)


@pytest.mark.parametrize("rank", [1, 3])
@settings(max_examples=2, phases=[Phase.generate])
@given(width=st.integers(2, 6), seed=st.integers(0, 99))
def test_other_ranks(rank: int, width: int, seed: int) -> None:
    conv, back, norm, pool = {
        1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.MaxPool1d),
        3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.MaxPool3d),
    }[rank]
    torch.manual_seed(seed)
    model = nn.Sequential(
        conv(3, width, 3, padding=1),
        norm(width),
        nn.ReLU(),
        pool(2),
        back(width, width + 1, 2, stride=2),
        nn.Upsample(scale_factor=2),
        conv(width + 1, 3, 1),
        nn.Flatten(),
        nn.Linear(3 * 8**rank, 2),
    )
    assert_agrees(model, torch.randn(2, 3, *[4] * rank), seed, groups=3)


def test_a_convolution_along_channels_keeps_them() -> None:
    """As in efficient channel attention: the kernel moves over neighbouring channels."""

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            weights = self.conv(x.mean((2, 3)).unsqueeze(1)).sigmoid()
            return x * weights.squeeze(1)[:, :, None, None]

    model = two_d(lambda w, s: Attend())(6, 0)
    structures = find_structures(model, (torch.randn(2, 3, 8, 8),))
    assert [group.size for group in structures.groups] == [5]
    (reason,) = (frozen.reason for frozen in structures.frozen if frozen.name == "0")
    assert reason == "the kernel of 2.conv moves along it"
