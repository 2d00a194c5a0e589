"""Names of the user's own functions: calling one runs code, so a file may not name one unasked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from guyot.app.user_code import CALLS_CODE, is_function
from guyot.core.errors import MisconfiguredError

ZOOS = ("guyot", "torchvision", "timm")
"""Where networks come from whose names call no code of the user's."""


def is_factory(model: str) -> bool:
    """Tell whether the name of a network is that of a function.

    Example:
        >>> [is_factory(name) for name in ("resnet20", "timm:resnet50", "my.module:f", "a.py:f")]
        [False, False, True, True]
    """
    source, _, key = model.partition(":")
    return bool(key) and source not in ZOOS


def check_trusted(file: Path, values: Mapping[str, Any], trust: bool) -> None:
    """Refuse a file that names a function, unless the user trusts it.

    Args:
        file: that was read.
        values: what it holds.
        trust: the user said so.

    Raises:
        MisconfiguredError: names the function and the way out.
    """
    for setting in CALLS_CODE:
        name = values.get(setting)
        calls = is_factory if setting == "model" else is_function
        if not trust and isinstance(name, str) and calls(name):
            raise MisconfiguredError(
                f"{file} names {setting}={name!r}, a function whose code would run: read that "
                "code, and give trust=True if you trust it and the file"
            )
