"""What a value that a user gives must satisfy; needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    """State a condition on a value, and the advice where it does not hold."""

    fits: Callable[[Any], bool]
    advice: str
