"""Warnings that point at the user's program; needs no torch."""

from __future__ import annotations

import inspect
import warnings

from guyot.core.errors import GuyotWarning


def warn(text: str) -> None:
    """Give a `GuyotWarning` at the line outside guyot that led to it, however deep the call is."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "guyot":
        frame, level = frame.f_back, level + 1
    warnings.warn(text, GuyotWarning, stacklevel=level + 1)
