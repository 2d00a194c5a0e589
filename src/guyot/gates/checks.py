"""What must be true of a user's model before gates are put on it."""

from __future__ import annotations

import torch.distributed as dist
from torch import nn

from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.inputs import check_module
from guyot.core.locate import wrapper_of
from guyot.core.parallel import ORDER, check_sharding, check_wrapper, is_sharded, sharded_modules
from guyot.core.warning import warn
from guyot.gates.module import Gated


def check_model(model: nn.Module) -> None:
    """Refuse a model that gates cannot be put on.

    Raises:
        MisconfiguredError: another run has gates on it.
        UnsupportedError: surgery cannot follow its wrapper, or how it is sharded.
    """
    check_module(model)
    if any(isinstance(module, Gated) for module in model.modules()):
        raise MisconfiguredError(
            f"{type(model).__name__} still has the gates of another Discovery: call abandon() or "
            "finish() of that one, or make a new model"
        )
    if (wrapper := wrapper_of(model)) is not None:
        check_wrapper(wrapper)
    if any(isinstance(module, nn.DataParallel) for module in model.modules()):
        raise UnsupportedError(
            "DataParallel copies the model to every device in every step, and gates are not in "
            "the copies: use DistributedDataParallel, with one process per device"
        )
    check_sharding(model)


def check_together(model: nn.Module) -> None:
    """Warn of a model that several processes would cut each in its own way."""
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes > 1 and wrapper_of(model) is None and not sharded_modules(model):
        warn(
            f"there are {processes} processes, but {type(model).__name__} is neither wrapped in "
            "DistributedDataParallel nor sharded by fully_shard: each process discovers a "
            "structure of its own; to train one model together, wrap it before you make the "
            "Discovery",
        )


GATHER = (
    "gather the weights into an unsharded model: get_model_state_dict of "
    "torch.distributed.checkpoint.state_dict with full_state_dict=True; docs/parallel.md shows it"
)


def check_whole(model: nn.Module, way_out: str = GATHER) -> None:
    """Refuse a model whose parameters are sharded.

    Raises:
        UnsupportedError: they are.
    """
    if found := [name for name, parameter in model.named_parameters() if is_sharded(parameter)]:
        raise UnsupportedError(f"{found[0]} is sharded over processes: {way_out}")


def check_as_before(model: nn.Module, sharded: bool) -> None:
    """Refuse a model that was sharded, or sharded in another way, during a run.

    Args:
        model: of a run.
        sharded: it was so when the run began.

    Raises:
        UnsupportedError: surgery cannot follow.
    """
    if sharded:
        check_sharding(model)
    else:
        check_whole(model, f"that must happen before the run begins; call {ORDER}")
