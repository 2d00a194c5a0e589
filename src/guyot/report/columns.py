"""Tables as lines of text, for terminals of any width."""

from __future__ import annotations

from collections.abc import Sequence

USUAL = 80
"""Columns of text where nobody says how many there are."""


def aligned(rows: Sequence[Sequence[str]], width: int = USUAL, *, name: int = 0) -> list[str]:
    """Return a table, columns side by side; in a narrow terminal a paragraph per row.

    Args:
        rows: the first one holds the titles.
        width: of the terminal; only what is narrower than usual changes the table.
        name: number of the column with the names, which is aligned left.

    Example:
        >>> aligned([["run", "MACs"], ["found", "7 k"]])
        ['run    MACs', 'found   7 k']
        >>> aligned([["run", "MACs"], ["found", "7 k"]], width=10)
        ['run', 'found', '  MACs: 7 k']
    """
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust if place == name else str.rjust for place in range(len(wide))]
    table = [
        "  ".join(side(cell, w) for side, cell, w in zip(sides, row, wide, strict=True)).rstrip()
        for row in rows
    ]
    if width >= USUAL or max(map(len, table)) <= width:
        return table
    titles, *others = rows
    found = [titles[name]] if titles[name] else []
    for row in others:
        cells = zip(titles, row, strict=True)
        figures = [f"  {title}: {cell}" for title, cell in cells if cell]
        del figures[sum(map(bool, row[:name]))]
        found += [row[name], *figures]
    return found
