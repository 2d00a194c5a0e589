"""Tensors that `fully_shard` (FSDP2) spreads over processes: gathered, cut, and spread again.

Each process holds some rows of every parameter, of its gradient and of its optimiser's state, as
`DTensor`s. What needs a whole tensor gathers it, one at a time.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from guyot.core.errors import UnsupportedError

_PIECES = 4
"""In how many pieces the rows of a large tensor are gathered."""
_LARGE = 2**20
"""Entries from which on a tensor is gathered in pieces."""


def is_sharded(tensor: object) -> bool:
    """Return whether a tensor is a `DTensor`, of which this process holds a part."""
    return hasattr(tensor, "device_mesh")


class Share(NamedTuple):
    """Say which part of sharded tensors a process holds.

    Attributes:
        number: of the part, from 0.
        parts: how many there are.
        first: it is the first of the processes that hold this part.
    """

    number: int = 0
    parts: int = 1
    first: bool = True


def share_of(tensor: Any) -> Share:
    """Return which part of a sharded tensor this process holds.

    Raises:
        UnsupportedError: the tensor is not spread by its rows, the first ones to the first process.
    """
    *others, last = tensor.placements
    if not (all(placement.is_replicate() for placement in others) and last.is_shard(0)):
        raise UnsupportedError(
            f"a tensor of shape {tuple(tensor.shape)} is placed as {tensor.placements}: guyot "
            "follows shards of dimension 0, as fully_shard makes them without shard_placement_fn"
        )
    *replica, number = tensor.device_mesh.get_coordinate()
    return Share(number, tensor.device_mesh.size(len(replica)), not any(replica))


@torch.no_grad()
def gathered(tensor: Tensor) -> Tensor:
    """Return a tensor with the rows of all processes; collective if it is sharded.

    A tensor that is whole comes back as it is.
    """
    if not is_sharded(tensor):
        return tensor
    return all_rows(rows_here(tensor), len(tensor), tensor)


def rows_here(sharded: Any) -> Tensor:
    """Return the rows that this process holds of a sharded tensor; a view."""
    return sharded.detach().to_local()


def all_rows(rows: Tensor, length: int, like: Any) -> Tensor:
    """Return the rows of all processes; collective.

    Args:
        rows: of this process.
        length: how many there are in all.
        like: a tensor with as many rows that is sharded over the same processes.
    """
    mesh, last = like.device_mesh, like.device_mesh.ndim - 1
    ranks = mesh.size(last)
    most = -(-length // ranks)
    if len(rows) < most:
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        rows = padded
    whole = rows.new_empty(most * ranks, *rows.shape[1:])
    gather: Any = vars(dist).get("all_gather_single") or vars(dist)["all_gather_into_tensor"]
    gather(whole, rows.contiguous(), group=mesh.get_group(last))
    return whole[:length]


def taken_rows(rows: Tensor, taken: Tensor, like: Any) -> Tensor:
    """Return this process's part of some of the rows of all processes; collective.

    They are gathered in pieces of their columns, of which one is in memory at a time.

    Args:
        rows: of this process.
        taken: which of all rows, in their new order, int64.
        like: a sharded tensor of all rows.
    """
    mine = taken[own_rows(len(taken), like)].to(rows.device)
    entries = rows.shape[1:].numel()
    found = rows.new_empty(len(mine), entries)
    columns = entries if len(like) * entries < _LARGE else -(-entries // _PIECES)
    pieces = zip(
        rows.reshape(len(rows), entries).split(columns, dim=1),
        found.split(columns, dim=1),
        strict=True,
    )
    for here, there in pieces:
        there.copy_(all_rows(here, len(like), like).index_select(0, mine))
    return found.view(len(mine), *rows.shape[1:])


def own_rows(length: int, like: Any) -> slice:
    """Return which of so many rows this process holds; the last processes may hold fewer."""
    mesh, last = like.device_mesh, like.device_mesh.ndim - 1
    most = -(-length // mesh.size(last))
    start = min(mesh.get_local_rank(last) * most, length)
    return slice(start, min(start + most, length))


def from_rows(rows: Tensor, length: int, like: Any) -> Tensor:
    """Return a sharded tensor; nothing is sent.

    Args:
        rows: of this process.
        length: how many there are in all.
        like: is sharded in the same way.
    """
    shape = torch.Size((length, *rows.shape[1:]))
    return type(like.detach()).from_local(
        rows.contiguous(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=shape,
        stride=torch.empty(shape, device="meta").stride(),
    )


def spread_like(whole: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor sharded as another is, or as it is; nothing is sent."""
    if not is_sharded(like):
        return whole
    rows = whole.detach()[own_rows(len(whole), like)]
    return from_rows(rows.to(like.device, copy=True), len(whole), like)


@torch.no_grad()
def overwrite(tensor: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded; nothing is sent."""
    if is_sharded(tensor):
        rows_here(tensor).copy_(whole[own_rows(len(tensor), tensor)])
    else:
        tensor.copy_(whole)
