"""Options that are made from the settings of a run."""

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Annotated, Any

import typer

from guyot.app.cli.app import option
from guyot.app.config import GOALS, RunConfig
from guyot.app.factories import check_trusted
from guyot.app.settings import Setting, read_settings, settings_of

SETTINGS = settings_of(RunConfig)

Run = Annotated[
    Path, typer.Argument(metavar="RUN", help="Folder guyot train wrote.", show_default=False)
]
Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN", help="Folders of guyot train or guyot sweep.", show_default=False
    ),
]
Trust = Annotated[
    bool,
    option("Files of others", "Run the code of a model that a file names as its own.", "--trust"),
]


def takes_settings(
    *, leave_out: Collection[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command one option per setting of a run, before its own.

    The command gets those that were typed as its argument `settings`, values by name.

    Args:
        leave_out: names of settings that are no options of the command.
    """
    known = {name: found for name, found in SETTINGS.items() if name not in leave_out}
    off = {name for name, found in known.items() if found.default is True}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            typed = {name: given.pop(name) for name in known}
            settings = {name: value for name, value in typed.items() if value is not None}
            for name in set(settings) & off:
                settings[name] = not settings[name]
            command(settings=settings, **given)

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
        kind = inspect.Parameter.KEYWORD_ONLY
        made = [
            inspect.Parameter(name, kind, default=None, annotation=option_of(found))
            for name, found in known.items()
        ]
        signature = inspect.Signature([*made, *(p.replace(kind=kind) for p in own)])
        run.__signature__ = signature  # type: ignore[attr-defined] - inspect reads it
        run.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def option_of(setting: Setting) -> Any:
    """Make the option of a setting, as an annotation whose default is None."""
    name = setting.name.replace("_", "-")
    told: dict[str, Any] = {"offered": setting.offered or setting.choices}
    if setting.kind is bool:
        names = f"--no-{name}" if setting.default else f"--{name}/--no-{name}"
        return Annotated[bool | None, option(setting.panel, setting.help, names, **told)]
    if setting.many and setting.kind is str:
        return Annotated[list[str] | None, option(setting.panel, setting.help, **told)]
    kind = f"<{setting.kind.__name__}{',...' if setting.many else ''}>"
    told |= {"parser": setting.read, "metavar": kind}
    return Annotated[str | None, option(setting.panel, setting.help, **told)]


def configured(file: Path | None, settings: dict[str, Any], trust: bool) -> RunConfig:
    """Return the settings of a file if there is one, overruled by those that were typed.

    Args:
        file: of settings.
        settings: that were typed.
        trust: the file may name functions.
    """
    if file is None:
        return RunConfig.with_defaults(settings)
    found = read_settings(file, RunConfig)
    own = {name: value for name, value in found.items() if name not in settings}
    check_trusted(file, own, trust)
    if set(GOALS) & settings.keys() or settings.get("discovery") is False:
        found = {name: value for name, value in found.items() if name not in (*GOALS, "baseline")}
    return RunConfig.with_defaults(found | settings)
