"""How runs are told apart, in colour and without: a hue, a dash pattern and a marker each."""

from __future__ import annotations

from dataclasses import dataclass

# Okabe and Ito's palette, safe for colour-blind readers, with purple, orange and sky blue darkened:
# every hue has a contrast of 3 to both papers. Without its yellow, too light for lines, and with a
# grey for its black, which is the colour of text.
HUES = ("#0072B2", "#D55E00", "#009E73", "#C0699A", "#BC8200", "#2F93CE", "#7F7F7F")
DASHES = ("", "7 3", "2 2.5", "9 3 2 3", "14 4", "4 2 1 2 1 2", "1 3", "12 3 5 3")
_MARKERS = {
    "circle": "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0 -4.5 0Z",
    "square": "M-4 -4H4V4H-4Z",
    "triangle": "M0 -5.2L5 3.8H-5Z",
    "diamond": "M0 -5.8L5.8 0L0 5.8L-5.8 0Z",
    "down": "M0 5.2L5 -3.8H-5Z",
    "cross": "M-4.6 -2.2L-2.2 -4.6L0 -2.4L2.2 -4.6L4.6 -2.2L2.4 0L4.6 2.2L2.2 4.6L0 2.4L-2.2 4.6"
    "L-4.6 2.2L-2.4 0Z",
    "plus": "M-1.7 -5H1.7V-1.7H5V1.7H1.7V5H-1.7V1.7H-5V-1.7H-1.7Z",
}
MATPLOTLIB_MARKERS = ("o", "s", "^", "D", "v", "X", "P")


@dataclass(frozen=True)
class Style:
    """Look of one run.

    Attributes:
        number: of the run, from 0.
        hue: of its lines and markers.
        dash: SVG's stroke-dasharray.
        marker: SVG path around the origin.
    """

    number: int
    hue: str
    dash: str
    marker: str


def style(number: int) -> Style:
    """Return the look of a run: 49 differ in hue or marker, 56 in hue or dash pattern."""
    return Style(
        number,
        HUES[number % len(HUES)],
        DASHES[number % len(DASHES)],
        tuple(_MARKERS.values())[marker(number)],
    )


def marker(number: int) -> int:
    """Number a run's marker; the second round of hues begins with the second one.

    Example:
        >>> [marker(number) for number in (0, 6, 7, 13, 14)]
        [0, 6, 1, 0, 2]
    """
    return (number + number // len(HUES)) % len(MATPLOTLIB_MARKERS)
