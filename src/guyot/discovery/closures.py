"""Measuring gradients around an optimiser's step, whose closure may be what makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def with_gradients(
    measure: Callable[[], None], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Measure gradients now, or after the closure that makes them.

    Args:
        measure: called when gradients are there.
        args: of the optimiser's `step`, the optimiser first.
        kwargs: of the same.

    Returns:
        Other arguments for `step`; None: the same.
    """
    optimizer, *rest = args
    closure = rest[0] if rest else kwargs.get("closure")
    if closure is None:
        measure()
        return None

    def measured() -> Any:
        loss = closure()
        measure()
        return loss

    return (optimizer,), {"closure": measured}
