"""`guyot sweep`."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from guyot.app.cli.app import Json, Quiet, app, columns, option, print_json
from guyot.app.cli.options import Trust, configured, takes_settings
from guyot.app.config import GOALS
from guyot.app.printable import printable
from guyot.core.errors import MisconfiguredError

if TYPE_CHECKING:
    from rich.table import Table

_VARY, _RUN = "What to try", "The sweep"

Out = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="Folder of the sweep, new or to be continued."),
]
Config = Annotated[Path | None, option(_RUN, "Settings of all runs from a file in YAML or JSON.")]
_EXAMPLES = {"target": ("0.3,0.5,0.7", "0.2..0.8"), "nu": ("0.1,0.3,1", "0.1..2")}


def _dial(name: str) -> str:
    grid, search = _EXAMPLES.get(name, ("0,0.5,1", "0..1"))
    return f"{grid} for a grid, {search} for a search"


Target = Annotated[str | None, option(_VARY, f"{_dial('target')}.")]
Nu = Annotated[str | None, option(_VARY, f"Instead of target: {_dial('nu')}.")]
Alpha = Annotated[str | None, option(_VARY, f"{_dial('alpha')}.")]
Beta = Annotated[str | None, option(_VARY, f"{_dial('beta')}.")]
Trials = Annotated[int, option(_VARY, "Runs of a search (20).")]
Objective = Annotated[
    str | None,
    option(
        _VARY,
        "Some of accuracy,macs,params,latency (accuracy,macs); the score of a regression is r2, "
        "that of a text bits.",
    ),
]
Workers = Annotated[int, option(_RUN, "Runs at a time (1).")]
Storage = Annotated[
    str | None, option(_RUN, "Optuna storage URL, for several machines (SQLite in the folder).")
]


@app.command()
@takes_settings(leave_out={*GOALS, "alpha", "baseline", "beta", "discovery", "seeds", "slim"})
def sweep(  # noqa: PLR0913 - one parameter per option
    settings: dict[str, Any],
    out: Out,
    target: Target = None,
    nu: Nu = None,
    alpha: Alpha = None,
    beta: Beta = None,
    trials: Trials = 20,
    objective: Objective = None,
    config: Config = None,
    workers: Workers = 1,
    storage: Storage = None,
    trust: Trust = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Find the trade-off between accuracy and size: many runs, one table.

    A grid of values, or a search over ranges. Each run is a folder as guyot
    train writes it. Ctrl-C stops; the same command continues. What is finished
    is never repeated.

    Try: guyot sweep runs/curve --target 0.3,0.5,0.7
    """
    from rich.console import Console

    from guyot.app.cli.interrupt import Interruption
    from guyot.app.sweep import Sweep, run

    typed = {"target": target, "nu": nu, "alpha": alpha, "beta": beta}
    dials = {name: _values(name, text) for name, text in typed.items() if text is not None}
    base = configured(config, settings, trust)
    wanted = Sweep(
        base,
        {name: found for name, found in dials.items() if isinstance(found, list)},
        {name: found for name, found in dials.items() if isinstance(found, tuple)},
        trials,
        tuple(re.split(r"\s*,\s*", objective)) if objective else (),
    )
    console = Console(stderr=json, soft_wrap=True)

    def told(text: str) -> None:
        if not quiet:
            console.print(text, markup=False, highlight=False)

    stop = Interruption()
    try:
        with stop:
            found = run(wanted, out, workers=workers, storage=storage, told=told)
    except KeyboardInterrupt:
        typer.echo("stopped; the same command continues", err=True)
        raise typer.Exit(stop.status) from None
    if json:
        print_json(found)
    else:
        if found["trials"]:
            Console(width=min(80, columns())).print(_table(found))
        for error in dict.fromkeys(found["failed"].values()):
            names = [name for name, reason in found["failed"].items() if reason == error]
            typer.echo(f"error: {', '.join(names)} failed: {printable(error)}", err=True)
    if found["failed"]:
        raise typer.Exit(1)


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


def _table(found: dict[str, Any]) -> "Table":
    """All trials by their first objective; a star marks those that no other beats."""
    from rich import box
    from rich.table import Table

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
    from guyot.core.metric import METRICS
    from guyot.report import count_text

    if name in METRICS:
        return METRICS[name].text(value)

    return f"{value:.3g} ms" if name == "latency" else count_text(round(value))
