"""Modules under `fully_shard` (FSDP2): what surgery can follow, and how it follows.

PyTorch offers no public way to change the shapes that `fully_shard` knows, so
`guyot.core.torch_private` renews its records.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from guyot.core.errors import UnsupportedError
from guyot.core.parallel.shards import gathered, is_sharded
from guyot.core.torch_private import (
    begin_sharding,
    hidden_sharding,
    release_shards,
    renew_shards,
    shard_records,
)

ORDER = "fully_shard for the blocks, last for the model; then the optimizer, then the Discovery"


def sharded_modules(model: nn.Module) -> list[Any]:
    """Return the modules that `fully_shard` was called for."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    return [module for module in model.modules() if isinstance(module, fsdp.FSDPModule)]


def reshard(model: nn.Module) -> None:
    """Give every module its shards back: a forward pass without gradients leaves some whole."""
    for module in sharded_modules(model):
        module.reshard()


def get_ready(model: nn.Module) -> None:
    """Let `fully_shard` do now what it does in a first forward pass, in which it reads weights."""
    reshard(model)
    begin_sharding(sharded_modules(model))


def group_of_shards(model: nn.Module) -> dist.ProcessGroup | None:
    """Return the processes that train a sharded model together; None if it is whole."""
    reshard(model)
    sharded: Any = next(filter(is_sharded, model.parameters()), None)
    if sharded is None:
        return None
    mesh = sharded.device_mesh
    return mesh.get_group() if mesh.ndim == 1 else dist.group.WORLD


def check_sharding(model: nn.Module) -> None:
    """Refuse parameters that are sharded in a way that surgery cannot follow.

    Raises:
        UnsupportedError: not by `fully_shard` along dimension 0 over one mesh, or not all of them.
    """
    reshard(model)
    records = {id(each.sharded_param): each for each in shard_records(sharded_modules(model))}
    fsdp = sys.modules.get("torch.distributed.fsdp")
    meshes: list[Any] = []
    for name, parameter in model.named_parameters():
        record = records.get(id(parameter))
        flat = fsdp is not None and isinstance(parameter, fsdp.FlatParameter)
        if flat or (is_sharded(parameter) and record is None):
            raise UnsupportedError(
                f"{name} is sharded over processes, and not by fully_shard (FSDP2): surgery cannot "
                "follow FullyShardedDataParallel and tensor parallelism; use fully_shard of "
                "torch.distributed.fsdp, or DistributedDataParallel"
            )
        if record is not None:
            meshes.append(_checked_mesh(name, parameter, record))
        elif records and parameter.requires_grad:
            raise UnsupportedError(
                f"{name} is whole while other parameters are sharded, so nobody averages its "
                f"gradient: call {ORDER}"
            )
    if any(mesh != meshes[0] for mesh in meshes):
        raise UnsupportedError("fully_shard got several meshes: give every call the same one")


def _checked_mesh(name: str, parameter: Any, record: Any) -> Any:
    """Return over which processes `fully_shard` spreads a parameter; refuse some settings."""
    *others, last = parameter.placements
    replicated = all(placement.is_replicate() for placement in others)
    if record.is_dtensor or not (replicated and last.is_shard(0)):
        raise UnsupportedError(
            f"{name} is placed as {parameter.placements}, and surgery follows shards of dimension "
            "0: leave out shard_placement_fn and tensor parallelism"
        )
    if record.offload_to_cpu:
        raise UnsupportedError(f"{name} is offloaded to the CPU: leave out CPUOffloadPolicy")
    mesh = parameter.device_mesh
    if mesh.ndim > 1 and mesh.size() != dist.get_world_size():
        raise UnsupportedError(
            f"{name} is sharded over a mesh of {mesh.size()} of {dist.get_world_size()} processes: "
            "give fully_shard a mesh of all processes, or one of a single dimension"
        )
    return mesh


@contextlib.contextmanager
def reshaped(model: nn.Module) -> Generator[None]:
    """Let `fully_shard` follow what happens to modules and parameters inside.

    Inside, modules are of their own classes. Every rank must do the same by itself. To be used
    between two iterations.

    Args:
        model: is sharded, or not.
    """
    reshard(model)
    modules = sharded_modules(model)
    release_shards(modules)
    try:
        with _own_classes(modules):
            yield
    finally:
        renew_shards(model, modules)


@contextlib.contextmanager
def whole(model: nn.Module, *, weights: bool = True) -> Generator[None]:
    """Let a sharded model be a plain one inside. What happens to its weights there is lost.

    Args:
        model: is sharded, or not.
        weights: gather them, so that every process holds the whole model; collective. Otherwise
            parameters that are sharded are on the meta device.
    """
    reshard(model)
    modules = sharded_modules(model)
    places = [(m, key, p) for m in model.modules() for key, p in m._parameters.items()]  # pyright: ignore[reportPrivateUsage]
    plain: dict[int, nn.Parameter] = {}
    for _, _, parameter in places if modules else ():
        if is_sharded(parameter) and id(parameter) not in plain:
            assert parameter is not None
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            tensor = gathered(parameter) if weights else empty
            plain[id(parameter)] = nn.Parameter(tensor, parameter.requires_grad)
    try:
        for module, key, parameter in places:
            if id(parameter) in plain:
                module._parameters[key] = plain[id(parameter)]  # pyright: ignore[reportPrivateUsage]
        with _own_classes(modules), hidden_sharding(model):
            yield
    finally:
        for module, key, parameter in places:
            module._parameters[key] = parameter  # pyright: ignore[reportPrivateUsage]


@contextlib.contextmanager
def _own_classes(modules: list[Any]) -> Generator[None]:
    """Let modules be of the classes that they have without `fully_shard`."""
    classes = {module: type(module) for module in modules}
    for module, kind in classes.items():
        module.__class__ = _own(kind)
    try:
        yield
    finally:
        for module, kind in classes.items():
            own = type(module)
            if own is not _own(kind):  # surgery gave it another forward
                members = {"__deepcopy__": kind.__deepcopy__}
                kind = type(kind.__name__, (_base(kind), own), members)
            module.__class__ = kind


def _base(kind: type) -> type:
    """Return the class that `fully_shard` puts before a module's own."""
    return next(base for base in kind.__mro__ if base.__name__ == "FSDPModule")


def _own(kind: type) -> type:
    """Return the class that a module has without `fully_shard`."""
    return kind.__mro__[kind.__mro__.index(_base(kind)) + 1]
