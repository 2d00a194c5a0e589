"""Numbers that a device computed, read when the next step is on its way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Late:
    """Hand out numbers of a step when those of the next one are given.

    The copy from a GPU starts at once and is waited for one step later. So the GPU has work while
    the host reads.
    """

    def __init__(self) -> None:
        self._read: Callable[[], list[float]] | None = None

    def give(self, values: Tensor) -> list[float] | None:
        """Take the numbers of a step, shape (n,); return those of the step before, if any."""
        read, self._read = self._read, _reading(values)
        return None if read is None else read()

    def take(self) -> list[float] | None:
        """Return the numbers that were given last, if they were not returned before."""
        read, self._read = self._read, None
        return None if read is None else read()


def _reading(values: Tensor) -> Callable[[], list[float]]:
    if not values.is_cuda:
        return values.tolist
    copy = values.to("cpu", non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[float]:
        copied.synchronize()
        return copy.tolist()

    return read
