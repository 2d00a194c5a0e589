"""Runs of equal blocks in a network, and the network with three blocks of each run.

Two blocks are equal if nothing tells them apart but the numbers in their floating-point tensors:
the same classes, modes, attributes and kinds of tensors in the same modules, and no hooks.
"""

from __future__ import annotations

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.inputs import copied, sharing_copy
from guyot.core.locate import named_tensors
from guyot.surgery import above

KEPT = 3
"""Blocks of a run that the short network has: the first, an inner one and the last."""

_INNER = vars(nn.Module())
_CONTAINERS = (nn.Sequential, nn.ModuleList)
VALUES = (
    *(bool, int, float, complex, str, bytes, torch.Size),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format),
)
"""Types of values that are equal if they look equal."""


@dataclass(frozen=True)
class Run:
    """Equal blocks that follow each other in one container.

    Attributes:
        blocks: qualified names, in order.
    """

    blocks: tuple[str, ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """The blocks that the short network has."""
        return self.blocks[:KEPT]

    def stand_for(self) -> dict[str, str]:
        """Return, for every block, the block of the short network that stands for it."""
        first, inner, last = self.kept
        return {**dict.fromkeys(self.blocks, inner), self.blocks[0]: first, self.blocks[-1]: last}


class ShortNames:
    """Names in the short network of what has a name in the whole one.

    Args:
        runs: of equal blocks.

    Example:
        >>> names = ShortNames([Run(tuple(f"layers.{n}" for n in range(9)))])
        >>> [names.short(f"layers.{n}.conv") for n in (0, 2, 5, 8)]
        ['layers.0.conv', 'layers.1.conv', 'layers.1.conv', 'layers.2.conv']
        >>> names.in_whole("layers.5.conv", "the weight of layers.1.conv differs")
        'the weight of layers.5.conv differs'
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._short = {k: v for run in runs for k, v in run.stand_for().items()}
        self._known: dict[str, str] = {}

    def block(self, name: str) -> str | None:
        """Return the block that a name lies in; None where it lies in none."""
        own = name.partition(":")[0]
        return next((path for path in (*above(own), own) if path in self._short), None)

    def short(self, name: str) -> str:
        """Return the name of the same thing in the short network."""
        if name not in self._known:
            block = self.block(name)
            known = name if block is None else self._short[block] + name[len(block) :]
            self._known[name] = known
        return self._known[name]

    def in_whole(self, name: str, text: str) -> str:
        """Return what a text about the short network says of a name in the whole one."""
        block = self.block(name)
        if block is None:
            return text
        return re.sub(rf"(?<![\w.]){re.escape(self._short[block])}(?![\w])", block, text)


def runs_of(model: nn.Module) -> list[Run]:
    """Return the runs of more equal blocks than the short network needs, outermost ones only."""
    modules = Counter(id(m) for _, m in model.named_modules(remove_duplicate=False))
    tensors = named_tensors(model)
    places = Counter(_place(tensor) for tensor in tensors.values())
    shared = {name for name, x in tensors.items() if places[_place(x)] > 1}
    barred = {path for name in shared for path in above(name)}
    found: list[Run] = []
    waiting = [("", model)]
    while waiting:
        path, module = waiting.pop(0)
        inside: list[tuple[str, nn.Module]] = []
        for blocks in _alike(path, module):
            names = [name for name, _ in blocks]
            once = all(modules[id(m)] == 1 for _, block in blocks for m in block.modules())
            if len(blocks) > KEPT and once and barred.isdisjoint(names):
                found.append(Run(tuple(names)))
            else:
                inside += blocks
        waiting += inside
    return found


def _place(tensor: Tensor) -> int:
    """Return what tells the memory of a tensor from that of others."""
    return tensor.untyped_storage().data_ptr() if tensor.numel() else id(tensor)


def _alike(path: str, module: nn.Module) -> Iterator[list[tuple[str, nn.Module]]]:
    """Yield the children of a module, equal neighbours of a container together."""
    together: list[tuple[str, nn.Module]] = []
    for key, child in module.named_children():
        if together and not (isinstance(module, _CONTAINERS) and equal(together[0][1], child)):
            yield together
            together = []
        together.append((f"{path}.{key}" if path else key, child))
    if together:
        yield together


def equal(one: nn.Module, other: nn.Module) -> bool:
    """Say whether nothing tells two modules apart but the numbers in their tensors.

    Example:
        >>> equal(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)), equal(nn.ReLU(), nn.ReLU(inplace=True))
        (True, False)
    """
    if type(one) is not type(other) or vars(one).keys() != vars(other).keys():
        return False
    mine, theirs = vars(one), vars(other)
    for name, value in mine.items():
        if value is theirs[name] and not isinstance(value, dict):
            continue
        if name in ("_parameters", "_buffers"):
            fits = _equal_tensors(value, theirs[name])
        elif name == "_modules":
            fits = list(value) == list(theirs[name])
        elif name in _INNER and isinstance(_INNER[name], dict):
            fits = not value and not theirs[name]  # hooks
        else:
            fits = _same(value, theirs[name])
        if not fits:
            return False
    children = zip(mine["_modules"].values(), theirs["_modules"].values(), strict=True)
    return all(a is b if a is None or b is None else equal(a, b) for a, b in children)


def _equal_tensors(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> bool:
    return list(one) == list(other) and all(
        a is b if a is None or b is None else _equal_kinds(a, b)
        for a, b in zip(one.values(), other.values(), strict=True)
    )


def _equal_kinds(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors may differ in numbers only, which are finite; whole numbers may not.

    Sizes, strides and masks are whole numbers, or not finite.
    """
    if type(a) is not type(b) or not _same(vars(a), vars(b)):
        return False
    kinds = [(x.shape, x.stride(), x.dtype, x.device, x.requires_grad) for x in (a, b)]
    if kinds[0] != kinds[1]:
        return False
    return (a.is_floating_point() and _finite(a) and _finite(b)) or torch.equal(a, b)


