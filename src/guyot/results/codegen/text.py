"""Lines of source code that fit a page."""

from __future__ import annotations

import keyword
from collections.abc import Iterator

_WIDTH = 96
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def is_name(text: str) -> bool:
    """Tell whether a text can follow a dot.

    Example:
        >>> [is_name(text) for text in ("conv1", "0", "a-b", "class")]
        [True, False, False, False]
    """
    return text.isidentifier() and not keyword.iskeyword(text)


def wrapped(line: str) -> list[str]:
    """Break a logical line at the commas of its longest bracket into lines of readable length.

    Example:
        >>> wrapped("    short = True")
        ['    short = True']
        >>> call = f"nn.Sequential({', '.join(['nn.Linear(100, 100)'] * 5)})"
        >>> print(*wrapped(call), sep=chr(10))
        nn.Sequential(
            nn.Linear(100, 100),
            nn.Linear(100, 100),
            nn.Linear(100, 100),
            nn.Linear(100, 100),
            nn.Linear(100, 100),
        )
    """
    brackets = list(_brackets(line)) if len(line) > _WIDTH else []
    if not brackets:
        return [line]
    start, end = max(brackets, key=lambda bracket: bracket[1] - bracket[0])
    indent = line[: len(line) - len(line.lstrip())] + "    "
    parts = _split(line[start + 1 : end])
    subscript = line[start] == "[" and (line[start - 1].isidentifier() or line[start - 1] in ")]")
    lines = [line[: start + 1]]
    for number, part in enumerate(parts):
        comma = "" if subscript and number == len(parts) - 1 else ","
        lines += wrapped(f"{indent}{part}{comma}")
    return [*lines, *wrapped(f"{indent[4:]}{line[end:]}")]


def _brackets(line: str) -> Iterator[tuple[int, int]]:
    """Yield where brackets that hold something open and close."""
    open_at: list[int] = []
    for position, character in enumerate(line):
        if character in _PAIRS:
            open_at.append(position)
        elif character in _PAIRS.values():
            start = open_at.pop()
            if position > start + 1:
                yield start, position


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in _PAIRS) - (character in _PAIRS.values())
        if character == "," and not depth:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
