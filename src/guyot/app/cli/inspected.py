"""How the structures of a network look on a terminal."""

import textwrap
from collections import defaultdict
from collections.abc import Iterator

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from guyot.app.cli.app import columns
from guyot.core.outline import names_text
from guyot.report import GroupEntry, Inspection, LayerEntry, Price, count_text

_WIDTH = 80
_NAME = 42
_GUIDE = 4
_SHOWN = 4


def show(model: str, seen: Inspection, *, quiet: bool, shortened: bool) -> None:
    """Print what can go in a network, what it costs, and what stays.

    Args:
        model: its name.
        seen: what was found.
        quiet: print the figures only.
        shortened: name some of many members and readers.
    """
    width, shown = min(_WIDTH, columns()), _SHOWN if shortened else None
    console = Console(width=width, soft_wrap=True)
    for line in _figures(seen) if quiet else _head(model, seen):
        console.print(line, markup=False, highlight=False)
    if quiet:
        return
    if seen.groups or seen.layers:
        console.print(_tree(seen, shown, width))
    for line in _frozen(seen, shown, width):
        console.print(line, markup=False, highlight=False)


def _head(model: str, seen: Inspection) -> Iterator[str]:
    shapes = ", ".join("x".join(map(str, shape)) for shape in seen.input_shapes)
    yield f"{model}, input {shapes}"
    yield from _figures(seen)
    yield ""


def _figures(seen: Inspection) -> Iterator[str]:
    full, least = seen.full, seen.least
    for name, all_, left in (
        ("MACs of one sample", full.macs, least.macs),
        ("parameters", full.params, least.params),
    ):
        share = f"at least {left / all_:.2%} stays" if all_ else "none"
        yield f"  {name:<20}{count_text(all_):>8}   {share}"
    units = sum(entry.group.size for entry in seen.groups)
    yield f"  {'groups of units':<20}{len(seen.groups):>8}   {units:,} units"
    yield f"  {'layers':<20}{len(seen.layers):>8}   residual branches"


def _tree(seen: Inspection, shown: int | None, width: int) -> Tree:
    """Layers hold the groups and layers that go with them."""
    inside: dict[str | None, list[GroupEntry | LayerEntry]] = defaultdict(list)
    for entry in seen.entries:
        inside[entry.layer if isinstance(entry, GroupEntry) else entry.inside].append(entry)
    names = _NAME - _WIDTH + width
    head = f"{'':<{names}}{'units':>6}{'MACs':>9}{'':>7}{'params':>9}{'':>7}"
    root = Tree(Text(head.rstrip(), style="dim"), guide_style="dim")

    def grow(branch: Tree, place: str | None, depth: int) -> None:
        room = names - _GUIDE * depth
        for entry in inside[place]:
            if isinstance(entry, GroupEntry):
                row = _row(
                    entry.group.name,
                    str(entry.group.size),
                    entry.unit,
                    seen.full,
                    room,
                )
                leaf = branch.add(Text(row))
                for line in _slots(entry, shown, width - _GUIDE * (depth + 1)):
                    leaf.add(Text(line, style="dim"))
            else:
                row = _row(f"layer {entry.name}", "", entry.price, seen.full, room)
                grow(branch.add(Text(row, style="bold")), entry.name, depth + 1)

    grow(root, None, 1)
    return root


def _row(name: str, units: str, price: Price, full: Price, room: int) -> str:
    """Name and figures in columns; a name that is too long has a line of its own."""
    figures = f"{units:>6}{_figure(price.macs, full.macs)}{_figure(price.params, full.params)}"
    if len(name) > room:
        return f"{name}\n{'':<{room}}{figures}"
    return f"{name:<{room}}{figures}"


def _figure(cost: int, full: int) -> str:
    share = f"{cost / full:.2%}" if full else "-"
    return f"{count_text(cost):>9}{share:>7}"


def _slots(entry: GroupEntry, shown: int | None, room: int) -> Iterator[str]:
    """Say who makes the units and who reads them, as modules."""
    for title, names in entry.group.relations:
        if names:
            text = f"{title} {names_text(names, shown)}"
            yield textwrap.fill(text, room, subsequent_indent="  ")


def _frozen(seen: Inspection, shown: int | None, width: int) -> Iterator[str]:
    """Return what stays, by reason."""
    if seen.frozen:
        yield ""
        yield "stays"
    for reason, names in seen.frozen.items():
        text = f"{names_text(names, shown)}: {reason}"
        yield from textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
    yield ""
    yield from textwrap.wrap(
        "MACs (1 MAC = 2 FLOPs) of one sample and parameters that go with one unit of a group, or "
        "with a whole layer, from the full network. A group stands in the layer that it goes with.",
        width,
    )
