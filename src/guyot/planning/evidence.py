"""What the steps between two decisions measured, summed up on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from guyot.planning.benefits import SideSums


class Told(NamedTuple):
    """Hold what some steps told, on the CPU.

    Attributes:
        sums: of the steps that count.
        silent: steps in which no gradient reached any gate.
        broken: steps with a gradient that was NaN or infinite.
    """

    sums: SideSums
    silent: int
    broken: int

    @property
    def skipped(self) -> int:
        """Return how many steps do not count."""
        return self.silent + self.broken


class Latest(NamedTuple):
    """Hold what one step told, on the device, as means over the ranks.

    Attributes:
        active: xi dC/dxi, shape (gates,).
        share: of the ranks that sampled 1, shape (gates,).
        counts: whether the step counts, one bool.
    """

    active: Tensor
    share: Tensor
    counts: Tensor


class Evidence:
    """Sum up gate gradients on the device, so that no step waits for it.

    With several ranks every step is averaged over them at once: a rank's sums are those of all.

    Args:
        gates: how many there are.
        device: where the gates live.
    """

    def __init__(self, gates: int, device: torch.device | str) -> None:
        self._rows = torch.zeros(5, gates, device=device)
        self._numbers = torch.zeros(4, device=device)

    @torch.no_grad()
    def add(
        self,
        gradient: Tensor,
        gate: Tensor,
        predictions: int,
        mean: Callable[[Tensor], Tensor],
    ) -> Latest:
        """Take in one step; nothing is copied to the CPU.

        A step without any gradient, or with one that is not finite, counts as skipped.

        Args:
            gradient: dC/dxi, nats, shape (gates,).
            gate: the sampled xi, 0 or 1, shape (gates,).
            predictions: B, how many predictions the loss is the mean of.
            mean: takes the mean of a flat tensor over the ranks; called once.
        """
        mine = SideSums.from_sample(gradient, gate, predictions)
        sides = (mine.sum_one, mine.sum_zero, mine.count_one, mine.square_one, mine.square_zero)
        rows = torch.stack(sides)
        number = torch.full((1,), float(predictions), device=rows.device)
        shared = mean(torch.cat([rows.flatten(), number]))
        rows, number = shared[:-1].view_as(rows), shared[-1]
        finite = rows[:2].sum().isfinite()
        heard = rows[:2].any()
        counts = finite & heard
        self._rows += torch.where(counts, rows, 0)
        one = counts.to(rows)
        marks = [one, one * number, (~heard).to(rows), (heard & ~finite).to(rows)]
        self._numbers += torch.stack(marks)
        return Latest(rows[0], rows[2], counts)

    def take(self) -> Told:
        """Return what the steps since the last `take` told, and forget it; waits for the device."""
        found = torch.cat([self._rows.flatten(), self._numbers]).cpu()
        counted, predictions, silent, broken = found[-4:].tolist()
        one, zero, count, square_one, square_zero = found[:-4].view(5, -1)
        sums = SideSums(
            sum_one=one,
            count_one=count,
            sum_zero=zero,
            count_zero=counted - count,
            square_one=square_one,
            square_zero=square_zero,
            predictions=predictions / max(counted, 1.0),
        )
        self._rows.zero_()
        self._numbers.zero_()
        return Told(sums, round(silent), round(broken))

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the sums, on the CPU."""
        return {
            "rows": self._rows.to("cpu", copy=True),
            "numbers": self._numbers.to("cpu", copy=True),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        self._rows.copy_(state["rows"])
        self._numbers.copy_(state["numbers"])
