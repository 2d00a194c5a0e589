"""`guyot evaluate`."""

import dataclasses
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from guyot.app.cli.app import Json, Quiet, app, option, print_json
from guyot.app.cli.options import Trust

_WHAT = "What to evaluate"

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder guyot train wrote.", show_default=False)
]
DataDir = Annotated[
    str | None, option(_WHAT, "Folder with the data, if it is no longer where the run had it.")
]


@app.command()
def evaluate(
    run: Run,
    data_dir: DataDir = None,
    trust: Trust = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure a run's network: test accuracy, loss, size and latency.

    Data and precision are those of the run.

    Try: guyot evaluate runs/RUN --json
    """
    from guyot.app import running
    from guyot.report import latency_notes, latency_text

    found = running.evaluate_run(run, data_dir, trust=trust)
    if json:
        print_json(dataclasses.asdict(found))
        return
    shape = "x".join(str(n) for n in found.image_shape)
    threads = f"{found.threads} thread{'s' * (found.threads != 1)}"
    rows = [
        ("test accuracy", f"{found.accuracy:.2%}"),
        ("test loss", f"{found.loss:.4f} nats"),
        ("MACs of one image", f"{found.macs:,}"),
        ("parameters", f"{found.params:,}"),
        *((f"latency, batch {batch}", latency_text(time)) for batch, time in found.latency.items()),
    ]
    if not quiet:
        typer.echo(f"{found.model} of {found.folder} on {found.data}")
        typer.echo(f"{found.images:,} images of {shape}; {found.device}, {threads}\n")
    for name, value in rows:
        typer.echo(f"{name:<20}{value}")
    if not quiet:
        for line in latency_notes([found.latency], f"{found.device}, {threads}"):
            typer.echo(textwrap.fill(line, 80))
