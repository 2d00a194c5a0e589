"""Random small networks of blocks as people write them, over images or over tokens."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Hardswish, nn.ELU, nn.PReLU)


def logged(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A decorator that counts."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        self.logged += 1
        return method(self, *args, **kwargs)

    return wrapper


def count_call(module: nn.Module, args: Any, output: Any) -> None:
    """A hook that only looks."""
    module.seen = getattr(module, "seen", 0) + 1


def halve_input(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A hook that changes what its module reads."""
    return (args[0] * 0.5, *args[1:])


def count_backward(module: nn.Module, into: Any, out: Any) -> None:
    """A backward hook that only looks."""
    module.backs = getattr(module, "backs", 0) + 1


def halve_gradient(module: nn.Module, into: Any, out: Any) -> tuple[Tensor | None, ...]:
    """A backward hook that changes what arrives at the modules before."""
    return tuple(None if gradient is None else gradient * 0.5 for gradient in into)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm_of(draw: random.Random, width: int) -> nn.Module:
    return draw.choice(
        (
            lambda: nn.BatchNorm2d(width),
            lambda: nn.BatchNorm2d(width),
            lambda: nn.BatchNorm2d(width, track_running_stats=False),
            lambda: nn.GroupNorm(1 + (width % 2 == 0), width),
            lambda: nn.GroupNorm(width, width),
            lambda: nn.InstanceNorm2d(width, affine=True),
            lambda: ChannelNorm(width),
            nn.Identity,
        )
    )()


def convolution(draw: random.Random, inputs: int, outputs: int) -> nn.Module:
    kernel = draw.choice((1, 3))
    groups = draw.choice((1, 1, 1, 2)) if inputs % 2 == outputs % 2 == 0 else 1
    conv = nn.Conv2d(
        inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=draw.random() < 0.5
    )
    wrap = draw.choice((None,) * 6 + ("weight_norm", "spectral_norm", "old"))
    if wrap == "old":
        return nn.utils.spectral_norm(conv)
    return conv if wrap is None else getattr(parametrizations, wrap)(conv)


