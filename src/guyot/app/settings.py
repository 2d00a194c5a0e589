"""A setting: one field of a frozen dataclass that says all there is to say about it.

The type of the field says which values there are, its metadata hold the help text, the part of the
help in which it stands, and what its values must satisfy. The command line, files in JSON and
YAML, and the checks of the dataclass are all made from that.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guyot.core.condition import Condition, did_you_mean
from guyot.core.errors import MisconfiguredError
from guyot.core.packages import needed

_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_KINDS = {str: (str,), int: (int,), float: (int, float), bool: (bool,)}
_FILE_LIMIT = 2**20
_EXAMPLE = '{"data": "digits", "target": 0.5}'


AT_LEAST_1 = Condition(lambda value: value >= 1, "give at least 1")
NOT_NEGATIVE = Condition(lambda value: 0 <= value < math.inf, "give 0 or more")
BELOW_1 = Condition(lambda value: 0 <= value < 1, "give a value in [0, 1)")
SHARE = Condition(lambda value: 0 <= value <= 1, "give a share from 0 to 1")
POSITIVE_RATE = Condition(
    lambda value: 0 < value < math.inf, "give a positive learning rate, such as 0.1"
)


def setting(
    default: Any,
    panel: str = "",
    help: str = "",  # noqa: A002 - what it is called everywhere
    *,
    shown: str | None = None,
    rule: Condition | None = None,
    choices: tuple[str, ...] = (),
    offered: tuple[str, ...] = (),
) -> Any:
    """Declare a field that is a setting.

    Args:
        default: the value if nothing is given.
        panel: title of the part of the help in which it stands.
        help: one sentence for the help, without its full stop.
        shown: how the help shows the default; None: as it is.
        rule: what a value must satisfy.
        choices: the only values there are.
        offered: values that a shell completes; others are possible.
    """
    if shown is None and default is not None and not isinstance(default, bool | tuple):
        shown = str(default)
    text = f"{help} ({shown})" if shown else help
    text += "" if text.endswith(":") else "."
    told = {"help": text, "panel": panel, "rule": rule, "choices": choices, "offered": offered}
    return field(default=default, metadata=told)


@dataclass(frozen=True)
class Setting:
    """A declared field.

    Attributes:
        name: of the field.
        kind: str, int, float or bool; of one entry where there may be several.
        many: the value is a tuple.
        default: the value if nothing is given; where it is None, None may be given, too.
        help: one sentence, the default in brackets.
        panel: title of the part of the help in which it stands.
        rule: what a value must satisfy.
        choices: the only values there are.
        offered: values that a shell completes.
    """

    name: str
    kind: type
    many: bool
    default: Any
    help: str
    panel: str
    rule: Condition | None
    choices: tuple[str, ...]
    offered: tuple[str, ...]

    def read(self, text: str) -> Any:
        """Read a value that was typed; the text itself where it is no such value.

        Example:
            >>> from guyot.app.config import RunConfig
            >>> known = settings_of(RunConfig)
            >>> known["epochs"].read("3"), known["targets"].read("0.7,0.5")
            (3, (0.7, 0.5))
            >>> known["epochs"].read("few")
            'few'
        """
        if self.kind is bool:
            return {"true": True, "false": False}.get(text.lower(), text)
        try:
            if self.many and self.kind is float:
                return tuple(map(float, text.split(",")))
            return text if self.many else self.kind(text)
        except ValueError:
            return text

    def wrong_kind(self, value: Any) -> str | None:
        """Say what a value should have been; None if it is of the right kind."""
        if self.many:
            if not isinstance(value, list | tuple) or not all(map(self._is_kind, value)):
                entries = "patterns" if self.kind is str else "numbers, such as 0.7,0.5"
                return f"give a list of {entries}"
        elif not (self._is_kind(value) or (value is None and self.default is None)):
            if isinstance(value, str) and self.kind is str:
                return "leave out characters that cannot be printed"
            if isinstance(value, int) and self.kind is int and not isinstance(value, bool):
                return "give a number below 2147483648"
            return f"give {_NAMES[self.kind]}"
        return None

    def _is_kind(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, _KINDS[self.kind]):
            return self.kind is bool and isinstance(value, bool)
        if isinstance(value, str):
            return value.isprintable()
        return not isinstance(value, int) or abs(value) < 2**31

    def problem(self, value: Any) -> str | None:
        """Say what a value should have been; None if it is fine."""
        if (wrong := self.wrong_kind(value)) or value is None:
            return wrong
        if self.rule is not None and not self.rule.fits(value):
            return f"{self.rule.advice}{did_you_mean(value, self.offered)}"
        if self.choices and value not in self.choices:
            return f"choose {' or '.join(self.choices)}{did_you_mean(value, self.choices)}"
        return None


@functools.cache
def settings_of(config: type) -> dict[str, Setting]:
    """Return the settings that a dataclass declares, by name and in order."""
    hints = typing.get_type_hints(config)
    return {
        field.name: _setting(field, hints[field.name])
        for field in dataclasses.fields(config)
        if field.metadata
    }


def _setting(declared: dataclasses.Field[Any], hint: Any) -> Setting:
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind in _KINDS]
    many = typing.get_origin(hint) is tuple
    return Setting(declared.name, kinds[0], many, declared.default, **declared.metadata)


def problems_of(config: Any) -> list[str]:
    """Say what is wrong with each setting of a dataclass, seen alone."""
    problems: list[str] = []
    for name, known in settings_of(type(config)).items():
        value = getattr(config, name)
        if problem := known.problem(value):
            problems.append(f"{name}={value!r}: {problem}")
    return problems


def check_named(values: Any, example: str = _EXAMPLE) -> None:
    """Refuse settings that are not given by name.

    Args:
        values: that were given.
        example: of a way out.

    Raises:
        MisconfiguredError: they are no mapping.
    """
    if not isinstance(values, Mapping):
        raise MisconfiguredError(
            f"the configuration is a {type(values).__name__}: give settings by name, such as "
            f"{example}"
        )


def read_settings(file: Path, config: type) -> dict[str, Any]:
    """Read settings by name from a JSON file, or from YAML if it is called so.

    Raises:
        MisconfiguredError: it cannot be read, or holds something else.
    """
    from guyot.core.storage import read_json

    yaml = file.suffix.lower() in (".yaml", ".yml")
    values = _read_yaml(file) if yaml else read_json(file)
    check_named(values, "data: digits" if yaml else _EXAMPLE)
    if not yaml:
        return dict(values)
    known = settings_of(config)  # 1e-3 is a text in YAML
    return {
        name: known[name].read(value) if name in known and isinstance(value, str) else value
        for name, value in values.items()
    }


def _read_yaml(file: Path) -> Any:
    with needed(f"{file} needs", "cli", ", or give the settings as JSON"):
        import yaml
    try:
        with file.open("rb") as stream:
            text = stream.read(_FILE_LIMIT + 1)
        if len(text) > _FILE_LIMIT:
            raise ValueError(f"it has more than {_FILE_LIMIT} bytes")
        return yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise MisconfiguredError(f"{file} cannot be read: {' '.join(reason.split())}") from error
