"""Detectors shaped as recent YOLO networks, written here: CSP blocks, pyramids, decoupled heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    """Convolution, BatchNorm, SiLU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        padding = kernel // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """Two convolutions, maybe with a shortcut."""

    def __init__(self, width: int, shortcut: bool, hidden: float = 1.0) -> None:
        super().__init__()
        middle = int(width * hidden)
        self.cv1, self.cv2 = Conv(width, middle, 3), Conv(middle, width, 3)
        self.add = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))


class C3k(nn.Module):
    """Bottlenecks beside a convolution, end to end."""

    def __init__(self, width: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        half = width // 2
        self.cv1, self.cv2 = Conv(width, half), Conv(width, half)
        self.m = nn.Sequential(*(Bottleneck(half, shortcut) for _ in range(depth)))
        self.cv3 = Conv(2 * half, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class C2f(nn.Module):
    """Halves of one convolution, and what each bottleneck makes of the last, end to end."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool) -> None:
        super().__init__()
        self.c = outputs // 2
        self.cv1 = Conv(inputs, 2 * self.c)
        self.cv2 = Conv((2 + depth) * self.c, outputs)
        self.m = nn.ModuleList(self.part(shortcut) for _ in range(depth))

    def part(self, shortcut: bool) -> nn.Module:
        return Bottleneck(self.c, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class C3k2(C2f):
    """The same, whose parts are blocks of two bottlenecks."""

    def part(self, shortcut: bool) -> nn.Module:
        return C3k(self.c, 2, shortcut)


class Pooled(nn.Module):
    """One pool after the other, end to end (SPPF)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = Conv(inputs, inputs // 2), Conv(2 * inputs, outputs)
        self.m = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        y.extend(self.m(y[-1]) for _ in range(3))
        return self.cv2(torch.cat(y, 1))


class Attention(nn.Module):
    """Heads over pixels whose keys are half as wide as values, with positions by a convolution."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.key_dim = self.head_dim // 2
        self.scale = self.key_dim**-0.5
        self.qkv = nn.Conv2d(width, width + 2 * self.key_dim * num_heads, 1)
        self.proj = nn.Conv2d(width, width, 1)
        self.pe = nn.Conv2d(width, width, 3, padding=1, groups=width)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        qkv = self.qkv(x).view(b, self.num_heads, self.key_dim * 2 + self.head_dim, h * w)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.head_dim], dim=2)
        attn = ((q.transpose(-2, -1) @ k) * self.scale).softmax(-1)
        y = (v @ attn.transpose(-2, -1)).view(b, -1, h, w)
        return self.proj(y + self.pe(v.reshape(b, -1, h, w)))


class Attending(nn.Module):
    """Attention and a feed-forward part on one half of the channels (C2PSA)."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.c = width // 2
        self.cv1, self.cv2 = Conv(width, 2 * self.c), Conv(2 * self.c, width)
        self.attn = Attention(self.c, num_heads)
        self.ffn = nn.Sequential(Conv(self.c, 2 * self.c), nn.Conv2d(2 * self.c, self.c, 1))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.cv1(x).split((self.c, self.c), dim=1)
        b = b + self.attn(b)
        b = b + self.ffn(b)
        return self.cv2(torch.cat((a, b), 1))


class Head(nn.Module):
    """Distributions over distances to the sides of a box, and scores of classes, for each pixel."""

    def __init__(self, classes: int, widths: tuple[int, ...], bins: int = 8) -> None:
        super().__init__()
        self.bins, self.classes = bins, classes
        inner = max(widths[0], 4 * bins)
        self.boxes = nn.ModuleList(
            nn.Sequential(Conv(w, inner, 3), Conv(inner, inner, 3), nn.Conv2d(inner, 4 * bins, 1))
            for w in widths
        )
        self.scores = nn.ModuleList(
            nn.Sequential(
                Conv(w, w, 3, groups=w), Conv(w, widths[0]), nn.Conv2d(widths[0], classes, 1)
            )
            for w in widths
        )

    def forward(self, x: list[Tensor]) -> list[Tensor] | Tensor:
        for i, level in enumerate(x):
            x[i] = torch.cat((self.boxes[i](level), self.scores[i](level)), 1)
        if self.training:
            return x
        flat = torch.cat([level.flatten(2) for level in x], 2)
        box, score = flat.split((4 * self.bins, self.classes), 1)
        shares = box.view(len(box), 4, self.bins, -1).softmax(2)
        distances = (shares * torch.arange(self.bins).to(shares)[:, None]).sum(2)
        return torch.cat((distances, score.sigmoid()), 1)


class Detector(nn.Module):
    """A backbone, a pyramid up and down, and a head on three levels.

    Args:
        block: `C2f` or `C3k2`.
        attending: whether attention ends the backbone.
    """

    def __init__(self, block: type[C2f], attending: bool, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Sequential(Conv(3, 8, 3, 2), Conv(8, 16, 3, 2), block(16, 16, 1, True))
        self.p3 = nn.Sequential(Conv(16, 24, 3, 2), block(24, 24, 2, True))
        self.p4 = nn.Sequential(Conv(24, 32, 3, 2), block(32, 32, 2, True))
        last = [Attending(48, 2)] if attending else []
        self.p5 = nn.Sequential(Conv(32, 48, 3, 2), block(48, 48, 1, True), Pooled(48, 48), *last)
        self.up = nn.Upsample(scale_factor=2, mode="nearest")
        self.up4, self.up3 = block(48 + 32, 32, 1, False), block(32 + 24, 24, 1, False)
        self.down4, self.down5 = Conv(24, 24, 3, 2), Conv(32, 32, 3, 2)
        self.out4, self.out5 = block(24 + 32, 32, 1, False), block(32 + 48, 48, 1, False)
        self.head = Head(classes, (24, 32, 48))

    def forward(self, x: Tensor) -> list[Tensor] | Tensor:
        p3 = self.p3(self.stem(x))
        p4 = self.p4(p3)
        p5 = self.p5(p4)
        n4 = self.up4(torch.cat((self.up(p5), p4), 1))
        n3 = self.up3(torch.cat((self.up(n4), p3), 1))
        n4 = self.out4(torch.cat((self.down4(n3), n4), 1))
        n5 = self.out5(torch.cat((self.down5(n4), p5), 1))
        return self.head([n3, n4, n5])
