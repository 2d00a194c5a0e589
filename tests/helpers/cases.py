"""Small models, one per way in which structures hang together, and what must be found in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from guyot.app.models.cifar import resnet
from guyot.core.axis import best, kept_indices
from guyot.core.types import KeepPlan, Structures
from guyot.gates.bank import Gates
from guyot.surgery import masks_of, present
from guyot.surgery.operate import select


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1):
    """Convolution and BatchNorm that keep the size of the image (divided by the stride)."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 12),
        nn.BatchNorm1d(12),
        nn.ReLU(),
        nn.Linear(12, 9),
        nn.GELU(),
        nn.Linear(9, 3),
    )


def flat_cnn() -> nn.Module:
    """As VGG: convolutions, a flatten of channels x height x width, two linear layers."""
    return nn.Sequential(
        *conv_bn(3, 6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
        nn.ReLU(inplace=True),
        nn.Linear(10, 3),
    )


class DenseLayer(nn.Module):
    """As in DenseNet: BatchNorm, ReLU and a convolution over everything made so far."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv(torch.relu(self.norm(torch.cat(features, 1))))


class DenseCNN(nn.Module):
    def __init__(self, stem: int = 5, growth: int = 4, layers: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1)
        self.layers = nn.ModuleList(DenseLayer(stem + i * growth, growth) for i in range(layers))
        width = stem + layers * growth
        self.transition = nn.Sequential(nn.BatchNorm2d(width), nn.Conv2d(width, 6, 1))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        return self.head(torch.relu(self.transition(torch.cat(features, 1))).mean((2, 3)))


class Inverted(nn.Module):
    """As in MobileNetV2: expand, depthwise, project; a residual where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        hidden = 2 * inputs
        self.residual = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *conv_bn(inputs, hidden, 1),
            nn.ReLU6(inplace=True),
            *conv_bn(hidden, hidden, 3, stride, groups=hidden),
            nn.ReLU6(inplace=True),
            *conv_bn(hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def mobile() -> nn.Module:
    return nn.Sequential(
        *conv_bn(3, 6),
        nn.ReLU6(inplace=True),
        Inverted(6, 6),
        Inverted(6, 8, stride=2),
        Inverted(8, 8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )


class TwoBranches(nn.Module):
    """Two residual branches in one `forward`, as in a transformer block."""

    def __init__(self, width: int, hidden: int, scaled: bool = False) -> None:
        super().__init__()
        self.mix = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.scaled = scaled

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x)
        x = self.feed(x) + x
        return torch.tanh(x) if self.scaled else x


def tokens() -> nn.Module:
    """Blocks with two branches each over (batch, tokens, width)."""
    return nn.Sequential(
        nn.Linear(5, 8),
        TwoBranches(8, 6),
        TwoBranches(8, 6, scaled=True),
        nn.Linear(8, 3),
    )


class Nested(nn.Module):
    """A residual branch in a residual branch."""

    def __init__(self, width: int, inner: nn.Module | None = None) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.inner = inner or nn.Identity()
        self.last = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.inner(torch.relu(self.first(x))))


def nested() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), Nested(6, Nested(6)), Nested(6), nn.Linear(6, 2))


