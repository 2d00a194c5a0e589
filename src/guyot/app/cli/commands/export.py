"""`guyot export`."""

import dataclasses
import textwrap
from pathlib import Path
from typing import Annotated

import typer

from guyot.app.cli.app import OUTPUT, Json, Quiet, app, columns, option, print_json
from guyot.app.cli.options import Run, Trust

Format = Annotated[
    str,
    option(
        OUTPUT,
        "onnx, pt2 (torch.export) or state-dict.",
        "--format",
        offered=("onnx", "pt2", "state-dict"),
    ),
]
Output = Annotated[
    Path | None, option(OUTPUT, "New file or folder (RUN/model.onnx, model.pt2, state-dict).")
]


@app.command()
def export(
    run: Run,
    format: Format,  # noqa: A002 - the option is called that
    output: Output = None,
    trust: Trust = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Write a run's network in a format that needs no guyot.

    state-dict is a folder with a readable Python module and its weights. What
    is written is compared with the network first, on batches of several
    sizes. ONNX is also timed beside PyTorch, on the CPU.

    Try: guyot export runs/RUN --format onnx
    """
    from guyot.app import running
    from guyot.report import latency_notes, latency_text, machine_text

    delivery = running.export_run(run, format, output, trust=trust)
    if json:
        print_json(dataclasses.asdict(delivery))
        return
    if quiet:
        typer.echo(delivery.output)
        return
    typer.echo(f"{delivery.output}: {delivery.size / 1e3:,.1f} kB")
    typer.echo(f"largest difference from the network's outputs: {delivery.difference:.1e}")
    if delivery.latency:
        names = list(delivery.latency)
        typer.echo(f"\n{'batch':>5}" + "".join(f"  {name:>24}" for name in names))
        for batch in delivery.latency[names[0]]:
            times = (latency_text(delivery.latency[name][batch]) for name in names)
            typer.echo(f"{batch:>5}" + "".join(f"  {time:>24}" for time in times))
        where = machine_text("the CPU", delivery.threads)
        for line in latency_notes(delivery.latency.values(), where):
            typer.echo(textwrap.fill(line, min(80, columns())))
