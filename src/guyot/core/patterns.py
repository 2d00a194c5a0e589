"""Names chosen by glob patterns (`fnmatch`); a pattern that chooses nothing is a mistake.

`*` stands for any letters, dots included, `?` for one, `[ab]` for one of a few.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from guyot.core.errors import MisconfiguredError

Patterns = str | Sequence[str]
"""One pattern, or several."""


def chosen(setting: str, patterns: Patterns, names: Iterable[str], kind: str) -> list[str]:
    """Return the names that at least one pattern matches, in the order of `names`.

    Args:
        setting: what the user calls the patterns, for the error.
        patterns: one or several.
        names: what there is.
        kind: what the names are names of, for the error.

    Raises:
        MisconfiguredError: a pattern matches none of them; it names the closest.

    Example:
        >>> chosen("freeze", "layer?.*.conv1", ["conv1", "layer1.0.conv1", "layer1.0.bn1"], "group")
        ['layer1.0.conv1']
        >>> chosen("freeze", ["conv1", "cone"], ["conv1", "fc"], "group")
        Traceback (most recent call last):
        guyot.core.errors.MisconfiguredError: freeze='cone' matches no group; close is conv1
    """
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
