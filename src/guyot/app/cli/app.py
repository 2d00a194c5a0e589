"""The program itself, and what all of its commands share: errors, notes, options, JSON."""

import importlib.metadata
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import torch
import typer
from typer.core import TyperGroup

from guyot.core.errors import GuyotError, GuyotWarning
from guyot.core.trees import finite

MISUSED = 2
INTERRUPTED = 130


_UsageError: type[Exception] = typer.BadParameter.mro()[1]  # typer may bring its own click


class Program(TyperGroup):
    """Runs a command: what is wrong becomes one paragraph, a `GuyotWarning` a note.

    Both go to stderr, so that stdout holds nothing but the result.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read what stands before the command."""
        if not args:
            return super().parse_args(ctx, args)  # no_args_is_help
        try:
            return super().parse_args(ctx, args)
        except _UsageError as error:
            raise _refusal(_usage(error), "guyot --help") from error

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always", GuyotWarning)
                warnings.showwarning = _note
                return super().invoke(ctx)
        except _UsageError as error:
            name = ctx.invoked_subcommand
            known = f"guyot {name} --help" if name in self.commands else "guyot --help"
            raise _refusal(_usage(error), known) from error
        except GuyotError as error:
            command = self.commands.get(ctx.invoked_subcommand or "")
            options = (
                [p for p in command.params if p.param_type_name == "option"] if command else []
            )
            names = [option.name for option in options if option.name]
            raise _refusal(as_options(str(error), names)) from error


def _usage(error: Any) -> str:
    """What the parser of the command line complains about, in one line."""
    return " ".join(error.format_message().split()).rstrip(".")


def _refusal(reason: str, advice: str = "") -> typer.Exit:
    text = f"{reason}{f'; see {advice}' if advice else ''}"
    typer.echo(f"error: {printable(text)}", err=True)
    return typer.Exit(MISUSED)


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"guyot {importlib.metadata.version('guyot')} (torch {torch.__version__})")
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


def option(panel: str, text: str, *names: str, choices: Sequence[str] = ()) -> Any:
    """An option whose help is `text`, default included, in the panel of that title.

    The shell completes `choices`; whether a value is one of them is for the command to say.
    """

    def begun(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return typer.Option(
        *names,
        help=text,
        rich_help_panel=panel,
        show_default=False,
        autocompletion=begun if choices else None,
    )


OUTPUT = "Output"

Quiet = Annotated[bool, option(OUTPUT, "Print only the result.", "--quiet", "-q")]
Json = Annotated[bool, option(OUTPUT, "Print the result as JSON, all else to stderr.", "--json")]


def print_json(values: Mapping[str, Any]) -> None:
    """One JSON object on stdout; NaN and inf become null, which is all JSON has for them."""
    typer.echo(json.dumps(finite(values), indent=1, allow_nan=False))


def _note(message: object, *_: object, **__: object) -> None:
    typer.echo(f"note: {printable(str(message))}", err=True)


def printable(text: str) -> str:
    """One paragraph, whatever names of files and settings hold.

    Example:
        >>> printable("no such file: a" + chr(7) + "b") == "no such file: a" + chr(92) + "x07b"
        True
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def as_options(message: str, names: Iterable[str]) -> str:
    """Settings as they are typed.

    Args:
        message: of an error, which names settings as Python does.
        names: of the command's parameters.

    Example:
        >>> as_options("batch_size=0: give at least 1; or set data_dir", ["batch_size", "data_dir"])
        '--batch-size=0: give at least 1; or set --data-dir'
    """
    names = sorted(names, key=len, reverse=True)
    typed = "|".join(f"{name}(?==)" for name in names)
    whole = "|".join(rf"{name}\b" for name in names if "_" in name)
    pattern = rf"(?<![^\s(])(?:{'|'.join(filter(None, (typed, whole)))})"
    return re.sub(pattern, lambda found: "--" + found[0].replace("_", "-"), message)
