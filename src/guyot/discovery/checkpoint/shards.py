"""Tensors in checkpoints: each process writes and reads the rows that it holds of sharded ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from guyot.core.contents import INDEX
from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.parallel import (
    Ranks,
    Share,
    from_rows,
    is_sharded,
    own_rows,
    rows_here,
    share_of,
)
from guyot.core.schema import misfit
from guyot.core.storage import (
    Stored,
    note_in,
    put_together,
    read_json,
    shard_name,
    shards_in,
    stored,
    verify,
)
from guyot.core.trees import mapped

_PLAIN = ("manifest.json", "structure.json", "index.json", "state.json")
"""Files of a checkpoint that process 0 writes."""
TENSORS = ("model", "state")
"""Names of the tensors of a checkpoint, see `guyot.core.storage.stored`."""

_TOGETHER = 2**24
"""Bytes of the weights that are read before a module gets them."""


def share_in(model: nn.Module, ranks: Ranks) -> Share:
    """Return what this process writes of the tensors of a model.

    Raises:
        UnsupportedError: its parameters are not spread by their rows, beginning at rank 0.
    """
    sharded = next(filter(is_sharded, model.parameters()), None)
    if sharded is None:
        return Share(first=not ranks.rank)
    share = share_of(sharded)
    if (share.number == 0 and share.first) != (ranks.rank == 0):
        raise UnsupportedError(
            f"rank {ranks.rank} holds part {share.number} of the parameters: give fully_shard a "
            "mesh in which rank 0 is the first process"
        )
    return share


def held(tensors: Mapping[str, Tensor], share: Share) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Return the tensors that this process writes, and how many rows those have that are split.

    Args:
        tensors: by name, sharded or whole.
        share: of this process.

    Raises:
        UnsupportedError: one is sharded in another way than the model.
    """
    mine: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    for name, tensor in tensors.items():
        if is_sharded(tensor):
            if share_of(tensor) != share:
                raise UnsupportedError(
                    f"{name} is sharded over other processes than the model: give fully_shard the "
                    "same mesh for both"
                )
            mine[name], rows[name] = rows_here(tensor), len(tensor)
        elif share.number == 0:
            mine[name] = tensor
    return mine, rows


def names_of(shards: int) -> list[str]:
    """Return the files of a checkpoint."""
    numbered = [shard_name(name, n, shards) for name in TENSORS for n in range(shards)]
    return [*_PLAIN, *numbered]


def check_files(folder: Path, ranks: Ranks) -> int:
    """Return the number of shards of a checkpoint that is whole; collective.

    Every process reads the plain files, and its part of the others.

    Raises:
        MisconfiguredError: it is not whole; names the file.
        ParallelError: another process found a file that is damaged.
    """
    with ranks.together():
        shards = shards_in(folder)
        numbers = range(shards) if shards == 1 else range(ranks.rank, shards, ranks.size)
        mine = [shard_name(name, number, shards) for name in TENSORS for number in numbers]
        first = shard_name(TENSORS[0], 0, shards)
        step = note_in(folder / first, "step")
        for name in mine:
            other = note_in(folder / name, "step")
            if None not in (step, other) and step != other:
                raise MisconfiguredError(
                    f"{folder / name} is of step {other}, and {first} beside it of step {step}: "
                    "put the file back that was written with the others"
                )
        verify(folder, names_of(shards), [*_PLAIN, *mine])
    return shards


def contents_of(folder: Path, shards: int) -> tuple[dict[str, Stored], Any]:
    """Return the weights and the state of a checkpoint, with tensors that have not been read.

    Raises:
        MisconfiguredError: the index does not fit the files.
    """
    file = folder / "index.json"
    index = read_json(file)
    if wrong := misfit(index, INDEX):
        raise MisconfiguredError(f"{file} is no index that guyot wrote: {wrong}")
    if index["shards"] != shards:
        raise MisconfiguredError(f"{file}: it is of {index['shards']} shards, found {shards}")
    model, state = (stored(folder, name, shards, index[name]) for name in TENSORS)
    return model, put_together(folder, "state", state)


def shapes(tree: Any) -> Any:
    """Return a tree with tensors of the same shapes and dtypes without content."""
    return mapped(tree, lambda tensor: tensor.like(), Stored)


def placed(tensor: Stored, like: Tensor) -> Tensor:
    """Read a tensor, or this process's rows of it if another one is sharded."""
    if not is_sharded(like):
        return tensor.read()
    rows = tensor.read(own_rows(tensor.shape[0], like))
    return from_rows(rows.to(like.device), tensor.shape[0], like)


def placed_as(tree: Any, own: Any) -> Any:
    """Read the tensors of a tree, each sharded as the one at its place in another tree is."""

    def leaf(value: Any, like: Any) -> Any:
        if not isinstance(value, Stored):
            return value
        return placed(value, like) if isinstance(like, Tensor) else value.read()

    return _paired(tree, own, leaf)


def load_weights(module: nn.Module, tensors: Mapping[str, Stored]) -> None:
    """Give a module the weights of its state dict, some at a time."""
    here, some, size = module.state_dict(), dict[str, Tensor](), 0
    for name, tensor in tensors.items():
        some[name] = placed(tensor, here[name])
        rows = rows_here(some[name]) if is_sharded(some[name]) else some[name]
        size += rows.nbytes
        if size >= _TOGETHER:
            module.load_state_dict(some, strict=False)
            some, size = {}, 0
    module.load_state_dict(some, strict=False)


def whole_only(tree: Any) -> Any:
    """Return a tree with None for tensors that are sharded."""
    return mapped(tree, lambda tensor: None if is_sharded(tensor) else tensor)


def completed(tree: Any, common: Any) -> Any:
    """Return what `whole_only` left of a tree, with the tensors that are split in another one."""

    def leaf(value: Any, other: Any) -> Any:
        return other if value is None and isinstance(other, Stored) else value

    return _paired(tree, common, leaf)


def _paired(tree: Any, other: Any, leaf: Callable[[Any, Any], Any]) -> Any:
    """Return a tree of what comes from its leaves and, where there are any, those of another."""
    if isinstance(tree, Mapping):
        there = other if isinstance(other, Mapping) else {}
        return {key: _paired(value, there.get(key), leaf) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        same = isinstance(other, list | tuple) and len(other) == len(tree)
        pairs = zip(tree, other if same else [None] * len(tree), strict=True)
        return type(tree)(_paired(*pair, leaf) for pair in pairs)
    return leaf(tree, other)
