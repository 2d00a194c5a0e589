"""Lines of source code that fit a page."""

from __future__ import annotations

import keyword
import unicodedata
from collections.abc import Iterator

_WIDTH = 96
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def is_name(text: str) -> bool:
    """Tell whether a text can follow a dot.

    Example:
        >>> [is_name(text) for text in ("conv1", "0", "a-b", "class")]
        [True, False, False, False]
    """
    same = unicodedata.normalize("NFKC", text) == text  # Python reads names in this form
    return same and text.isidentifier() and not keyword.iskeyword(text)


def quoted(text: str) -> str:
    r"""Return a text as a literal that holds nothing but the text.

    Example:
        >>> print(quoted("conv1"), quoted('5" screen'), quoted("a" + chr(10)))
        "conv1" '5" screen' 'a\n'
    """
    plain = str.__repr__(text)
    return f'"{plain[1:-1]}"' if plain == f"'{text}'" and '"' not in text else plain


def remark(text: str) -> str:
    """Return a text that can stand in a docstring.

    Example:
        >>> remark("blocks.0"), remark("c" + chr(34) + chr(92) + chr(10) + "d")
        ('blocks.0', "c'/ d")
    """
    line = "".join(c if c.isprintable() else " " for c in text)
    return line.replace("\\", "/").replace('"', "'")


def wrap_line(line: str) -> list[str]:
    """Break a logical line at the commas of its longest bracket into lines of readable length.

    Example:
        >>> wrap_line("    short = True")
        ['    short = True']
        >>> call = f"nn.Sequential({', '.join(['nn.Linear(100, 100)'] * 5)})"
        >>> print(*wrap_line(call), sep=chr(10))
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
        lines += wrap_line(f"{indent}{part}{comma}")
    return [*lines, *wrap_line(f"{indent[4:]}{line[end:]}")]


def _brackets(line: str) -> Iterator[tuple[int, int]]:
    """Yield where brackets that hold something open and close."""
    open_at: list[int] = []
    for position, character in _outside_texts(line):
        if character in _PAIRS:
            open_at.append(position)
        elif character in _PAIRS.values() and open_at:  # a rest may begin with what closes
            start = open_at.pop()
            if position > start + 1:
                yield start, position


def _split(text: str) -> list[str]:
    """Split at the commas outside brackets."""
    depth, commas = 0, [-1]
    for position, character in _outside_texts(text):
        depth += (character in _PAIRS) - (character in _PAIRS.values())
        if character == "," and not depth:
            commas.append(position)
    parts = [text[a + 1 : b] for a, b in zip(commas, [*commas[1:], None], strict=True)]
    return [part.strip() for part in parts if part.strip()]


def _outside_texts(line: str) -> Iterator[tuple[int, str]]:
    """Yield the characters that are not part of a literal text, with their places."""
    quote, escaped = "", False
    for position, character in enumerate(line):
        if quote:
            quote = "" if character == quote and not escaped else quote
            escaped = character == "\\" and not escaped
        elif character in "\"'":
            quote = character
        else:
            yield position, character
