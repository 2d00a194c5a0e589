"""Layer numbers in language models: where in a cache an attention keeps its keys and values.

A cache takes its length from the attention with the lowest number. Where attentions go, those that
stay move up, as far as their kind (`config.layer_types`: full, sliding, linear) is the same.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections import defaultdict
from collections.abc import Hashable, Mapping

from torch import nn

NUMBER = "layer_idx"
"""The attribute with the number, as in all models of transformers."""

Entry = tuple[Hashable, ...]
"""What tells attentions apart that cannot take each other's place."""


def layer_numbers(model: nn.Module) -> Mapping[Entry, Mapping[str, int]]:
    """Return the layer numbers of a model's attentions: row -> qualified name -> number."""
    found: dict[Entry, dict[str, int]] = defaultdict(dict)
    for name, module in model.named_modules():
        number = vars(module).get(NUMBER)
        if type(number) is int and _takes_cache(type(module)):
            kinds = getattr(getattr(module, "config", None), "layer_types", None) or ()
            kind = kinds[number] if number < len(kinds) else None
            found[re.sub(r"(^|\.)\d+(?=\.|$)", r"\1#", name), kind][name] = number
    return found


def renumber(model: nn.Module, before: Mapping[Entry, Mapping[str, int]]) -> None:
    """Let the attentions that stay take the first of the numbers that those of their row had.

    Args:
        model: after a removal.
        before: what `layer_numbers` gave for it before.
    """
    left = {name: module for name, module in model.named_modules() if _has_number(module)}
    for numbers in before.values():
        names = sorted((name for name in numbers if name in left), key=numbers.__getitem__)
        if len(names) < len(numbers) == len(set(numbers.values())):
            for name, number in zip(names, sorted(numbers.values()), strict=False):
                setattr(left[name], NUMBER, number)


def _has_number(module: nn.Module) -> bool:
    return NUMBER in vars(module) and _takes_cache(type(module))


@functools.lru_cache(1024)
def _takes_cache(kind: type[nn.Module]) -> bool:
    """Say whether the `forward` of a class takes a cache of keys and values, or of states."""
    return any(re.search("cache|past", name) for name in inspect.signature(kind.forward).parameters)
