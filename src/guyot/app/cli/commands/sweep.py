"""`guyot sweep`."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from guyot.app.cli.app import INTERRUPTED, Json, Quiet, app, option, print_json, printable
from guyot.app.config import RunConfig
from guyot.app.sweep import OBJECTIVES, Sweep, run
from guyot.core.errors import MisconfiguredError
from guyot.core.storage import read_json
from guyot.planning.config import DIALS
from guyot.report import count_text

_WHAT, _VARY, _RUN = "What to train", "What to try", "The sweep"

Out = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="Folder of the sweep, new or to go on with."),
]
Config = Annotated[Path | None, option(_WHAT, "A config.json with settings for all runs.")]
Data = Annotated[str | None, option(_WHAT, f"As in guyot train ({RunConfig.data}).")]
Model = Annotated[str | None, option(_WHAT, "As in guyot train.")]
DataDir = Annotated[str | None, option(_WHAT, "As in guyot train.")]
Epochs = Annotated[int | None, option(_WHAT, "Passes over the training images.")]
BatchSize = Annotated[int | None, option(_WHAT, "Images per step.")]
Seed = Annotated[int | None, option(_WHAT, "Decides all that is random (0).")]
Device = Annotated[str | None, option(_WHAT, "cpu, cuda, ... (a GPU if there is one).")]
Threads = Annotated[int | None, option(_WHAT, "Of the CPU, for each run.")]
RoundTo = Annotated[
    int | None, option(_WHAT, "Widths are multiples of it (measured, in every run anew).")
]
Cost = Annotated[
    str | None, option(_WHAT, "As in guyot train: latency, or macs=1,latency=3 and so on.")
]
LatencyTable = Annotated[
    str | None, option(_WHAT, "File of guyot profile, for a cost with latency.")
]
_EXAMPLES = {"target": ("0.3,0.5,0.7", "0.2..0.8"), "nu": ("0.1,0.3,1", "0.1..2")}


def _dial(name: str) -> str:
    grid, search = _EXAMPLES.get(name, ("0,0.5,1", "0..1"))
    return f"{grid} for a grid, {search} for a search"


Target = Annotated[str | None, option(_VARY, f"{_dial('target')}.")]
Nu = Annotated[str | None, option(_VARY, f"Instead of target: {_dial('nu')}.")]
Alpha = Annotated[str | None, option(_VARY, f"{_dial('alpha')}.")]
Beta = Annotated[str | None, option(_VARY, f"{_dial('beta')}.")]
Trials = Annotated[int, option(_VARY, "Runs of a search (20).")]
Objective = Annotated[str, option(_VARY, f"Some of {','.join(OBJECTIVES)} (accuracy,macs).")]
Workers = Annotated[int, option(_RUN, "Runs at a time (1).")]
Storage = Annotated[
    str | None, option(_RUN, "Optuna storage URL, for several machines (SQLite in the folder).")
]


@app.command()
def sweep(  # noqa: PLR0913 - one parameter per option
    out: Out,
    config: Config = None,
    data: Data = None,
    model: Model = None,
    data_dir: DataDir = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    seed: Seed = None,
    device: Device = None,
    threads: Threads = None,
    round_to: RoundTo = None,
    cost: Cost = None,
    latency_table: LatencyTable = None,
    target: Target = None,
    nu: Nu = None,
    alpha: Alpha = None,
    beta: Beta = None,
    trials: Trials = 20,
    objective: Objective = "accuracy,macs",
    workers: Workers = 1,
    storage: Storage = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Find the trade-off between accuracy and size: many runs, one table.

    A grid of values, or a search over ranges. Each run is a folder as guyot
    train writes it. Ctrl-C stops; the same command goes on. What is finished
    is never repeated.

    Try: guyot sweep runs/curve --target 0.3,0.5,0.7
    """
    given = locals()
    names = "data model data_dir epochs batch_size seed device threads round_to cost latency_table"
    shared = {name: given[name] for name in names.split() if given[name] is not None}
    dials = {name: _values(name, given[name]) for name in DIALS if given[name] is not None}
    ranges = {name: found for name, found in dials.items() if isinstance(found, tuple)}
    grid = {name: found for name, found in dials.items() if isinstance(found, list)}
    wanted = Sweep(
        _base(config, shared), grid, ranges, trials, tuple(re.split(r"\s*,\s*", objective))
    )
    console = Console(stderr=json, soft_wrap=True)

    def told(text: str) -> None:
        if not quiet:
            console.print(text, markup=False, highlight=False)

    try:
        found = run(wanted, out, workers=workers, storage=storage, told=told)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command goes on", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print_json(found)
    else:
        if found["trials"]:
            Console(width=80).print(_table(found))
        for error in dict.fromkeys(found["failed"].values()):
            names = [name for name, reason in found["failed"].items() if reason == error]
            typer.echo(f"error: {', '.join(names)} failed: {printable(error)}", err=True)
    if found["failed"]:
        raise typer.Exit(1)


def _base(file: Path | None, shared: dict[str, Any]) -> RunConfig:
    if file is None:
        return RunConfig.of(**{"data": RunConfig.data, **shared})
    return RunConfig.from_dict(RunConfig.from_dict(read_json(file)).to_dict() | shared)


def _values(name: str, text: str) -> list[float] | tuple[float, float]:
    """A list of values, or a range.

    Example:
        >>> _values("nu", "0.1,1"), _values("nu", "0.1..2")
        ([0.1, 1.0], (0.1, 2.0))
    """
    try:
        if ".." in text:
            low, high = text.split("..")
            return float(low), float(high)
        return [float(value) for value in text.split(",")]
    except ValueError as error:
        raise MisconfiguredError(f"{name}={text!r}: give {_dial(name)}") from error


def _table(found: dict[str, Any]) -> Table:
    """All trials by their first objective; a star marks those that no other beats."""
    names: list[str] = found["objectives"]
    trials = sorted(found["trials"], key=lambda trial: trial[names[0]], reverse=True)
    table = Table(box=box.SIMPLE, caption="* no other is better in everything")
    table.add_column("")
    for name in (*(trials[0]["dials"] if trials else ()), *names):
        table.add_column(name, justify="right")
    table.add_column("run")
    for trial in trials:
        dials = [f"{value:.4g}" for value in trial["dials"].values()]
        values = [_figure(name, trial[name]) for name in names]
        table.add_row("*" * trial["pareto"], *dials, *values, trial["name"])
    return table


def _figure(name: str, value: float) -> str:
    if name == "accuracy":
        return f"{value:.2%}"
    return f"{value:.3g} ms" if name == "latency" else count_text(round(value))
