"""What a network computes, operator by operator, inside and outside of its equal blocks.

The blocks of a run are one chain if each computes the same from what the one before it gives, and
nobody else looks at that. Tensors have names that do not depend on the block: what it was given,
what it owns, what it made. So two blocks compute the same if their lists of operators are equal.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from types import NoneType
from typing import Any

from torch import Tensor, nn

from guyot.core.errors import UnsupportedError
from guyot.core.inputs import flat, tensors_of
from guyot.core.locate import named_tensors
from guyot.core.torch_private import dispatching, schema_of
from guyot.structures.depth.runs import KEPT, VALUES, Run

_SMALL = 64
"""Numbers of a tensor that is known by them: `forward` made it up."""

_CONSTANTS = {bool, int, str, NoneType}
"""Types of values that are hashable and equal only if nothing tells them apart."""

Name = tuple[Any, ...]


@dataclass
class _Call:
    """One call of a block.

    Attributes:
        run: number of its run.
        position: of the block in the run.
        path: its name.
        given: what each argument is.
        names: id of a tensor -> its name inside the block.
        operators: what ran.
        results: names of what came back.
        held: tensors that have to live as long as their ids are names.
    """

    run: int
    position: int
    path: str
    given: list[Name] = field(default_factory=list[Name])
    names: dict[int, Name] = field(default_factory=dict[int, Name])
    operators: list[Name] = field(default_factory=list[Name])
    results: list[Name] = field(default_factory=list[Name])
    held: list[Any] = field(default_factory=list[Any])

    @property
    def shown(self) -> tuple[list[Name], list[Name], list[Name]]:
        """What two calls of equal blocks have in common."""
        return self.given, self.operators, self.results


class _StrangeError(Exception):
    """Blocks are no chain."""


class Ledger:
    """Writes down what one forward pass of a network computes.

    Args:
        runs: of equal blocks.

    Attributes:
        chained: whether the blocks of each run were called in order, once, as a chain.
        outside: what ran outside of the blocks, where each run is one entry.
        calls: of the blocks of every run, in order.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = runs
        self.chained = True
        self.outside: list[Name] = []
        self.calls: list[list[_Call]] = [[] for _ in runs]
        self._names: dict[int, Name] = {}
        self._hidden: set[int] = set()
        self._held: list[Tensor] = []
        self._objects: list[Any] = []
        self._parameters: set[int] = set()
        self._call: _Call | None = None
        self._before: tuple[int, list[Any]] = (-1, [])

    @contextlib.contextmanager
    def around(self, model: nn.Module) -> Generator[None]:
        """Return a context in which one forward pass of a network is written down."""
        for name, module in model.named_modules():
            for key, value in vars(module).items():
                if isinstance(value, Tensor):
                    self._names[id(value)] = ("attribute", name, key)
        for name, tensor in named_tensors(model).items():
            self._names.setdefault(id(tensor), ("tensor", name))
        self._parameters = set(map(_memory, model.parameters()))
        modules = dict(model.named_modules())
        handles: list[Any] = []
        for number, run in enumerate(self._runs):
            for position, path in enumerate(run.blocks):
                if path in modules:
                    call = (number, position, path)
                    module = modules[path]
                    before = module.register_forward_pre_hook(self._begin(*call), with_kwargs=True)
                    handles += [before, module.register_forward_hook(self._end)]
        root = model.register_forward_hook(self._outputs)
        try:
            with dispatching(self._operator):
                yield
        finally:
            for handle in (*handles, root):
                handle.remove()

    def _begin(self, run: int, position: int, path: str) -> Any:
        def begin(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            calls = self.calls[run]
            if self._call is not None or len(calls) != position:
                self.chained = False
            call = self._call = _Call(run, position, path)
            calls.append(call)
            given = self._before[1] if self._before[0] == run else []
            call.given.append(("arguments", len(args), *kwargs))
            try:
                for place, leaf in enumerate(flat((args, kwargs))):
                    call.given.append(self._argument(call, place, leaf, given))
            except _StrangeError:
                self.chained = False
            if not position:
                self.outside.append(("run", run, *call.given))

        return begin

    def _argument(self, call: _Call, place: int, leaf: Any, given: Sequence[Any]) -> Name:
        if not isinstance(leaf, Tensor):
            return self._known(leaf)
        if id(leaf) in call.names:
            return ("again", call.names[id(leaf)])
        chain = next((n for n, x in enumerate(given) if x is leaf), None)
        call.names[id(leaf)] = ("given", place)
        call.held.append(leaf)
        if chain is not None and id(leaf) in self._hidden:
            return ("chain", chain, *_kind(leaf))
        return ("outer", self._outer(leaf), *_kind(leaf))

    def _end(self, _: nn.Module, __: Any, output: Any) -> None:
        call, self._call = self._call, None
        if call is None or not self.chained:
            return
        leaves = flat(output)
        last = call.position == len(self._runs[call.run].blocks) - 1
        call.results.append(("type", type(output)))
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor):
                call.results.append(self._known(leaf))
                continue
            name = call.names.get(id(leaf), ("unknown",))
            call.results.append((*name, *_kind(leaf)))
            if name[0] == "made" and not last:
                self._hidden.add(id(leaf))
            elif name[0] == "made":
                self._names[id(leaf)] = ("run", call.run, place)
                self._hidden.discard(id(leaf))
            elif name[0] != "given" or call.given[1 + int(name[1])][0] != "outer":
                self.chained = False
            self._held.append(leaf)
        self._before = (-1, []) if last else (call.run, leaves)
        call.names, call.held = {}, []
        others = self.calls[call.run][1:]
        if len(others) > 1 and call.shown == others[0].shown:  # one list in memory for all
            call.given, call.operators, call.results = others[0].shown

    def _outputs(self, _: nn.Module, __: Any, output: Any) -> None:
        self.chained &= self._before[0] < 0
        try:
            self.outside.append(("outputs", *map(self._outer, tensors_of(output))))
        except _StrangeError:
            self.chained = False

    def _operator(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        written = _written(func, args, kwargs)
        if any(_memory(tensor) in self._parameters for tensor in written):
            raise UnsupportedError(f"{func} writes a parameter")
        result = func(*args, **kwargs)
        if self.chained:
            try:
                if self._call is not None:
                    self._check_writing(self._call, written)
                self._note(self._call, func, args, kwargs, result)
            except _StrangeError:
                self.chained = False
        return result

    def _note(self, call: _Call | None, func: Any, args: Any, kwargs: Any, result: Any) -> None:
        if call is None and self._before[0] >= 0:
            raise _StrangeError
        entry: list[Any] = [func]
        for leaf in _leaves((args, kwargs)):
            tensor = isinstance(leaf, Tensor)
            entry.append(self._name(call, leaf) if tensor else self._known(leaf))
        list_ = self.outside if call is None else call.operators
        names = self._names if call is None else call.names
        for place, leaf in enumerate(_leaves(result)):
            if isinstance(leaf, Tensor):
                if id(leaf) not in names:
                    names[id(leaf)] = ("made", len(list_), place)
                    (self._held if call is None else call.held).append(leaf)
                entry += [names[id(leaf)], _kind(leaf)]
        list_.append(tuple(entry))

    def _check_writing(self, call: _Call, tensors: Sequence[Tensor]) -> None:
        """Refuse what a block may not write: all but its own and what it is handed by the chain."""
        for tensor in tensors:
            name = self._name(call, tensor)
            handed = name[0] == "given" and (
                call.position == 0 or call.given[1 + int(name[1])][0] == "chain"
            )
            if name[0] not in ("made", "own") and not handed:
                raise _StrangeError

    def _name(self, call: _Call | None, tensor: Tensor) -> Name:
        if call is None:
            return self._outer(tensor)
        if id(tensor) in call.names:
            return call.names[id(tensor)]
        if id(tensor) not in self._names and id(tensor) not in self._hidden:
            if tensor.numel() > _SMALL:
                raise _StrangeError
            return ("number", *_kind(tensor), tuple(tensor.detach().flatten().tolist()))
        name = self._outer(tensor)
        prefix = f"{call.path}."
        if name[0] == "tensor" and str(name[1]).startswith(prefix):
            return ("own", str(name[1])[len(prefix) :])
        if name[0] == "attribute" and f"{name[1]}.".startswith(prefix):
            return ("own", f"{name[1]}."[len(prefix) :], name[2])
        return ("outer", name)

    def _outer(self, tensor: Tensor) -> Name:
        """Return the name of a tensor outside of blocks; inputs are known by their order."""
        if id(tensor) in self._hidden:
            raise _StrangeError
        if id(tensor) not in self._names:
            self._names[id(tensor)] = ("input", len(self._held), *_kind(tensor))
            self._held.append(tensor)
        return self._names[id(tensor)]

    def _known(self, value: Any) -> Name:
        """Return what tells a plain value from others; other objects are known by themselves."""
        if type(value) in _CONSTANTS:
            return (type(value), value)
        if isinstance(value, VALUES):
            return (type(value), repr(value))
        self._objects.append(value)
        return ("object", id(value))


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that an operator writes into."""
    schema = schema_of(func)
    if schema is None or not schema.is_mutable:
        return []
    values = [
        args[number] if number < len(args) else kwargs.get(argument.name)
        for number, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return tensors_of(values)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _leaves(value: Any) -> list[Any]:
    """Return the leaves of an operator's arguments or results, and how long its lists are."""
    found: list[Any] = []
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if type(value) is dict:
            waiting += [item for pair in value.items() for item in pair]
        elif isinstance(value, (list, tuple)):
            found.append(len(value))  # pyright: ignore[reportUnknownArgumentType]
            waiting += reversed(value)  # pyright: ignore[reportUnknownArgumentType]
        else:
            found.append(value)
    return found


def _kind(tensor: Tensor) -> Name:
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def same(whole: Ledger, short: Ledger) -> bool:
    """Say whether the blocks of each run compute the same, in a network and in the short one.

    Args:
        whole: of the network.
        short: of the network with three blocks of each run.
    """
    if not (whole.chained and short.chained) or whole.outside != short.outside:
        return False
    for every, few in zip(whole.calls, short.calls, strict=True):
        if len(every) <= len(few) or len(few) != KEPT:
            return False
        first, second, *_ = every
        if len(first.given) != len(second.given) or not all(map(_fits, first.given, second.given)):
            return False
        if any((c.operators, c.results) != (first.operators, first.results) for c in every):
            return False
        if any(call.given != second.given for call in every[1:]):
            return False
        for one, other in zip(every, few, strict=False):
            if one.shown != other.shown:
                return False
    return True


def _fits(first: Name, second: Name) -> bool:
    """Say whether the first block is given what the others are, or a tensor like theirs."""
    handed = second[0] == "chain" and first[0] == "outer"
    return first[2:] == second[2:] if handed else first == second
