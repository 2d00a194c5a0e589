"""`guyot evaluate`."""

import textwrap
from typing import Annotated

import typer

from guyot.app.cli.app import Json, Quiet, app, columns, option, print_json
from guyot.app.cli.options import Run, Trust

_WHAT = "What to evaluate"

DataDir = Annotated[
    str | None,
    option(_WHAT, "Folder or file of the data, if it is no longer where it was."),
]


@app.command()
def evaluate(
    run: Run,
    data_dir: DataDir = None,
    trust: Trust = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure a run's network: score on test data, loss, size and latency.

    Data and precision are those of the run.

    Try: guyot evaluate runs/RUN --json
    """
    from guyot.app import running
    from guyot.report import latency_notes, latency_text, machine_text, sample_word

    found = running.evaluate_run(run, data_dir, trust=trust)
    if json:
        print_json(found.to_dict())
        return
    shape = "x".join(str(n) for n in found.image_shape)
    machine = machine_text(found.device, found.threads)
    rows = [
        (f"test {found.metric.name}", found.metric.text(found.score)),
        ("test loss", f"{found.loss:.4f} {found.metric.unit}"),
        *([] if found.deviation is None else [("test RMSE", _figure(found.deviation))]),
        (f"MACs of one {sample_word(found.image_shape)}", f"{found.macs:,}"),
        ("parameters", f"{found.params:,}"),
        *((f"latency, batch {batch}", latency_text(time)) for batch, time in found.latency.items()),
    ]
    if not quiet:
        typer.echo(f"{found.model} of {found.folder} on {found.data}")
        kind = sample_word(found.image_shape)
        typer.echo(f"{found.images:,} {kind}s of {shape}; {machine}\n")
    wide = max(len(name) for name, _ in rows) + 2
    for name, value in rows:
        typer.echo(f"{name:<{wide}}{value}")
    if not quiet:
        for line in latency_notes([found.latency], machine):
            typer.echo(textwrap.fill(line, min(80, columns())))


def _figure(value: float) -> str:
    """Write four digits, or all before the point.

    Example:
        >>> _figure(14243.21), _figure(0.0123456)
        ('14,243', '0.01235')
    """
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
