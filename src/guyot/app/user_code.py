"""Functions of the user's, by name: `package.module:NAME` or `path/to/file.py:NAME`.

The caller has the name from the command line, or has refused it where a file of somebody else gave
it.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from guyot.core.condition import did_you_mean
from guyot.core.errors import MisconfiguredError, first_line
from guyot.core.packages import module_from

CALLS_CODE = ("model", "data", "loss", "optimizer")
"""Settings that may name a function."""


def is_function(name: str) -> bool:
    """Say whether a value of `data`, `loss` or `optimizer` names a function.

    Example:
        >>> [is_function(name) for name in ("my.py:make", "package.data:make", "imagefolder:a")]
        [True, True, False]
    """
    place, _, attribute = name.rpartition(":")
    return "." in place and attribute.isidentifier()


def function_of(name: str, setting: str, gives: str) -> Callable[..., Any]:
    """Import a function.

    Args:
        name: of it.
        setting: that named it, for the error.
        gives: what it should return, for the error.

    Raises:
        MisconfiguredError: it is not there, or its module needs what is not there.
    """
    place, _, attribute = name.rpartition(":")
    module = _imported(place, f"{setting}={name!r}")
    function = getattr(module, attribute, None)
    if not callable(function):
        raise MisconfiguredError(
            f"{setting}={name!r}: {place} has no function {attribute!r}"
            f"{did_you_mean(attribute, dir(module))}; give one that returns {gives}"
        )
    return function


def accepted(function: Callable[..., Any], offered: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments that a function has parameters for.

    Example:
        >>> accepted(lambda lr: lr, {"lr": 1, "weight_decay": 2})
        {'lr': 1}
    """
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in offered.items() if name in parameters}


def _imported(place: str, given: str) -> Any:
    """Import a module by its dotted name, also in the working directory, or a file."""
    path = Path(place).absolute()
    folder = str(path.parent if place.endswith(".py") else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as Python does for the script that it runs
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        return _of_file(path)
    except (ImportError, OSError, SyntaxError) as error:
        raise MisconfiguredError(
            f"{given}: {place} cannot be imported ({first_line(error)}); give "
            "package.module:NAME or path/to/file.py:NAME, seen from the working directory"
        ) from error


def _of_file(path: Path) -> Any:
    title = f"guyot_user_{path.stem}"
    known = sys.modules.get(title)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    return module_from(path, title, known=True)  # what the file defines looks for its module there
