"""What rounding alone does to the numbers of a network that cannot run in float64.

The rounding of every operator is imitated: each number that it reads is moved by one unit of
roundoff, up or down at random (Monte Carlo arithmetic; Parker, 1997). How far this moves results is
what any other order of the same sums may do, also where a sum cancels. Whole numbers are exact as a
rule (counts, indices), so they stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from guyot.core.torch_private import dispatching, schema_of

UNIT = 2.0**-24
"""Half the distance of 1 and the next float32."""

RUNS = 4
SAFETY = 64.0
"""Tolerance over the largest of `RUNS` deviations.

A sum of n numbers is rounded n times and not once: with random signs sqrt(n) times as much, for
sums of some thousand. Two networks are compared, and each is rounded.
"""

MARGIN = 8.0
"""How many tolerances a wrong cut has to move an output by."""

Result = TypeVar("Result")


def rounded(seed: int) -> Any:
    """Return a context in which each float32 number that an operator reads is moved a little.

    Example:
        >>> with rounded(seed=0):
        ...     moved = torch.full((4,), 1.5) + 0
        >>> 0 < float((moved - 1.5).abs().max()) <= 4 * UNIT
        True
    """
    generator = torch.Generator().manual_seed(seed)

    def moved(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(moved, value))  # pyright: ignore[reportUnknownArgumentType,reportUnknownVariableType,reportUnknownMemberType]
        if not isinstance(value, Tensor) or value.dtype is not torch.float32:
            return value
        signs = torch.randint(2, value.shape, generator=generator) * 2 - 1
        other = value + value * signs * (2 * UNIT)  # it is rounded itself: half would be lost
        return torch.where(value == value.round(), value, other)

    def handler(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*(map(moved, args) if _computes(func) else args), **kwargs)

    return dispatching(handler)


def _computes(func: Any) -> bool:
    """Say whether an operator makes new numbers; views and what writes in place do not."""
    schema = schema_of(func)
    return (
        schema is not None
        and not schema.is_mutable
        and all(result.alias_info is None for result in schema.returns)
    )


def tolerance_of(
    run: Callable[[], Result], tensors: Callable[[Result], Sequence[Tensor]]
) -> float | None:
    """Return how far results may differ by rounding, relative to 1 + the largest of a tensor.

    Args:
        run: computes something, the same each time.
        tensors: what of it is compared.

    Returns:
        None where rounding changes more than numbers, or makes them infinite.
    """
    expected = tensors(run())
    largest = UNIT
    for seed in range(RUNS):
        with rounded(seed):
            found = tensors(run())
        if len(found) != len(expected):
            return None
        for one, other in zip(expected, found, strict=True):
            if one.shape != other.shape or not bool(other.isfinite().all()):
                return None
            if one.numel() and one.is_floating_point():
                moved = ((one - other).abs().max() / (1 + one.abs().max())).detach()
                largest = max(largest, float(moved))
    return SAFETY * largest