class Plain(nn.Module):
    """Convolution, norm, activation; maybe with hooks, also of the backward pass."""

    def __init__(self, draw: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = convolution(draw, inputs, outputs)
        self.norm = norm_of(draw, outputs)
        self.act = draw.choice(ACTIVATIONS)()
        if draw.random() < 0.3:
            self.conv.register_forward_hook(count_call)
        if draw.random() < 0.2:
            self.norm.register_forward_pre_hook(halve_input)
        if draw.random() < 0.2:
            self.conv.register_full_backward_hook(count_backward)
        if draw.random() < 0.1:
            self.act.register_full_backward_hook(halve_gradient)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Residual(nn.Module):
    """A branch of two, with a dropped path and a scale that is an attribute or an argument."""

    def __init__(self, draw: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        middle = draw.choice((4, 6, 8))
        self.branch = nn.Sequential(Plain(draw, inputs, middle), nn.Conv2d(middle, outputs, 1))
        self.last = norm_of(draw, outputs)
        self.scale, self.style, self.logged = 0.7, draw.randrange(5), 0

    @logged
    def forward(self, x: Tensor, *, scale: float | None = None) -> Tensor:
        branch = self.last(self.branch(x))
        match self.style:
            case 0:
                return self.skip(x) + branch * self.scale
            case 1:
                branch = F.dropout(branch, 0.2, self.training)
                return F.relu(branch + self.skip(x))
            case 2:
                branch += self.skip(x)
                return branch
            case 3:
                return torch.add(self.skip(x), branch)
            case _:
                return self.skip(x) + (1.0 if scale is None else scale) * branch


class Joined(nn.Module):
    """Two or three paths end to end."""

    def __init__(self, draw: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = [draw.choice((3, 4, 5)) for _ in range(draw.choice((2, 3)))]
        self.paths = nn.ModuleList(Plain(draw, inputs, width) for width in widths)
        self.keep = draw.random() < 0.5
        self.mix = nn.Conv2d(sum(widths) + inputs * self.keep, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = [path(x) for path in self.paths]
        return self.mix(torch.cat([x, *found] if self.keep else found, dim=1))


class Halved(nn.Module):
    """Cuts its channels and lets one part gate the other."""

    def __init__(self, draw: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.width, self.style = draw.choice((4, 6)), draw.randrange(4)
        self.both = nn.Conv2d(inputs, 2 * self.width, 3, padding=1)
        self.out = nn.Conv2d(self.width, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.both(x)
        match self.style:
            case 0:
                one, two = y.chunk(2, dim=1)
            case 1:
                one, two = torch.split(y, [self.width, self.width], dim=1)
            case 2:
                one, two = y[:, : self.width], y[:, self.width :]
            case _:
                return self.out(F.glu(y, dim=1))
        return self.out(one * torch.sigmoid(two))


class Shuffled(nn.Module):
    """Groups, channels shuffled by hand or by a module, depthwise."""

    def __init__(self, draw: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(inputs, 8, 1)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=draw.choice((2, 4, 8)), bias=False)
        self.norm, self.two = nn.BatchNorm2d(8), nn.Conv2d(8, outputs, 1)
        self.module = nn.ChannelShuffle(2) if draw.random() < 0.5 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.one(x))
        if self.module is not None:
            y = self.module(y)
        else:
            n, c, h, w = y.shape
            y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.two(self.norm(self.depth(y)).relu())


class Squeezed(nn.Module):
    """Channels weighed by their means, which it also keeps."""

    def __init__(self, draw: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = Plain(draw, inputs, outputs)
        self.down, self.up = nn.Conv2d(outputs, 4, 1), nn.Conv2d(4, outputs, 1)
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("level", torch.zeros(outputs))
        self.temperature = 1.5

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        pooled = F.adaptive_avg_pool2d(y, 1)
        with torch.no_grad():
            if self.training:
                self.steps += 1
                self.level.mul_(0.9).add_(pooled.mean((0, 2, 3)), alpha=0.1)
        return y * torch.sigmoid(self.up(self.down(pooled).relu()) / self.temperature)


class Functional(nn.Module):
    """Weights of its own, by functions: convolution, einsum, a computed weight."""

    def __init__(self, draw: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, inputs, 1, 1) * 0.3)
        self.bias = nn.Parameter(torch.randn(8))
        self.matrix = nn.Parameter(torch.randn(outputs, 8) * 0.3)
        self.gain = nn.Parameter(torch.ones(8, 1, 1, 1))
        self.style = draw.randrange(4)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.gain if self.style % 2 else self.weight
        with torch.autocast("cpu", enabled=False):
            y = F.conv2d(input=x, weight=weight, bias=self.bias).relu()
        if self.style < 2:
            return torch.einsum("nchw,oc->nohw", y, self.matrix)
        return F.linear(y.movedim(1, -1), self.matrix).movedim(-1, 1)


class Twice(nn.Module):
    """One module that is called twice, and one that is called never."""

    def __init__(self, draw: random.Random, inputs: int, outputs: int) -> None:
        super().__init__()
        self.start = Plain(draw, inputs, 6)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.unused = nn.Linear(3, 3)
        self.end, self.calls = nn.Conv2d(6, outputs, 1), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = self.start(x)
        for _ in range(2):
            y = y + F.silu(self.shared(y))
        return self.end(y)


IMAGES = (Plain, Residual, Residual, Joined, Halved, Shuffled, Squeezed, Functional, Twice)


class Attention(nn.Module):
    """Heads in one of three spellings."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.heads, self.style = draw.choice((2, 4)), draw.randrange(4)
        self.dim = width // self.heads
        if self.style == 0:
            self.module = nn.MultiheadAttention(width, self.heads, dropout=0.1, batch_first=True)
        elif self.style == 1:
            self.qkv = nn.Linear(width, 3 * width, bias=draw.random() < 0.5)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        if self.style == 0:
            return self.out(self.module(x, x, x, need_weights=False)[0])
        if self.style == 1:
            q, k, v = self.qkv(x).view(n, t, 3, self.heads, self.dim).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, -1)
            return self.out(y)
        q, k, v = (f(x).view(n, t, self.heads, self.dim) for f in (self.q, self.k, self.v))
        if self.style == 2:
            scores = torch.einsum("nqhd,nkhd->nhqk", q, k) / self.dim**0.5
            y = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v)
        else:
            q, k, v = (z.transpose(1, 2) for z in (q, k, v))
            scores = F.dropout((q @ k.mT).softmax(-1), 0.1, self.training)
            y = (scores @ v).transpose(1, 2).contiguous()
        return self.out(y.reshape(n, t, -1) if self.style == 2 else y.flatten(2))


class Hidden(nn.Module):
    """Feed-forward layers: plain, gated, fused and gated."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        self.hidden, self.style = draw.choice((6, 10)), draw.randrange(3)
        self.up = nn.Linear(width, self.hidden * (2 if self.style == 2 else 1))
        self.gate = nn.Linear(width, self.hidden) if self.style == 1 else None
        self.down = nn.Linear(self.hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * y)
        if self.style == 2:
            y, gate = y.split(self.hidden, dim=-1)
            return self.down(F.gelu(gate) * y)
        return self.down(F.gelu(y))


class Block(nn.Module):
    """Attention and a feed-forward part, before or after a norm, maybe scaled."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        norm = draw.choice((nn.LayerNorm, nn.RMSNorm))
        self.one, self.two = norm(width), norm(width)
        self.mix, self.feed = Attention(draw, width), Hidden(draw, width)
        self.scale = nn.Parameter(torch.full((width,), 0.3)) if draw.random() < 0.4 else None
        self.style, self.last = draw.randrange(3), 0.0
        if draw.random() < 0.3:
            self.feed.register_forward_hook(count_call)
        if draw.random() < 0.2:
            self.feed.register_full_backward_hook(halve_gradient)
        if draw.random() < 0.2:
            self.mix.out.register_full_backward_hook(count_backward)

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        if self.style == 0:
            x = x + self.mix(self.one(x))
            y = self.feed(self.two(x))
            return x + (y if self.scale is None else self.scale * y)
        if self.style == 1:
            x = self.one(x + self.mix(x))
            return self.two(x + F.dropout(self.feed(x), p=0.1, training=self.training))
        normed = self.one(x)
        return x + self.mix(normed) + self.feed(normed)


class Recurrent(nn.Module):
    """A recurrent layer between linear ones."""

    def __init__(self, draw: random.Random, width: int) -> None:
        super().__init__()
        kind, both = draw.choice((nn.LSTM, nn.GRU, nn.RNN)), draw.random() < 0.5
        self.layer = kind(width, 5, batch_first=True, bidirectional=both)
        self.out = nn.Linear(10 if both else 5, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.out(self.layer(x)[0])


TOKENS = (Block, Block, Block, Recurrent)


class Pictures(nn.Module):
    """Blocks over images, pooled."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        widths = [3, *(draw.choice((4, 6, 8)) for _ in range(draw.choice((2, 3))))]
        pairs = itertools.pairwise(widths)
        self.blocks = nn.Sequential(*(draw.choice(IMAGES)(draw, a, b) for a, b in pairs))
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(widths[-1], 3)
        self.aux: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        y = self.blocks(x)
        self.aux = y.detach().mean()
        return {"scores": self.head(self.dropout(y.mean((2, 3)))), "mean": self.aux}


class Sentences(nn.Module):
    """Blocks over tokens that are numbers."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        width = draw.choice((8, 12))
        self.table = nn.Embedding(9, width)
        self.places = nn.Parameter(torch.randn(1, 4, width))
        self.blocks = nn.ModuleList(
            draw.choice(TOKENS)(draw, width) for _ in range(draw.choice((1, 2)))
        )
        self.head = nn.Linear(width, 9)
        if draw.random() < 0.3:
            self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids) + self.places
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def architecture(seed: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A random network in float64, without zeros in its weights, and its inputs."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    if draw.random() < 0.6:
        model, inputs = Pictures(draw), torch.randn(3, 3, 5, 5, dtype=torch.float64)
    else:
        model, inputs = Sentences(draw), torch.randint(9, (3, 4))
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, (inputs,)


class Deep(nn.Module):
    """Many blocks of one kind, with weights of their own, between a first and a last layer."""

    def __init__(self, draw: random.Random, images: bool, depth: int) -> None:
        super().__init__()
        width = draw.choice((4, 8))
        self.first = nn.Conv2d(3, width, 1) if images else nn.Embedding(9, width)
        kind: Any = draw.choice(IMAGES if images else TOKENS)
        widths = (width, width) if images else (width,)
        number = draw.random()
        blocks = [kind(random.Random(number), *widths) for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks) if draw.random() < 0.5 else nn.Sequential(*blocks)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)) if x.dim() == 4 else x)


def deep_architecture(seed: int, depth: int = 6) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A random network of equal blocks in float64, and its inputs."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    images = draw.random() < 0.6
    model = Deep(draw, images, depth).double()
    inputs = torch.randn(2, 3, 5, 5, dtype=torch.float64) if images else torch.randint(9, (2, 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model, (inputs,)
