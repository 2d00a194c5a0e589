"""Carry out a `KeepPlan` on modules and optimisers: slice tensors, remove branches.

Parameters keep their identity: the optimiser, its parameter groups, tied weights and the user's
own references hold the same `nn.Parameter` objects as before, which have fewer entries now.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from guyot.core.axis import kept_indices, size_of
from guyot.core.errors import UnsupportedError
from guyot.core.locate import tensor_at
from guyot.core.parallel.shards import (
    from_rows,
    gathered,
    is_sharded,
    rows_here,
    spread_like,
    taken_rows,
)
from guyot.core.types import KeepPlan, Restated, StandIn, Structures
from guyot.surgery.caches import layer_numbers, renumber
from guyot.surgery.derive import derive
from guyot.surgery.edits import Edit
from guyot.surgery.heads import keep_off_fast_path
from guyot.surgery.layers import discard, drop_of, gone_with, replace_module
from guyot.surgery.plan import (
    Shrunk,
    all_removed_layers,
    due,
    present,
    removed_tensors,
    settled,
    shrink_structures,
)
from guyot.surgery.restate import make_room, states_of, written_out
from guyot.surgery.stand_ins import act_out_of_place, let_pass, stand_in

Indices = tuple[Tensor | None, ...]


def operate(
    model: nn.Module,
    structures: Structures,
    plan: KeepPlan,
    optimizers: Sequence[torch.optim.Optimizer] = (),
) -> Shrunk:
    """Remove what the plan does not keep, for good, from a module and its optimisers.

    Weights, biases, norm parameters, buffers, `.grad` and every optimiser tensor shaped like its
    parameter (momentum, Adam moments, ...) are sliced with the same indices; memory format,
    dtype, device, `requires_grad`, parameter groups and tied weights stay. A removed layer leaves
    no module and no parameter behind. Sharded tensors are gathered one at a time, which is
    collective.

    Args:
        model: the module that `structures` describes; changed in place.
        structures: what it is made of.
        plan: what stays.
        optimizers: optimisers that hold its parameters; changed in place.

    Returns:
        The smaller structures, and which gates are left.

    Raises:
        UnsupportedError: a class cannot be derived, or an optimiser keeps a state tensor whose
            shape is neither the parameter's nor a single number. Nothing was changed then.
        MisconfiguredError: the plan keeps different numbers of units in equal blocks.
    """
    shrunk = shrink_structures(structures, plan)
    masks = present(structures, plan)
    gone_names = removed_tensors(structures, plan)
    sliced: dict[str, Indices] = {}
    for tensor in structures.tensors:
        if tensor.name not in gone_names:
            indices = tuple(kept_indices(axis, masks) for axis in tensor.axes)
            if any(index is not None for index in indices):
                sliced[tensor.name] = indices
    for optimizer in optimizers:
        for tensor in structures.tensors:
            parameter = tensor_at(model, tensor.name)
            _check_state(optimizer, tensor.name, parameter, tensor.name in sliced)
    surgery = _prepared(model, structures, plan)
    gone = {id(tensor_at(model, name)) for name in gone_names}
    for name, indices in sliced.items():
        _slice(model, name, indices, optimizers)
    numbers = layer_numbers(model) if gone_names else {}
    surgery.carry_out(model)
    renumber(model, numbers)
    for optimizer in optimizers:
        _forget(optimizer, gone)
    sizes = [group.size for group in shrunk.structures.groups]
    for attribute in shrunk.structures.attributes:
        module = _submodule(model, attribute.module)
        if hasattr(module, attribute.name):
            setattr(module, attribute.name, size_of(attribute.axis, sizes))
    return shrunk


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    """A descendant; None when it went with a layer."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


@dataclass
class _Surgery:
    """What is done to modules, prepared so that nothing fails half way.

    Attributes:
        classes: what gives modules their new classes.
        restated: modules that get attributes for lengths.
        taken: name of a module -> what it loses.
        stand_ins: what takes the place of modules, and how.
        passing: modules that return an argument from now on, and which.
    """

    classes: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    restated: list[tuple[nn.Module, Restated]] = field(
        default_factory=list[tuple[nn.Module, Restated]]
    )
    taken: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    stand_ins: dict[StandIn, nn.Module] = field(default_factory=dict[StandIn, nn.Module])
    passing: dict[StandIn, nn.Module] = field(default_factory=dict[StandIn, nn.Module])

    def carry_out(self, model: nn.Module) -> None:
        """Change the modules."""
        for module, spec in self.restated:
            make_room(module, spec)
        for change in self.classes:
            change()
        for owner, names in self.taken.items():
            discard(model.get_submodule(owner), names)
            keep_off_fast_path(model.get_submodule(owner))
        for spec, module in self.passing.items():
            act_out_of_place(model, spec)
            let_pass(module, spec)
        for spec, module in self.stand_ins.items():
            if not spec.zero:
                act_out_of_place(model, spec)
            replace_module(model, spec.module, module)


