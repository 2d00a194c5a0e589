"""`guyot profile`."""

from pathlib import Path
from typing import Annotated

import typer

from guyot.app.cli.app import Json, Quiet, app, columns, option, print_json

_WHAT, _HOW = "What to measure", "How"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="resnet56, digits, a torchvision or timm name, or package.module:factory.",
        show_default=False,
    ),
]
Output = Annotated[Path, option(_HOW, "File to write (table.json).")]
InputSize = Annotated[
    str | None, option(_WHAT, "224, or 3x224x224 (what the network was made for).")
]
Classes = Annotated[int, option(_WHAT, "Of the classifier (10).")]
Batch = Annotated[int, option(_WHAT, "Images per forward pass (1).")]
Measurements = Annotated[
    Path | None, option(_WHAT, "JSON with times measured before; nothing is measured.")
]
Device = Annotated[str, option(_HOW, "cpu, cuda, cuda:1, ... (cpu).")]
Threads = Annotated[int | None, option(_HOW, "Of the CPU (all cores).")]
Seconds = Annotated[float, option(_HOW, "About how long to measure (20).")]


@app.command()
def profile(  # noqa: PLR0913 - one parameter per option
    model: Model,
    input_size: InputSize = None,
    classes: Classes = 10,
    batch: Batch = 1,
    measurements: Measurements = None,
    device: Device = "cpu",
    threads: Threads = None,
    seconds: Seconds = 20.0,
    output: Output = Path("table.json"),
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure what each operator takes at several widths: a latency table.

    The table turns latency into a cost that guyot train can budget. How far
    predicted and measured latency differ is printed with it.

    Try: guyot profile resnet56 --threads 1 --output table.json
    """
    import torch

    from guyot.app import running

    before = torch.get_num_threads()
    try:
        found = running.profile_model(
            model,
            input_size,
            classes=classes,
            batch=batch,
            device=device,
            threads=threads,
            seconds=seconds,
            measurements=measurements,
            output=output,
        )
    finally:
        torch.set_num_threads(before)
    if json:
        print_json(running.profile_summary(found, output))
    else:
        typer.echo(
            str(output) if quiet else "\n".join(running.profile_lines(found, output, columns()))
        )
