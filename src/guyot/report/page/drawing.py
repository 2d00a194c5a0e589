"""Places of the network drawing: a row per block beside a trunk, bars for units and MACs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from guyot.report.page.network import Block, Box
from guyot.report.table import count_text

WIDTH = 1120
_TRUNK, _NAME, _BOXES, _MACS = 16, 48, 290, 770
_ROOM, _MACS_BAR, _NUMBERS = 460, 170, 92
_ROW, _DENSE_ROW, _MANY, _HEAD, _APART = 26, 20, 36, 22, 7
_LETTERS = 34


@dataclass(frozen=True)
class Bar:
    """A box with its places; `cuts` tell heads apart."""

    group: int | None
    before: int
    x: float
    full: float
    filled: float
    text: str
    cuts: Sequence[float] = ()


@dataclass(frozen=True)
class Row:
    """A block with its places."""

    block: Block
    y: float
    label: str
    inside: str
    words: str
    boxes: Sequence[Bar]
    macs_full: float
    macs_filled: float
    macs_text: str


@dataclass(frozen=True)
class Drawing:
    """All rows, and what they share."""

    width, trunk_x, name_x, boxes_x, macs_x = WIDTH, _TRUNK, _NAME, _BOXES, _MACS

    height: float
    row: int
    bar: int
    bar_y: float
    rows: Sequence[Row]


def draw(blocks: Sequence[Block]) -> Drawing:
    """Lay the blocks out, from input to output."""
    height = _DENSE_ROW if len(blocks) > _MANY else _ROW
    most = max((block.macs for block in blocks), default=1) or 1
    beside = max((len(block.boxes) for block in blocks), default=1)
    rows: list[Row] = []
    y = float(_HEAD)
    for block in blocks:
        y += _APART if block.apart else 0
        rows.append(_row(block, y, most, beside))
        y += height
    bar = height - 12
    return Drawing(y + 6, height, bar, (height - bar) / 2, rows)


def _row(block: Block, y: float, most: int, beside: int) -> Row:
    text = change(block.macs, block.left, count_text)
    units = [f"{box.name} {change(box.before, box.after)}{_each(box)}" for box in block.boxes]
    return Row(
        block,
        y,
        shorten(block.name, _LETTERS - len(block.inside)),
        block.inside,
        ", ".join([block.title, *(["gone"] if block.gone else []), *units, f"MACs {text}"]),
        _bars(block.boxes, beside),
        _MACS_BAR * block.macs / most,
        _MACS_BAR * block.left / most,
        text,
    )


def _bars(boxes: Sequence[Box], beside: int) -> list[Bar]:
    room = _ROOM / max(1, beside)
    full = max(12.0, room - _NUMBERS)
    return [
        Bar(
            box.group,
            box.before,
            _BOXES + place * room,
            full,
            full * box.after / max(1, box.before),
            change(box.before, box.after),
            _cuts(box, _BOXES + place * room, full),
        )
        for place, box in enumerate(boxes)
    ]


def _cuts(box: Box, x: float, full: float) -> list[float]:
    """Place the borders between units that are wide and few: heads."""
    if box.stride == 1 or full < 5 * box.before:
        return []
    return [x + full * place / box.before for place in range(1, box.before)]


def _each(box: Box) -> str:
    return f" of {box.stride} entries each" if box.stride > 1 else ""


def change(before: int, after: int, text: Callable[[int], str] = str) -> str:
    """Write a count before and after.

    Example:
        >>> change(64, 40), change(64, 64), change(64, 0)
        ('64 → 40', '64', '64 → gone')
    """
    was, now = text(before), text(after) if after else "gone"
    return was if was == now else f"{was} → {now}"


def shorten(name: str, letters: int) -> str:
    """Cut the middle out of a long name.

    Example:
        >>> shorten("encoder.layers.11.mlp", 13)
        'encode….11.mlp'
    """
    if len(name) <= letters:
        return name
    half = letters // 2
    return f"{name[:half]}…{name[len(name) - half - 1 :]}"
