"""The program itself, and what all of its commands share: errors, notes, options, JSON."""

import json
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from guyot.app.printable import printable
from guyot.core.errors import GuyotError, GuyotWarning, MisconfiguredError

MISUSED = 2
INTERRUPTED = 130


_UsageError: type[Exception] = typer.BadParameter.mro()[1]  # typer may bring its own click


class Program(TyperGroup):
    """Run a command: every mistake becomes one line, a `GuyotWarning` a note.

    Both go to stderr, so that stdout holds nothing but the result.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before the command."""
        if not args:
            return super().parse_args(ctx, args)  # no_args_is_help
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            raise _refusal(f"{_usage(error)}; see guyot --help") from error

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", GuyotWarning)
                warnings.showwarning = _note
                return super().invoke(ctx)
        except _UsageError as error:
            name = ctx.invoked_subcommand
            command = f"guyot {name}" if name in self.commands else "guyot"
            said = _usage(error)
            joint = " See" if said.endswith("?") else "; see"
            raise _refusal(f"{said}{joint} {command} --help") from error
        except GuyotError as error:
            command = self.commands.get(ctx.invoked_subcommand or "")
            options = (
                [p for p in command.params if p.param_type_name == "option"] if command else []
            )
            names = {str(p.name): bool(getattr(p, "is_flag", False)) for p in options}
            told = error.args if isinstance(error, MisconfiguredError) else [str(error)]
            raise _refusal(*(as_options(str(text), names) for text in told)) from error


def _usage(error: Any) -> str:
    """Say in one line what the parser of the command line complains about."""
    said = " ".join(error.format_message().split()).rstrip(".")
    if close := getattr(error, "possibilities", None):
        return f"{said.partition(' (Possible')[0]}, did you mean {close[0]}?"
    return said


def _refusal(*mistakes: str) -> typer.Exit:
    for mistake in mistakes:
        typer.echo(f"error: {printable(mistake)}", err=True)
    return typer.Exit(MISUSED)


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # with it comes a parser of e-mails

        typer.echo(f"guyot {version('guyot')} (torch {version('torch')})")
        raise typer.Exit


@app.callback()
def guyot(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train a network that finds its own structure while it learns."""


def option(panel: str, text: str, *names: str, offered: Sequence[str] = (), **more: Any) -> Any:
    """Make an option whose help is `text`, default included, in the panel of that title.

    The shell completes what is `offered`; which values are right is for the command to say.
    """

    def begun(incomplete: str) -> list[str]:
        return [value for value in offered if value.startswith(incomplete)]

    return typer.Option(
        *names,
        help=text,
        rich_help_panel=panel,
        show_default=False,
        autocompletion=begun if offered else None,
        **more,
    )


def columns() -> int:
    """Return the width of the terminal; 80 where there is none."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


OUTPUT = "Output"

Quiet = Annotated[bool, option(OUTPUT, "Print only the result.", "--quiet", "-q")]
Json = Annotated[bool, option(OUTPUT, "Print the result as JSON, all else to stderr.", "--json")]


def print_json(values: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout; NaN and inf become null, as JSON has no word for them."""
    from guyot.core.trees import finite

    typer.echo(json.dumps(finite(values), indent=1, allow_nan=False))


def _note(message: object, *_: object, **__: object) -> None:
    typer.echo(f"note: {printable(str(message))}", err=True)


def as_options(message: str, names: Mapping[str, bool]) -> str:
    """Name settings as they are typed.

    Args:
        message: of an error, which names settings as Python does.
        names: of the command's options, and whether they are flags.

    Example:
        >>> names = {"batch_size": False, "data_dir": False, "discovery": True}
        >>> as_options("batch_size=0: give at least 1; or set data_dir", names)
        '--batch-size=0: give at least 1; or set --data-dir'
        >>> as_options("discovery=False has no effect", names)
        '--no-discovery has no effect'
    """
    for flag in (name for name, is_flag in names.items() if is_flag):
        typed = flag.replace("_", "-")
        message = message.replace(f"{flag}=True", f"--{typed}")
        message = message.replace(f"{flag}=False", f"--no-{typed}")
    known = sorted(names, key=len, reverse=True)
    typed = "|".join(f"{name}(?==)" for name in known)
    whole = "|".join(rf"{name}\b" for name in known if "_" in name)
    pattern = rf"(?<![^\s(])(?:{'|'.join(filter(None, (typed, whole)))})"
    return re.sub(pattern, lambda found: "--" + found[0].replace("_", "-"), message)
