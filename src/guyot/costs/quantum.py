"""The width multiple below which convolutions do not get faster on this device, by measurement.

Vector units, matrix units and their kernels work on blocks of channels. A width that fills its
blocks is *efficient*; the width between two blocks may cost more time than the next larger one.
The *quantum* is the smallest multiple whose widths are all efficient. It is measured once per
process on the layer that convolutional networks are made of, 3x3 convolution + BatchNorm + ReLU,
forward and backward.

Efficiency compares a width with the powers of two around it, a < w < 2a, which are fast wherever
blocks exist. The work of a layer grows like a power of its width between them (about 1 where
memory is the limit, up to 2 where arithmetic is), so

    promised(w) = T(a) * (w / a) ** log2(T(2a) / T(a)),    efficiency(w) = promised(w) / T(w)

is 1 on any device without blocks, whatever its balance of memory and arithmetic. Comparing with
MACs alone would fail even the powers of two: at small widths activations, not weights, take the
time [ours].
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from functools import cache
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from guyot.core.errors import MisconfiguredError
from guyot.costs.timing import LEAST_ROUNDS, Clock, Step, clock_of, rounds

DEFAULT_QUANTUM = 8
"""Where nothing can be measured or the measurement does not tell."""

POWERS = (8, 16, 32, 64)
CLASSES: dict[int, tuple[int, ...]] = {
    16: (48,),
    8: (24, 40, 56),
    4: (12, 20, 28),
    2: (10, 14, 22),
    1: (9, 11, 21),
}
"""Widths by the largest power of two that divides them: what a finer quantum would add."""

WIDTHS = tuple(sorted((*POWERS, *(width for widths in CLASSES.values() for width in widths))))
BATCHES = (8, 32, 128)
PIXELS = 16
LEAST_GROWTH = 1.9


def efficiency(times: Mapping[int, float], width: int) -> float:
    """Divide what a width should take, seen from the powers of two around it, by what it takes.

    Args:
        times: seconds by width; must hold both neighbouring powers of two.
        width: not a power of two.

    Example:
        >>> round(efficiency({16: 2.0, 24: 4.0, 32: 4.0}, 24), 3)  # 24 is as slow as 32
        0.75
    """
    below = 1 << (width.bit_length() - 1)
    low, high = times[below], times[2 * below]
    return low * (width / below) ** math.log2(high / low) / times[width]


def decide(rounds: Sequence[Mapping[int, float]], threshold: float = 0.8) -> int:
    """Return the quantum that a timing table speaks for; 8 unless it clearly speaks for another.

    Efficiencies are taken within a repetition, so a slow moment of the machine cancels if it lasts
    longer than that. Over the repetitions a width is clearly efficient (or clearly not) if the
    median is two standard errors above (below) the threshold; a class of widths (`CLASSES`) is
    clearly efficient if all its widths are, and clearly not if one is not. The quantum becomes
    coarser than 8 if multiples of 8 are clearly not efficient, and finer as long as they and every
    class added clearly are.

    Args:
        rounds: seconds by width, one mapping for each repetition over all `WIDTHS`.
        threshold: least efficiency of a good width.

    Returns:
        1, 2, 4, 8, 16 or 32.

    Example:
        >>> decide([{w: w**1.5 for w in WIDTHS}] * 5)  # no blocks
        1
        >>> decide([{w: -(-w // 16) * 16.0 for w in WIDTHS}] * 5)  # blocks of 16
        16
    """
    if not conclusive(rounds):
        return DEFAULT_QUANTUM
    verdicts = {
        quantum: _verdict([[efficiency(t, width) for t in rounds] for width in widths], threshold)
        for quantum, widths in CLASSES.items()
    }
    if verdicts[8] < 0:
        return 32 if verdicts[16] < 0 else 16
    quantum = DEFAULT_QUANTUM
    while quantum > 1 and verdicts[quantum] > 0 and verdicts[quantum // 2] > 0:
        quantum //= 2
    return quantum


def conclusive(rounds: Sequence[Mapping[int, float]]) -> bool:
    """Tell whether there are enough rounds, and time grows with the width (else it is overhead)."""
    if len(rounds) < LEAST_ROUNDS or any(not min(times.values()) > 0 for times in rounds):
        return False
    return median(times[POWERS[-1]] / times[POWERS[0]] for times in rounds) >= LEAST_GROWTH


def _verdict(samples: Sequence[Sequence[float]], threshold: float) -> int:
    """Return 1: all are clearly at least the threshold, -1: one is clearly below, 0: unclear."""
    found: list[int] = []
    for values in samples:
        middle = median(values)
        deviation = 1.4826 * median(abs(value - middle) for value in values)
        margin = 2 * 1.2533 * deviation / math.sqrt(len(values))  # of a median of normal values
        found.append((middle - margin >= threshold) - (middle + margin < threshold))
    return min(found)


def measure_quantum(
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    channels_last: bool = True,
    budget: float = 2.0,
    batch: int | None = None,
) -> int:
    """Return the width multiple worth keeping to on a device, measured once per process.

    Off the CPU nothing is measured and the answer is 8: the multiple that NVIDIA's guides ask for
    with float16 and bfloat16, and a harmless one otherwise.

    The number of threads is part of the question: set it before. The global random state is not
    touched.

    Args:
        device: where the network trains.
        dtype: in which its convolutions run: bfloat16 or float16 under autocast.
        channels_last: memory format of its activations.
        budget: seconds the measurement may take.
        batch: of predictions, whose forward pass is then all that counts; None: of training.

    Raises:
        MisconfiguredError: not a floating-point dtype.
    """
    if not dtype.is_floating_point:
        raise MisconfiguredError(f"dtype={dtype}: give the dtype of convolutions, e.g. bfloat16")
    device = torch.device(device)
    if device.type != "cpu":
        return DEFAULT_QUANTUM
    return _measured(dtype, channels_last, budget, torch.get_num_threads(), batch)


@cache
def _measured(
    dtype: torch.dtype,
    channels_last: bool,
    budget: float,
    threads: int,  # noqa: ARG001 - one answer for each
    batch: int | None,
) -> int:
    return decide(timing_table(dtype, channels_last, budget, batch))


def timing_table(
    dtype: torch.dtype, channels_last: bool, budget: float, batch: int | None = None
) -> list[dict[int, float]]:
    """Return the seconds of one layer by width; one mapping per repetition.

    A first repetition warms up. The batch is as large as the budget allows, since activations that
    fit a cache hide what a width costs. A machine too slow or too busy for the budget gives fewer
    repetitions, down to none.

    Args:
        dtype: of the activations; parameters of BatchNorm stay float32.
        channels_last: memory format.
        budget: seconds.
        batch: forward only, of that many images; None: forward and backward.
    """
    clock = clock_of("cpu")
    end = time.perf_counter() + budget
    if batch is None:
        steps = _affordable(dtype, channels_last, clock, budget)
    else:
        steps = {
            width: _layer(width, batch, dtype, channels_last, training=False) for width in WIDTHS
        }
    taken = rounds(steps, clock, end - time.perf_counter(), least=0)
    return [{width: span.busy for width, span in times.items()} for times in taken]


def _affordable(
    dtype: torch.dtype, channels_last: bool, clock: Clock, budget: float
) -> dict[int, Step]:
    """Return one step per width, with a batch of which several repetitions fit into the time."""
    smallest = min(BATCHES)
    probe = {"it": _layer(WIDTHS[-1], smallest, dtype, channels_last)}
    repetition = next(rounds(probe, clock, 0.0))["it"].busy * len(WIDTHS) / 2  # roughly
    affordable = budget / (LEAST_ROUNDS + 2)
    fitting = (batch for batch in BATCHES if repetition * batch / smallest <= affordable)
    batch = max(fitting, default=smallest)
    return {width: _layer(width, batch, dtype, channels_last) for width in WIDTHS}


def _layer(
    width: int, batch: int, dtype: torch.dtype, channels_last: bool, training: bool = True
) -> Step:
    """Make a step: conv3x3 + BatchNorm + ReLU, `width` channels in and out.

    In training it is forward and backward, else the forward of evaluation mode.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator).to(dtype)
        return values.contiguous(memory_format=layout).requires_grad_()

    with torch.inference_mode(False), torch.enable_grad():
        image, weight = drawn(batch, width, PIXELS, PIXELS), drawn(width, width, 3, 3)
        scale, shift = (torch.ones(width, requires_grad=True) for _ in range(2))
        cotangent = drawn(batch, width, PIXELS, PIXELS).detach()

    def train() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            out = F.conv2d(image, weight, padding=1)
            out = F.relu_(F.batch_norm(out, None, None, scale, shift, training=True))
            torch.autograd.grad(out, (image, weight, scale, shift), cotangent)

    def predict() -> None:
        with torch.inference_mode():
            out = F.conv2d(image, weight, padding=1)
            F.relu_(F.batch_norm(out, shift, scale, scale, shift))

    return torch.autocast("cpu", enabled=False)(train if training else predict)
