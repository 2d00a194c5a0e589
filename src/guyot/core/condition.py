"""What a value that a user gives must satisfy, and what they may have meant; needs no torch."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from guyot.core.errors import MisconfiguredError

_SHOWN = 80
"""Characters of a wrong value in an error."""


@dataclass(frozen=True)
class Condition:
    """State a condition on a value, and the advice where it does not hold."""

    fits: Callable[[Any], bool]
    advice: str


def is_number(value: Any) -> bool:
    """Say whether a value is a real number: no text, no truth value, not NaN.

    Example:
        >>> [is_number(value) for value in (1, 0.5, float("inf"), True, "1", float("nan"), None)]
        [True, True, True, False, False, False, False]
    """
    return isinstance(value, Real) and not isinstance(value, bool) and bool(value == value)


def is_whole(value: Any) -> bool:
    """Say whether a value is an integer, and no truth value.

    Example:
        >>> [is_whole(value) for value in (1, -3, 2.0, True, "1", None)]
        [True, True, False, False, False, False]
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


SWITCH = Condition(lambda value: isinstance(value, bool), "give True or False")


def problem_of(name: str, value: Any, condition: Condition) -> str | None:
    """Return what is wrong with a value, and the way out; None if nothing is.

    Example:
        >>> problem_of("trained", "yes", SWITCH)
        "trained='yes': give True or False"
    """
    try:
        fits = condition.fits(value)
    except (ArithmeticError, TypeError, ValueError):  # such as a list instead of a number
        fits = False
    if fits:
        return None
    shown = " ".join(repr(value).split())
    if len(shown) > _SHOWN:
        shown = f"{shown[: _SHOWN - 3]}..."
    return f"{name}={shown}: {condition.advice}"


def require(name: str, value: Any, condition: Condition) -> None:
    """Refuse a value that does not satisfy its condition.

    Raises:
        MisconfiguredError: it does not.
    """
    if problem := problem_of(name, value, condition):
        raise MisconfiguredError(problem)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Name the closest of some words, ready to follow a sentence; empty if none is close.

    Example:
        >>> did_you_mean("epoch", ["epochs", "lr"])
        ', did you mean epochs?'
    """
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f", did you mean {close[0]}?" if close else ""
