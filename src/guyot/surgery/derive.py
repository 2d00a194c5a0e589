"""Give a module another `forward` and leave it what its author made.

A module's class becomes a subclass of the same name in which some methods are compiled from edited
source. The instance stays, with its `__dict__`: hooks, buffers, children, plain attributes.
`isinstance` holds, `super()`, closures, defaults and decorators of the methods stay, and attributes
are read when the methods run. Copies and pickles work; reading a pickle needs guyot and the class
of the author.
"""

from __future__ import annotations

import copy
import copyreg
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from guyot.surgery.edits import Edit, by_method, edit
from guyot.surgery.source import author_function, compiled, method_of, plain_text

Texts = tuple[tuple[str, str], ...]
"""Names of methods and their source."""


@dataclass(frozen=True)
class Derivation:
    """How a class was derived.

    Attributes:
        author: the class that it was derived from.
        texts: source of the methods that differ.
        given: methods that guyot has functions for.
        history: names of methods, each with the class whose source was edited and all edits of it.
    """

    author: type[nn.Module]
    texts: Texts = ()
    given: tuple[tuple[str, Callable[..., Any]], ...] = ()
    history: tuple[tuple[str, type[nn.Module], tuple[Edit, ...]], ...] = ()

    def lasting(self) -> Derivation:
        """Without what another process has no name for."""
        return replace(self, history=tuple(h for h in self.history if h[1] is self.author))


class Derived:
    """Marks a class that guyot derived from an author's; `__guyot__` is its derivation."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        kind = type(self)
        made = super().__reduce_ex__(protocol)
        derivation = _derivation(kind)
        if derivation is None or made[:2] != (copyreg.__newobj__, (kind,)):  # pyright: ignore[reportAttributeAccessIssue]
            return made
        return _instance, (derivation.lasting(),), *made[2:]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the very same class, whose history a pickle would lose."""
        if (own := getattr(super(), "__deepcopy__", None)) is not None:
            return own(memo)
        kind: Any = type(self)
        memo[id(self)] = twin = kind.__new__(kind)
        state = copy.deepcopy(super().__reduce_ex__(4)[2], memo)  # pyright: ignore[reportIndexIssue]
        twin.__setstate__(state)
        return twin


def _derivation(kind: type) -> Derivation | None:
    """Return how exactly this class was derived; None for others and their subclasses."""
    return kind.__dict__.get("__guyot__")


def _instance(derivation: Derivation) -> nn.Module:
    """An empty instance of a derived class."""
    derived = _derived(derivation)
    return derived.__new__(derived)


@functools.cache
def _derived(derivation: Derivation) -> type[nn.Module]:
    """The subclass with other methods; modules with the same have the same class."""
    kind = derivation.author
    members: dict[str, Any] = {name: compiled(kind, name, text) for name, text in derivation.texts}
    members |= dict(derivation.given)
    members |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    members |= {"__doc__": kind.__doc__, "__guyot__": derivation}
    return type(kind.__name__, (Derived, kind), members)


def derive(module: nn.Module, edits: Sequence[Edit]) -> Callable[[], None]:
    """Prepare the edit of a module's methods.

    Args:
        module: its class may be derived already; not changed yet.
        edits: their places are in methods of its class, or of the class that it was derived from.

    Returns:
        What carries it out.

    Raises:
        UnsupportedError: a method has no source, or an edit does not fit it.

    Example:
        >>> import copy
        >>> class Constant(nn.Module):
        ...     def forward(self):
        ...         return 3
        >>> constant = Constant()
        >>> replace_methods(constant, {"forward": lambda self: 4})
        >>> copy.deepcopy(constant)(), isinstance(constant, Constant), type(constant).__name__
        (4, True, 'Constant')
    """
    kind = type(module)
    derivation = _derivation(kind) or Derivation(kind)
    texts = dict(derivation.texts)
    history = {name: (source, earlier) for name, source, earlier in derivation.history}
    in_place: list[str] = []
    for name, own in by_method(edits).items():
        source, earlier = history.get(name, (derivation.author, ()))
        function = author_function(kind, name)
        if name in texts and function and function.__code__.co_filename == own[0].place.file:
            source, earlier = kind, ()  # places were found in what an edit had made
        every = tuple(dict.fromkeys((*earlier, *own)))
        method = method_of(source, name)
        in_place += edit(method, every, module)
        texts[name], history[name] = plain_text(method), (source, every)
    entries = tuple((name, *entry) for name, entry in sorted(history.items()))
    derived = _derived(replace(derivation, texts=tuple(sorted(texts.items())), history=entries))

    def carry_out() -> None:
        module.__class__ = derived
        for path in in_place:
            setattr(module.get_submodule(path), "inplace", False)  # noqa: B010  (of unknown type)

    return carry_out


def replace_methods(module: nn.Module, methods: Mapping[str, Callable[..., Any]]) -> None:
    """Let a module's class be a subclass with other methods; they are pickled by their names."""
    kind = type(module)
    derivation = _derivation(kind) or Derivation(kind)
    given = dict(derivation.given) | dict(methods)
    module.__class__ = _derived(replace(derivation, given=tuple(given.items())))
