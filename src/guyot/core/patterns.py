"""Names chosen by glob patterns (`fnmatch`); a pattern that chooses nothing is a mistake.

`*` stands for any letters, dots included, `?` for one, `[ab]` for one of a few.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from guyot.core.condition import Condition, is_whole, require
from guyot.core.errors import MisconfiguredError

Patterns = str | Sequence[str]
"""One pattern, or several."""


def _is_list(value: Any) -> bool:
    return isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping)


def _is_multiple(value: Any) -> bool:
    return is_whole(value) and value >= 1


def _are_patterns(value: Any) -> bool:
    return isinstance(value, str) or (
        _is_list(value) and all(isinstance(pattern, str) for pattern in value)
    )


ANY_PATTERNS = Condition(
    _are_patterns, "give a pattern of names, such as 'head*', or a list of patterns"
)
SETS_OF_PATTERNS = Condition(
    lambda value: _is_list(value) and all(map(_are_patterns, value)),
    "give a list of sets of patterns, such as [('blocks.*.fc1', 'blocks.*.fc2')]",
)
MULTIPLES = Condition(
    lambda value: (
        all(isinstance(name, str) and _is_multiple(number) for name, number in value.items())
        if isinstance(value, Mapping)
        else _is_multiple(value)
    ),
    "a width comes in multiples of 1 or more: give a whole number, such as 8, or one for every "
    "pattern of names, such as {'*': 8}",
)
"""What settings that choose names must be."""


def chosen(setting: str, patterns: Patterns, names: Iterable[str], kind: str) -> list[str]:
    """Return the names that at least one pattern matches, in the order of `names`.

    Args:
        setting: what the user calls the patterns, for the error.
        patterns: one or several.
        names: what there is.
        kind: what the names are names of, for the error.

    Raises:
        MisconfiguredError: a pattern matches none of them (the error names the closest), or is no
            text.

    Example:
        >>> chosen("freeze", "layer?.*.conv1", ["conv1", "layer1.0.conv1", "layer1.0.bn1"], "group")
        ['layer1.0.conv1']
        >>> chosen("freeze", ["conv1", "cone"], ["conv1", "fc"], "group")
        Traceback (most recent call last):
        guyot.core.errors.MisconfiguredError: freeze='cone' matches no group; close is conv1
    """
    require(setting, patterns, ANY_PATTERNS)
    known = list(dict.fromkeys(names))
    listed = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in listed:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise MisconfiguredError(
                f"{setting}={pattern!r} matches no {kind}; {_near(pattern, known)}"
            )
    return [name for name in known if any(fnmatchcase(name, pattern) for pattern in listed)]


def _near(pattern: str, names: Sequence[str]) -> str:
    """Say which names are close to a pattern, or else the first of those there are."""
    plain = pattern.replace("*", "")
    close = difflib.get_close_matches(plain, names, n=3, cutoff=0.5)
    close = close or [name for name in names if plain and plain in name][:3]
    if close:
        return f"close {'is' if len(close) == 1 else 'are'} {', '.join(close)}"
    if not names:
        return "there is none"
    more = f", ... ({len(names)} in all)" if len(names) > 5 else ""
    return f"there are {', '.join(names[:5])}{more}"