class ResNeXt(nn.Module):
    """A bottleneck whose middle convolution has groups, and shuffled channels after it."""

    def __init__(self, width: int, groups: int, each: int) -> None:
        super().__init__()
        inside = groups * each
        self.branch = nn.Sequential(
            *conv_bn(width, inside, 1),
            nn.ReLU(),
            *conv_bn(inside, inside, 3, groups=groups),
            nn.ReLU(),
            nn.ChannelShuffle(groups),
            *conv_bn(inside, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.branch(x))


def grouped() -> nn.Module:
    """Groups of a convolution may go, but not where channels are shuffled, and units of each."""
    return nn.Sequential(
        *conv_bn(3, 12),
        nn.ReLU(),
        nn.Conv2d(12, 9, 3, padding=1, groups=3),
        nn.ReLU(),
        nn.Conv2d(9, 6, 1),
        ResNeXt(6, 2, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )


@dataclass(frozen=True)
class Case:
    """A model, the shape of one batch for it, and what `find_structures` must find."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    groups: int
    layers: int

    def inputs(self, batch: int | None = None) -> Tensor:
        return torch.randn(batch or self.shape[0], *self.shape[1:])


CASES = {
    "mlp": Case(mlp, (4, 7), groups=2, layers=0),
    "flat_cnn": Case(flat_cnn, (4, 3, 8, 8), groups=3, layers=0),
    "dense": Case(DenseCNN, (4, 3, 6, 6), groups=5, layers=0),
    "mobile": Case(mobile, (4, 3, 6, 6), groups=5, layers=2),
    "cifar": Case(lambda: resnet(8, 3, widths=(6, 8, 10)), (4, 3, 8, 8), groups=6, layers=3),
    "tokens": Case(tokens, (4, 3, 5), groups=5, layers=4),
    "grouped": Case(grouped, (4, 3, 6, 6), groups=6, layers=1),
    "nested": Case(nested, (4, 4), groups=4, layers=3),
}


def random_plan(structures: Structures, seed: int, layers: bool = True) -> KeepPlan:
    """Keep a random half or so of every group's units and of the layers."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for number, group in enumerate(structures.groups):
        blocks = structures.blocks_of(group)
        mask = torch.rand(group.size // blocks, generator=generator) < 0.6
        mask[int(torch.randint(len(mask), (), generator=generator))] = True
        if blocks > 1:
            score = torch.rand(group.size, generator=generator)
            kept[number] = best(score, blocks * int(mask.sum()), blocks)
        elif not bool(mask.all()):
            kept[number] = mask.nonzero().flatten()
    drawn = torch.rand(len(structures.layers), generator=generator) < 0.5
    gone = drawn.nonzero().flatten().tolist() if layers else []
    return KeepPlan(kept, frozenset(gone))


def gates_of(structures: Structures, plan: KeepPlan) -> Tensor:
    """The plan as one 0/1 vector over all gates."""
    masks = [mask.float() for mask in masks_of(structures, plan)]
    layers = torch.ones(len(structures.layers))
    layers[list(plan.removed_layers)] = 0
    return torch.cat([*masks, layers])


def clamped(model: nn.Module, structures: Structures, plan: KeepPlan) -> Gates:
    """Gates on a model that are 0 exactly where the plan removes."""
    gates = Gates(structures, torch.device("cpu"))
    for values in (gates.sampled, gates.probable):
        values.copy_(gates_of(structures, plan))
    gates.attach(model)
    return gates


def kept_part(tensor: Tensor, name: str, structures: Structures, plan: KeepPlan) -> Tensor:
    """What a plan leaves of a tensor of the full model."""
    (axes,) = (shape.axes for shape in structures.tensors if shape.name == name)
    masks = present(structures, plan)
    return select(tensor, tuple(kept_indices(axis, masks) for axis in axes))


def counted(model: nn.Module, inputs: Tensor) -> int:
    """MACs of one sample: half of what PyTorch's own counter of FLOPs says for the batch."""
    counter = FlopCounterMode(display=False)
    training = model.training
    with counter, torch.no_grad():
        model.eval()(inputs)
    model.train(training)
    flops = counter.get_total_flops()
    assert flops % (2 * len(inputs)) == 0
    return flops // (2 * len(inputs))


class Baked(nn.Module):
    """Attention that takes its heads for as wide as its input, with dropout."""

    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.drop = nn.Dropout(0.4)
        self.register_buffer("index", torch.arange(4).flip(0))
        self.table = nn.Parameter(torch.randn(4, heads))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        q, k, v = (
            self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        ).unbind(0)
        bias = self.table[self.index.view(-1)].permute(1, 0).unsqueeze(1)
        if mask is not None:
            bias = bias + mask
        rate = self.drop.p if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, bias, dropout_p=rate)
        return self.proj(out.transpose(1, 2).reshape(b, n, c))
