"""Source text whose numbers are marked, so that two texts can be compared up to their numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_MARK = re.compile("\x01(\\w*)\x02([^\x03]*)\x03")


@dataclass(frozen=True)
class Number:
    """A marked number.

    Attributes:
        hint: what it could be called.
        text: its literal.
    """

    hint: str
    text: str


def number(hint: str, value: float) -> str:
    """Return the literal of a number, marked.

    Example:
        >>> plain(f"nn.Linear({number('in', 3)}, {number('out', 5)})")
        'nn.Linear(3, 5)'
    """
    text = int.__repr__(value) if isinstance(value, int) else float.__repr__(value)
    hint = re.sub(r"\W", "_", hint)
    return f"\x01{hint}\x02{text}\x03" if text.strip("-").isdigit() else literal(value)


def literal(value: float) -> str:
    """Return a float as an expression, not marked."""
    return float.__repr__(value) if value - value == 0 else f'float("{float.__repr__(value)}")'


def numbers(text: str) -> tuple[Number, ...]:
    """Return all marked numbers in order.

    Example:
        >>> numbers("a" + number("size", 3))
        (Number(hint='size', text='3'),)
    """
    return tuple(Number(*found.groups()) for found in _MARK.finditer(text))


def template(text: str) -> str:
    """Return the text without its numbers: equal for texts that differ in nothing else."""
    return _MARK.sub("\x01\x03", text)


def plain(text: str) -> str:
    """Return the text as it reads."""
    return _MARK.sub(lambda found: found[2], text)


def renamed(text: str, prefix: str) -> str:
    """Return the text with a prefix before every hint."""
    word = re.sub(r"\W", "_", prefix)
    return _MARK.sub(lambda f: f"\x01{f'{word}_{f[1]}'.strip('_')}\x02{f[2]}\x03", text)


def filled(text: str, values: Sequence[str]) -> str:
    """Return the text with other expressions in the place of its numbers, in order."""
    following: Iterator[str] = iter(values)
    return _MARK.sub(lambda _: next(following), text)