def _finite(tensor: Tensor) -> bool:
    return math.isfinite(float(tensor.detach().abs().sum())) or bool(tensor.isfinite().all())


def _same(one: Any, other: Any) -> bool:
    """Say whether two attributes are the same: one object, or equal plain values."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, VALUES):
        return bool(one == other)
    if type(one) in (list, tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    if type(one) is set:
        return all(isinstance(x, VALUES) for x in one) and one == other
    if type(one) is dict:
        return list(one) == list(other) and all(map(_same, one.values(), other.values()))
    return False


def shortened(model: nn.Module, runs: Sequence[Run]) -> nn.Module:
    """Return a network with the same modules, without the blocks that others stand for."""
    short = _shell(model)
    shells = {"": short}
    for run in runs:
        for path in above(run.blocks[0]):
            if path not in shells:
                outer, _, key = path.rpartition(".")
                children = vars(shells[outer])["_modules"]
                children[key] = shells[path] = _shell(children[key])
        container, _, _ = run.blocks[0].rpartition(".")
        for name in run.blocks[KEPT:]:
            del vars(shells[container])["_modules"][name.rpartition(".")[2]]
    return short


def running_copy(model: nn.Module, runs: Sequence[Run]) -> nn.Module:
    """Return a copy of a network to run; its parameters share memory with the network's own."""
    try:
        memo: dict[int, Any] = {
            id(block): _cloned(block)
            for run in runs
            for block in map(model.get_submodule, run.blocks)
        }
    except _SpecialError:
        return sharing_copy(model)
    for parameter in model.parameters():  # of blocks they have copies already
        memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return copied(model, memo)


class _SpecialError(Exception):
    """A module has an attribute that only `copy.deepcopy` may copy."""


def _cloned(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose attributes are plain, sooner than `copy.deepcopy` does.

    Raises:
        _SpecialError: they are not.
    """
    clone = type(module).__new__(type(module))
    state = vars(clone)
    for name, value in vars(module).items():
        constant = type(value) in (bool, int, float, str, NoneType)
        state[name] = value if constant else _cloned_attribute(name, value)
    return clone


def _cloned_attribute(name: str, value: Any) -> Any:
    if name == "_modules":
        return {key: None if child is None else _cloned(child) for key, child in value.items()}
    if name in ("_parameters", "_buffers"):
        if any(
            type(x) not in (Tensor, nn.Parameter, NoneType) or (x is not None and vars(x))
            for x in value.values()
        ):
            raise _SpecialError
        return {key: _cloned_tensor(tensor) for key, tensor in value.items()}
    if type(value) in (OrderedDict, set) and not value:
        return type(value)()
    return _plain_copy(value)


def _cloned_tensor(tensor: Tensor | None) -> Tensor | None:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.detach(), tensor.requires_grad)
    return None if tensor is None else tensor.detach().clone()


def _plain_copy(value: Any) -> Any:
    if value is None or isinstance(value, (*VALUES, type, FunctionType, BuiltinFunctionType)):
        return value
    if type(value) in (list, tuple, set):
        return type(value)(map(_plain_copy, value))
    if type(value) is dict:
        return {key: _plain_copy(item) for key, item in value.items()}
    raise _SpecialError


def _shell(module: nn.Module) -> nn.Module:
    """Return another module of the same attributes, which may have other children."""
    shell = type(module).__new__(type(module))
    vars(shell).update(vars(module))
    vars(shell)["_modules"] = dict(vars(module)["_modules"])
    return shell
