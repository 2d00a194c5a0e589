"""What plain data may hold: kinds and bounds of numbers, texts, lists and mappings.

JSON has no 1.7 where a count belongs and no `true` for 1, but Python takes both for an integer.
Every kind says in words what is wrong with a value, and where.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from guyot.core.trees import describe


class Schema(Protocol):
    """Stand for what a value may be."""

    def misfit(self, value: Any, path: str) -> str | None:
        """Say what is wrong with a value; None if nothing is.

        Args:
            value: to look at.
            path: where it is, such as "units.conv1[3]".
        """
        ...


def misfit(value: Any, kind: Schema) -> str | None:
    """Say in which respect a value is not of a kind, in words; None if it is.

    Example:
        >>> kind = Fields({"units": ByName(Each(integer(0)))})
        >>> misfit({"units": {"0": [1, 2]}}, kind)
        >>> misfit({"units": {"0": [1, 1.7]}}, kind)
        'units.0[1] is 1.7, expected a whole number of 0 or more'
        >>> misfit({"units": {"0": [True]}}, kind)
        'units.0[0] is True, expected a whole number of 0 or more'
    """
    return kind.misfit(value, "")


def _not(value: Any, path: str, expected: str) -> str:
    return f"{path or 'it'} is {describe(value)}, expected {expected}"


@dataclass(frozen=True)
class Plain:
    """Stand for a value that fits, and say in words which do."""

    fits: Callable[[Any], bool]
    words: str

    def misfit(self, value: Any, path: str) -> str | None:
        """Say what is wrong with a value."""
        return None if self.fits(value) else _not(value, path, self.words)


def integer(low: int = 0, high: int | None = None) -> Plain:
    """Stand for an integer in [low, high]; high None: below 2**53."""
    most = 2**53 if high is None else high
    bounds = f"{low} or more" if high is None else f"{low} to {high}"
    return Plain(lambda v: type(v) is int and low <= v <= most, f"a whole number of {bounds}")


def real(low: float = -math.inf) -> Plain:
    """Stand for a finite number of at least `low`."""

    def fits(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and value >= low

    return Plain(fits, "a number" if low == -math.inf else f"a number of {low:g} or more")


def text(longest: int = 4096) -> Plain:
    """Stand for a text of at most `longest` characters."""
    words = f"a text of at most {longest} characters"
    return Plain(lambda value: isinstance(value, str) and len(value) <= longest, words)


FLAG = Plain(lambda value: isinstance(value, bool), "true or false")


@dataclass(frozen=True)
class Maybe:
    """Stand for nothing, or a value of a kind."""

    kind: Schema

    def misfit(self, value: Any, path: str) -> str | None:
        """Say what is wrong with a value."""
        return None if value is None else self.kind.misfit(value, path)


@dataclass(frozen=True)
class Each:
    """Stand for a list of `least` to `most` values of a kind; `once`: none occurs twice."""

    kind: Schema
    least: int = 0
    most: int = 2**24
    once: bool = False

    def misfit(self, value: Any, path: str) -> str | None:
        """Say what is wrong with a value."""
        if not isinstance(value, list | tuple):
            return _not(value, path, "a list")
        if not self.least <= len(value) <= self.most:
            return _not(value, path, f"a list of {self.least} to {self.most}")
        for place, item in enumerate(value):
            if wrong := self.kind.misfit(item, f"{path}[{place}]"):
                return wrong
        if self.once and len(set(value)) < len(value):
            return f"{path or 'it'} names something twice"
        return None


@dataclass(frozen=True)
class ByName:
    """Stand for a mapping from texts to values of a kind."""

    kind: Schema

    def misfit(self, value: Any, path: str) -> str | None:
        """Say what is wrong with a value."""
        if not isinstance(value, Mapping):
            return _not(value, path, "a mapping")
        for name, item in value.items():
            if not isinstance(name, str):
                return _not(name, f"a name in {path or 'it'}", "a text")
            if wrong := self.kind.misfit(item, f"{path}.{name}" if path else name):
                return wrong
        return None


@dataclass(frozen=True)
class Fields:
    """Stand for a mapping with these names; `others`: also with more."""

    required: Mapping[str, Schema]
    optional: Mapping[str, Schema] = field(default_factory=dict)
    others: bool = False

    def misfit(self, value: Any, path: str) -> str | None:
        """Say what is wrong with a value."""
        if not isinstance(value, Mapping):
            return _not(value, path, "a mapping")
        before = f"{path}." if path else ""
        for name, kind in {**self.optional, **self.required}.items():
            if name in value:
                if wrong := kind.misfit(value[name], f"{before}{name}"):
                    return wrong
            elif name in self.required:
                return f"{before}{name} is missing"
        known = {*self.optional, *self.required}
        if not self.others and (more := [name for name in value if name not in known]):
            return f"{before}{more[0]} is unexpected"
        return None


@dataclass(frozen=True)
class ModelInputs:
    """Stand for described inputs: tensors of bounded size, plain values, lists, mappings.

    A tensor is `{"tensor": [sizes], "dtype": name}`.
    """

    largest: int = 2**28
    deepest: int = 16

    def misfit(self, value: Any, path: str) -> str | None:
        """Say what is wrong with a value."""
        return self._misfit(value, path, self.deepest)

    def _misfit(self, value: Any, path: str, depth: int) -> str | None:
        if not depth:
            return f"{path} lies too deep"
        if isinstance(value, Mapping) and "tensor" in value and "dtype" in value:
            return self._tensor(value, path)
        if isinstance(value, Mapping):
            items = [(f"{path}.{name}" if path else str(name), v) for name, v in value.items()]
        elif isinstance(value, list | tuple):
            items = [(f"{path}[{place}]", item) for place, item in enumerate(value)]
        elif isinstance(value, str | int | float | None):
            return None
        else:
            return _not(value, path, "a tensor's sizes, or plain data")
        found = (self._misfit(item, where, depth - 1) for where, item in items)
        return next(filter(None, found), None)

    def _tensor(self, value: Mapping[str, Any], path: str) -> str | None:
        sizes = Each(integer(0, self.largest), most=16)
        if wrong := Fields({"tensor": sizes, "dtype": text(40)}).misfit(value, path):
            return wrong
        if math.prod(value["tensor"]) > self.largest:
            return f"{path} has {math.prod(value['tensor'])} entries, more than {self.largest}"
        return None
