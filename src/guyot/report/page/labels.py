"""Where the names of marks stand in a plane, so that none covers another or a mark."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

Rectangle = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""

_LETTER, _SPACE, _ABOVE, _BELOW, _MARK, _LINE = 6.6, 8.0, 10.0, 3.0, 7.0, 14.0
_ROWS = 12
"""How many lines away from its mark a name may go."""


@dataclass(frozen=True)
class Label:
    """A name: its baseline starts, is centred or ends at x, as `anchor` says."""

    x: float
    y: float
    anchor: str
    box: Rectangle
    rows: int = 0

    @property
    def far(self) -> bool:
        """Too far from its mark to go without a line between them."""
        return self.rows > 1


def label(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    room: Rectangle,
    lines: Sequence[Rectangle] = (),
) -> list[Label]:
    """Place names beside their marks, else above or below, else where it is free.

    Marks and other names are never covered if there is room; lines only if the next free place is
    rows away.

    Example:
        >>> found = label([(50, 50), (60, 50)], ["a", "b"], (0, 0, 100, 100))
        >>> [(label.x, label.anchor) for label in found]
        [(38, 'end'), (72, 'start')]
    """
    marks = [(x - _MARK, y - _MARK, x + _MARK, y + _MARK) for x, y in points]
    placed: list[Label] = []
    for (x, y), name in zip(points, names, strict=True):
        others = [*marks, *(_wider(other.box) for other in placed)]
        tried = _places(x, y, _LETTER * len(name))
        scored = (
            (_covered(found.box, others, room), _crossed(found, lines), n, found)
            for n, found in enumerate(tried)
        )
        placed.append(min(scored, key=lambda one: one[:3])[3])
    return placed


def _places(x: float, y: float, length: float) -> Iterator[Label]:
    """Return places for a name of that length, the best first."""
    yield _at(x + 12, y + 4, "start", length)
    yield _at(x - 12, y + 4, "end", length)
    for line, up in product(range(1, _ROWS + 1), (True, False)):
        baseline = y + 4 + _LINE * (-line if up else line)
        for anchor, shift in (("middle", 0), ("start", 8), ("end", -8)):
            yield _at(x + shift, baseline, anchor, length, line)


def _at(x: float, y: float, anchor: str, length: float, rows: int = 0) -> Label:
    left = x - {"start": 0.0, "middle": length / 2, "end": length}[anchor]
    return Label(x, y, anchor, (left, y - _ABOVE, left + length, y + _BELOW), rows)


def _covered(box: Rectangle, others: Sequence[Rectangle], room: Rectangle) -> float:
    """Add up square pixels that are shared with others, and ten times those outside."""
    inside = overlap(box, room)
    outside = (box[2] - box[0]) * (box[3] - box[1]) - inside
    return 10 * max(0.0, round(outside, 6)) + sum(overlap(box, other) for other in others)


def _wider(box: Rectangle) -> Rectangle:
    """Add the space that keeps two names on a line apart."""
    return box[0] - _SPACE, box[1], box[2] + _SPACE, box[3]


def _crossed(place: Label, lines: Sequence[Rectangle]) -> float:
    """Count the rows away from the mark, and lines under the name as 2.5 rows."""
    return place.rows + 2.5 * any(overlap(place.box, line) > 0 for line in lines)


def overlap(one: Rectangle, other: Rectangle) -> float:
    """Return area that two boxes share.

    Example:
        >>> overlap((0, 0, 2, 2), (1, 1, 3, 3)), overlap((0, 0, 1, 1), (2, 0, 3, 1))
        (1, 0.0)
    """
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return width * height if width > 0 and height > 0 else 0.0
