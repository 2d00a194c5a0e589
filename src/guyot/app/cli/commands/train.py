"""`guyot train`."""

import os
import shlex
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from guyot.app.cli.app import Json, Quiet, app, columns, option, print_json
from guyot.app.cli.options import Trust, configured, takes_settings
from guyot.app.config import TIMEOUT, RunConfig
from guyot.core.errors import MisconfiguredError

_RUN, _SAVE = "The run", "Checkpoints"

Config = Annotated[
    Path | None,
    option(_RUN, "Settings from a file in YAML or JSON, as FOLDER/config.json of a run."),
]
Out = Annotated[Path | None, option(_RUN, "New folder for everything (runs/NAME-TIME).")]
Resume = Annotated[
    Path | None, option(_SAVE, "Continue the run in this folder, or from this checkpoint.")
]
Timeout = Annotated[
    float, option(_RUN, f"Seconds that several processes wait for one another ({TIMEOUT:g}).")
]
TensorBoard = Annotated[
    bool, option(_RUN, "Write an event file, too, in FOLDER/tensorboard.", "--tensorboard")
]


@app.command()
@takes_settings()
def train(  # noqa: PLR0913 - one parameter per option
    settings: dict[str, Any],
    config: Config = None,
    out: Out = None,
    resume: Resume = None,
    timeout: Timeout = TIMEOUT,
    tensorboard: TensorBoard = False,
    trust: Trust = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a network, let it find its structure, and write a run folder.

    The folder holds the configuration, a line per epoch, checkpoints, the
    smaller network, its structure, and the figures before and after. Ctrl-C
    and SIGTERM end the run after a step and keep what there is; --resume
    continues it, and a run that was killed. Defaults are in brackets.

    Try: guyot train --data digits
    """
    if resume is not None:
        own = {"config": config, "out": out, "tensorboard": tensorboard or None}
        _check_alone(resume, settings | own)
        wanted, folder = None, resume
    else:
        wanted = configured(config, settings, trust)
        folder = out or _default_folder(wanted)
    _hello(quiet or json)
    from guyot.app import running

    kind = running.several_of(running.raw_config(folder) if wanted is None else vars(wanted))
    if kind is not None:

        def start(watcher: running.Watcher, stop: Callable[[], bool]) -> Any:
            runs = kind(folder, watcher, stop, tensorboard, timeout, trust)
            return runs.resume() if wanted is None else runs.train(wanted)

    elif wanted is None:
        start = partial(running.resume, folder, timeout=timeout, trust=trust)
    else:
        start = partial(running.train, wanted, folder, tensorboard=tensorboard, timeout=timeout)
    _run(folder, start, quiet, json)


def _hello(quiet: bool) -> None:
    """Say that something happens: it takes seconds until PyTorch and the data are there."""
    if not quiet and os.environ.get("RANK", "0") == "0":
        typer.echo("loading PyTorch, data and network ...")


def _check_alone(run: Path, given: dict[str, Any]) -> None:
    """Refuse settings beside --resume: they are those of the run."""
    if extra := [name for name, value in given.items() if value is not None]:
        raise MisconfiguredError(
            *(
                f"{name}={given[name]} has no effect with resume={run}, since a run continues with "
                f"its own settings: leave it out, or start a new one with config={run}/config.json"
                for name in extra
            )
        )


def _run(folder: Path, start: Callable[..., Any], quiet: bool, json: bool) -> None:
    """Run, print what came out, and leave with the right exit code."""
    from rich.console import Console

    from guyot import report
    from guyot.app.cli.display import Display
    from guyot.app.cli.interrupt import Interruption
    from guyot.app.launch import launched

    first = launched()[0] == 0
    console, quiet = Console(stderr=json), quiet or not first

    def asked() -> None:
        display.say("stopping after this step; Ctrl-C again to abort")

    stop = Interruption(asked)
    began = partial(setattr, stop, "armed", True)
    display = Display(console, began, quiet=quiet, narrow=columns() < 76)
    more = f"guyot train --resume {folder} continues it"
    try:
        with stop, display:
            outcome = start(watcher=display, stop=stop)
    except KeyboardInterrupt:
        left = f"{folder} is incomplete; {more}" if stop.armed else "nothing was written"
        typer.echo(f"aborted: {left}", err=True)
        raise typer.Exit(stop.status) from None
    if isinstance(outcome, report.Outcome):
        interrupted, values = outcome.interrupted is not None, report.to_dict(outcome)
        lines = report.lines(outcome, columns())
    elif isinstance(outcome, bool):
        interrupted, runs = not outcome, report.read_runs([folder])
        values = {
            "status": "finished" if outcome else "interrupted",
            "runs": [one.to_dict() for one in report.compare(runs)],
        }
        lines = report.compare_lines(runs, width=columns())
    else:
        interrupted, values = outcome["status"] != "finished", outcome
        lines = report.member_lines(outcome["members"], columns())
    if json and first:
        print_json({"folder": str(folder), **values})
    elif first:
        typer.echo("\n".join(["", *lines, "", f"Everything is in {folder}"]))
        typer.echo("\n".join([more] if interrupted else _next(folder, outcome)))
    if interrupted:
        raise typer.Exit(stop.status)


def _next(folder: Path, outcome: Any) -> list[str]:
    """Return what to do with a run that is finished: three commands."""
    network = next(iter(sorted(folder.glob("seed-*"))), folder)
    if isinstance(outcome, dict):  # a family: its smallest member
        network = folder / f"{outcome['targets'][-1]:g}"
    where, found = shlex.quote(str(folder)), shlex.quote(str(network))
    commands = {
        f"guyot report {where}": "what happened, on a page",
        f"guyot evaluate {found}": "its score and latency again",
        f"guyot export {found} --format onnx": "a file for other programs",
    }
    return ["Next:", *(f"  {command}\n      {what}" for command, what in commands.items())]


def _default_folder(config: RunConfig) -> Path:
    """A folder that does not exist yet."""
    stem = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    folders = [Path("runs") / name for name in names]
    return next((folder for folder in folders if not folder.exists()), folders[-1])
