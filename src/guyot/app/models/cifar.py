"""The CIFAR residual networks of He et al. 2015 (arXiv:1512.03385, section 4.2).

Three stages of basic blocks (post-activation), widths 16/32/64, at 32, 16 and 8 pixels; depth
``6n + 2`` has ``n`` blocks per stage. Where the shape changes the shortcut is *option B*, a strided
1x1 convolution with BatchNorm, so that every parameter is traced and can be pruned. (The
paper's CIFAR nets use the parameter-free option A: 0.26 M MACs less.)

Multiply-accumulates of one 3x32x32 image and parameters, ten classes, option B:

    resnet20   40.81 M MACs   0.272 M parameters
    resnet32   69.12 M        0.467 M
    resnet44   97.44 M        0.661 M
    resnet56  125.75 M        0.856 M
    resnet110 253.15 M        1.731 M
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from guyot.core.errors import MisconfiguredError
from guyot.core.inputs import evaluation_mode


class BasicBlock(nn.Module):
    """``relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x))``.

    The residual branch ends in ``bn2``; ``downsample`` is ``None`` (identity) or conv1x1 + BN.
    """

    def __init__(self, in_channels: int, hidden: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(hidden, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, in_channels, H, W)`` to ``(N, out_channels, H/stride, W/stride)``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        branch = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(branch + shortcut)


class CifarResNet(nn.Module):
    """Stem, one stage of ``blocks`` basic blocks per width, global average pooling, classifier."""

    def __init__(
        self, blocks: int, num_classes: int, widths: Sequence[int], in_channels: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        stages: list[nn.Module] = []
        previous = widths[0]
        for stage, width in enumerate(widths):
            stage_blocks: list[nn.Module] = []
            for index in range(blocks):
                stride = 2 if stage > 0 and index == 0 else 1
                stage_blocks.append(BasicBlock(previous, width, width, stride))
                previous = width
            stages.append(nn.Sequential(*stage_blocks))
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(previous, num_classes)
        _he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        x = self.stages(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.flatten(self.pool(x)))


def _he_init(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)


def resnet(
    depth: int,
    num_classes: int = 10,
    widths: Sequence[int] = (16, 32, 64),
    in_channels: int = 3,
) -> CifarResNet:
    """Build the CIFAR ResNet of ``depth = 6n + 2`` layers with the given stage ``widths``."""
    if depth < 8 or (depth - 2) % 6:
        raise MisconfiguredError(
            f"depth={depth}: a CIFAR ResNet has 6n + 2 layers; use 8, 14, 20, 32, 44, 56 or 110"
        )
    if len(widths) != 3 or min(widths) < 1:
        raise MisconfiguredError(
            f"widths={tuple(widths)}: give three positive channel counts, such as (16, 32, 64)"
        )
    return CifarResNet((depth - 2) // 6, num_classes, widths, in_channels)


def resnet20(num_classes: int = 10) -> CifarResNet:
    """ResNet-20: 40.81 M MACs, 0.272 M parameters at 3x32x32."""
    return resnet(20, num_classes)


def digits_resnet(num_classes: int = 10) -> CifarResNet:
    """A small ResNet-14 for scikit-learn's digits, input 1x8x8."""
    return resnet(14, num_classes, in_channels=1)


MODELS: dict[str, Callable[[int], nn.Module]] = {
    **{f"resnet{depth}": partial(resnet, depth) for depth in (20, 32, 44, 56, 110)},
    "digits": digits_resnet,
}


def count_params(model: nn.Module) -> int:
    """Return how many parameters are trained."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of convolutions and matrix products for one sample of ``example``.

    Measured by ``torch.utils.flop_counter`` on ``example[:1]``; 1 MAC = 2 FLOPs. Attention is
    counted in full, causal or not; fused kernels, which the counter does not know, are switched
    off for that.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    counter = FlopCounterMode(display=False)
    try:
        with evaluation_mode(model), torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
            model(example[:1])
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return counter.get_total_flops() // 2
