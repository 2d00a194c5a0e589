"""From run folders to one self-contained HTML page."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guyot.core.errors import MisconfiguredError
from guyot.core.packages import needed
from guyot.report.history import History
from guyot.report.page import heat
from guyot.report.page.curves import LAYOUTS, Curves, curves, percent, readouts
from guyot.report.page.drawing import Drawing, Row, draw
from guyot.report.page.network import Block, blocks, over_time
from guyot.report.page.planes import left_out, planes
from guyot.report.page.reasons import COLUMNS, Reasons, reasons
from guyot.report.page.style import Style, style
from guyot.report.page.summary import (
    about,
    epoch_columns,
    epochs,
    made,
    notes,
    sentence,
    table,
    tiles,
)
from guyot.report.page.summary import title as title_of

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """What the page says about one run."""

    name: str
    style: Style
    about: str
    epochs: Sequence[Sequence[str]]
    blocks: Sequence[Block]
    drawing: Drawing
    snapshots: int
    heats: heat.Heats | None
    rows: str
    reasons: Reasons | None
    made: Sequence[tuple[str, str]]


def render(runs: Sequence[History]) -> str:
    """Return the report of one or several runs.

    Args:
        runs: as `guyot.report.read_runs` gives them.

    Returns:
        HTML that needs no other file.

    Raises:
        MisconfiguredError: no run, or jinja2 or pillow is not installed.
    """
    if not runs:
        raise MisconfiguredError("runs=[]: give at least one run folder")
    with needed("a report needs", "report"):
        import jinja2

        importlib.import_module("PIL")  # the maps need it
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    styles = [style(number) for number in range(len(runs))]
    sections = [_section(run, look) for run, look in zip(runs, styles, strict=True)]
    panels = [curves(runs, styles, layout) for layout in LAYOUTS]
    return environment.get_template("report.html.jinja").render(
        version=importlib.metadata.version("guyot"),
        title=title_of(runs),
        score=runs[0].metric.name,
        about=about(runs),
        sentence=sentence(runs[0]),
        tiles=tiles(runs[0]),
        table=table(runs),
        notes=notes(runs),
        runs=sections,
        planes=planes(runs, styles),
        left_out=left_out(runs),
        reason_columns=COLUMNS,
        curves=panels,
        epoch_columns=epoch_columns(runs[0].metric),
        data=_embedded(_data(runs, sections, panels)),
    )


def _section(run: History, look: Style) -> Section:
    found = blocks(run)
    maps = heat.heats(run)
    part = any(len(group["rows"]) < group["size"] for group in run.groups)
    return Section(
        name=run.name,
        style=look,
        about=_outcome(run),
        epochs=epochs(run),
        blocks=found,
        drawing=draw(found),
        snapshots=len(run.snapshots),
        heats=maps,
        rows="Large groups are shown by evenly spread units." if part else "",
        reasons=reasons(run),
        made=made(run),
    )


def _outcome(run: History) -> str:
    if not run.layers:
        return ""
    gone = len(run.removed_layers)
    return f"{gone or 'None'} of {len(run.layers)} residual branches went."


def _data(
    runs: Sequence[History], sections: Sequence[Section], panels: Sequence[Curves]
) -> dict[str, Any]:
    """Collect what the script needs."""
    return {
        "curves": {
            "places": {p.layout.key: (p.layout.left, p.layout.right) for p in panels},
            "unit": panels[0].unit,
            "last": panels[0].last,
            "names": [run.name for run in runs],
            "panels": readouts(runs),
        },
        "networks": [
            over_time(run, section.blocks)
            | {"blocks": [_block(row) for row in section.drawing.rows]}
            for run, section in zip(runs, sections, strict=True)
        ],
        "heat": {"plot": heat.WIDTH, "height": heat.HEIGHT, "settled": heat.SETTLED},
        "heats": [
            {
                "steps": list(section.heats.steps) if section.heats else [],
                "maps": [item.data for item in section.heats.maps] if section.heats else [],
            }
            for section in sections
        ],
    }


def _block(row: Row) -> Mapping[str, Any]:
    block = row.block
    numbers = [box.group for box in block.boxes if box.group is not None]
    share = percent(block.left / block.macs) if block.macs else "0"
    return {
        "name": block.title,
        "layer": block.layer,
        "groups": numbers,
        "macs": f"{row.macs_text} ({share})",
        "full": block.macs,
    }


def _embedded(values: Mapping[str, Any]) -> str:
    """Write JSON that may stand inside a script element."""
    return json.dumps(values, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
