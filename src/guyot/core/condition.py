"""What a value that a user gives must satisfy, and what they may have meant; needs no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Condition:
    """State a condition on a value, and the advice where it does not hold."""

    fits: Callable[[Any], bool]
    advice: str


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Name the closest of some words, ready to follow a sentence; empty if none is close.

    Example:
        >>> did_you_mean("epoch", ["epochs", "lr"])
        ', did you mean epochs?'
    """
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""
