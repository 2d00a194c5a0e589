"""Packages that may be missing, and modules that are read from a file."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Generator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from guyot.core.errors import MisconfiguredError


@contextlib.contextmanager
def needed(by: str, extra: str, instead: str = "") -> Generator[None]:
    """Say which extra to install where an import inside fails.

    Args:
        by: what needs the package, with its verb.
        extra: of guyot that brings the package.
        instead: another way out.

    Raises:
        MisconfiguredError: a package is missing.

    Example:
        >>> with needed("a drawing needs", "report"):
        ...     import no_such_package
        Traceback (most recent call last):
        guyot.core.errors.MisconfiguredError: a drawing needs the package 'no_such_package', which
        is not installed: pip install 'guyot[report]'
    """
    try:
        yield
    except ImportError as error:
        raise MisconfiguredError(
            f"{by} the package {error.name!r}, which is not installed: "
            f"pip install 'guyot[{extra}]'{instead}"
        ) from error


class _Source(SourceFileLoader):
    """Leaves no `__pycache__` beside the file."""

    def set_data(self, *_: Any, **__: Any) -> None:
        pass


def module_from(file: Path, name: str, *, known: bool = False) -> ModuleType:
    """Run the code in a file as a module. Nothing is written beside the file.

    Args:
        file: of Python code.
        name: of the module.
        known: `sys.modules` has it by its name, also while it runs.
    """
    spec = importlib.util.spec_from_file_location(name, file, loader=_Source(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if known:
        sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module