def _prepared(model: nn.Module, structures: Structures, plan: KeepPlan) -> _Surgery:
    """Derive classes and make stand-ins, for outermost branches only; nothing is changed yet.

    Raises:
        UnsupportedError: a class cannot be derived.
    """
    surgery = _Surgery()
    edits: dict[str, list[Edit]] = defaultdict(list)
    removed = all_removed_layers(structures, plan)
    for number in sorted(removed):
        layer = structures.layers[number]
        around = structures.holders[layer.tensors[0]] & removed - {number}
        if any(set(layer.tensors) < set(structures.layers[n].tensors) for n in around):
            continue
        gone: tuple[str, ...] = ()
        for spec in layer.stand_ins:
            module = model.get_submodule(spec.module)
            if spec.stays:
                surgery.passing[spec], gone = module, gone_with(layer)
            else:
                surgery.stand_ins[spec] = stand_in(spec, module)
        if not layer.stand_ins:
            drop = drop_of(layer)
            gone = drop.gone
            edits[layer.owner].append(drop)
        surgery.taken[layer.owner] += gone
    without = settled(structures, plan)
    for spec in due(structures, plan):
        if spec.module in without:
            continue
        module = model.get_submodule(spec.module)
        change = written_out(module)
        if change is None:
            edits[spec.module] += states_of(spec)
            surgery.restated.append((module, spec))
        else:
            surgery.classes.append(change)
    for name, own in edits.items():
        if own:
            surgery.classes.append(derive(model.get_submodule(name), own))
    return surgery


def select(tensor: Tensor, indices: Indices) -> Tensor:
    """Keep the given indices of every dimension; the order of strides (memory format) stays.

    Indices of shape (blocks, entries) are those of the blocks that dimension 0 is made of.

    Example:
        >>> weight = torch.ones(4, 4, 3, 3).to(memory_format=torch.channels_last)
        >>> part = select(weight, (torch.tensor([0, 2, 3]), None, None, None))
        >>> part.shape, part.is_contiguous(memory_format=torch.channels_last)
        (torch.Size([3, 4, 3, 3]), True)
        >>> select(torch.arange(8).view(4, 2), (None, torch.tensor([[0], [1]]))).flatten()
        tensor([0, 2, 5, 7])
    """
    result = tensor.detach()
    for dim, index in enumerate(indices):
        if index is not None and index.dim() == 1:
            result = result.index_select(dim, index.to(tensor.device))
        elif index is not None:
            result = _of_blocks(result, dim, index.to(tensor.device))
    order = sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim))
    laid_out = torch.empty_permuted(result.shape, order, dtype=tensor.dtype, device=tensor.device)
    return laid_out.copy_(result)


def _select_shards(tensor: Tensor, indices: Indices) -> Tensor:
    """Select in a sharded tensor; its rows are spread evenly again.

    Columns are taken before rows are sent, and no process holds all rows at once.
    """
    rows, *columns = indices
    if any(index is not None and index.dim() > 1 for index in columns):
        return spread_like(select(gathered(tensor), indices), tensor)
    here = rows_here(tensor)
    if any(index is not None for index in columns):
        here = select(here, (None, *columns))
    if rows is None:
        return from_rows(here, len(tensor), tensor)
    return from_rows(taken_rows(here, rows, tensor), len(rows), tensor)


def _of_blocks(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """Every block of dimension 0 keeps other indices of a dimension."""
    rows = index.repeat_interleave(len(tensor) // len(index), dim=0)
    shape = [1] * tensor.dim()
    shape[0], shape[dim] = rows.shape
    whole = list(tensor.shape)
    whole[dim] = rows.shape[1]
    return tensor.gather(dim, rows.view(shape).expand(whole))


def _slice(
    model: nn.Module,
    name: str,
    indices: Indices,
    optimizers: Sequence[torch.optim.Optimizer],
) -> None:
    tensor = tensor_at(model, name)
    if not isinstance(tensor, nn.Parameter):
        tensor.data = select(tensor, indices)
        return
    shape = tensor.shape
    gradient, tensor.grad = tensor.grad, None
    _set_data(tensor, _selected(tensor, indices))
    if gradient is not None:
        tensor.grad = _selected(gradient, indices)
    for optimizer in optimizers:
        state = optimizer.state.get(tensor, {})
        for entry, value in state.items():
            if isinstance(value, Tensor) and value.shape == shape:
                state[entry] = _selected(value, indices)


def _selected(tensor: Tensor, indices: Indices) -> Tensor:
    return (_select_shards if is_sharded(tensor) else select)(tensor, indices)


def _set_data(parameter: nn.Parameter, data: Tensor) -> None:
    """Give a parameter new data of another shape.

    The autograd node that accumulates its gradient remembers the old shape and may still be
    alive (a training loop's `loss` holds it). PyTorch renews the node when the dtype changes,
    and only then, hence the detour. A sharded parameter has no such node, and no data to give.
    """
    if is_sharded(parameter):
        torch.utils.swap_tensors(parameter, nn.Parameter(data, parameter.requires_grad))
        return
    detour = torch.float64 if parameter.dtype != torch.float64 else torch.float32
    parameter.data = torch.empty(0, dtype=detour, device=parameter.device)
    parameter.data = data


def _check_state(
    optimizer: torch.optim.Optimizer, name: str, parameter: Tensor, sliced: bool
) -> None:
    """Refuse state that has no entry per entry of its parameter."""
    for entry, value in optimizer.state.get(parameter, {}).items():
        if isinstance(value, Tensor):
            elementwise = not sliced or not value.dim() or value.shape == parameter.shape
            kind = f"of shape {tuple(value.shape)}"
        else:
            elementwise = not isinstance(value, (list, tuple, dict))
            kind = f"({type(value).__name__})"
        if not elementwise:
            raise UnsupportedError(
                f"{type(optimizer).__name__} keeps {entry!r} {kind} for {name} of shape "
                f"{tuple(parameter.shape)}: guyot cannot slice it; use an optimiser with "
                "elementwise state (SGD, Adam, AdamW, RMSprop, ...)"
            )


def _forget(optimizer: torch.optim.Optimizer, gone: set[int]) -> None:
    """Take removed parameters out of an optimiser; its groups keep their number and order."""
    if not gone:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        group["params"] = [p for p in group["params"] if id(p) not in gone]
