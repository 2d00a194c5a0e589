"""The moving average of the weights that `ema` asks for, which is the network that comes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, update_bn

from guyot.discovery.discovery import Discovery


def averaged(model: nn.Module, decay: float, discovery: Discovery | None) -> AveragedModel:
    """Return an average of the weights, which is cut whenever the model is cut.

    After n steps the decay is min(decay, (1 + n) / (10 + n)), so that a short run does not keep its
    random beginning.

    Args:
        model: whose weights are averaged by `update_parameters`.
        decay: of the average per step.
        discovery: of the model; None for a run without one.
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], weights: Sequence[Tensor], steps: Tensor | int) -> None:
        count = torch.as_tensor(steps, dtype=torch.float32)
        share = 1 - ((1 + count) / (10 + count)).clamp(max=decay)
        for average, weight in zip(averages, weights, strict=True):
            average.lerp_(weight, share.to(average))

    average = AveragedModel(model, multi_avg_fn=update)
    if discovery is not None:
        discovery.follow(average)
    return average


def adopt(model: nn.Module, average: AveragedModel, images: Iterable[Tensor]) -> None:
    """Give a model the averaged weights, and BatchNorm's statistics that belong to them.

    Args:
        model: plain, of the sizes of the average.
        average: of its weights.
        images: batches of training images, on which the statistics are taken.
    """
    model.load_state_dict(average.module.state_dict())
    update_bn(images, model)
