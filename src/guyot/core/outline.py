"""A tree as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_COLUMNS = 80


@dataclass(frozen=True)
class Item:
    """A line of a tree, with what hangs below it."""

    text: str
    below: Sequence[Item] = ()


def tree_lines(items: Sequence[Item], margin: str = "") -> Iterator[str]:
    """Yield the lines of a tree; long texts are wrapped.

    Example:
        >>> for line in tree_lines([Item("a", [Item("b"), Item("c")]), Item("d")]):
        ...     print(line)
        ├── a
        │   ├── b
        │   └── c
        └── d
    """
    for number, item in enumerate(items, 1):
        last = number == len(items)
        inside = margin + ("    " if last else "│   ")
        first, *others = textwrap.wrap(item.text, _COLUMNS - len(inside))
        yield f"{margin}{'└── ' if last else '├── '}{first}"
        yield from (f"{inside}  {line}" for line in others)
        yield from tree_lines(item.below, inside)


def names_text(names: Sequence[str], shown: int | None) -> str:
    """Name all, or the first `shown` and how many more.

    Example:
        >>> names_text(["a", "b", "c", "d"], 2)
        'a, b and 2 more'
    """
    if shown is None or len(names) <= shown + 1:
        return ", ".join(names)
    return f"{', '.join(names[:shown])} and {len(names) - shown} more"
