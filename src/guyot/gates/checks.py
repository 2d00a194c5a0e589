"""What must be true of a user's model before gates are put on it."""

from __future__ import annotations

import sys

import torch.distributed as dist
from torch import nn

from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.locate import wrapper_of
from guyot.core.parallel import check_wrapper
from guyot.core.warning import warn
from guyot.gates.module import Gated


def check_model(model: nn.Module) -> None:
    """Refuse a model that another run has gates on, or whose wrapper surgery cannot follow."""
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
    check_whole(model)


def check_together(model: nn.Module) -> None:
    """Warn of a model that several processes would cut each in its own way."""
    processes = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if processes > 1 and wrapper_of(model) is None:
        warn(
            f"there are {processes} processes, but {type(model).__name__} is not wrapped in "
            "DistributedDataParallel: each process discovers a structure of its own; to train one "
            "model together, wrap it before you make the Discovery",
        )


def check_whole(model: nn.Module) -> None:
    """Refuse a model whose parameters are sharded; that may also happen during a run."""
    if sharded := [name for name, p in model.named_parameters() if _sharded(p)]:
        raise UnsupportedError(
            f"{sharded[0]} is sharded over processes (FSDP, tensor parallelism), and surgery "
            "needs whole parameters: use DistributedDataParallel; docs/parallel.md has the plan"
        )


def _sharded(parameter: nn.Parameter) -> bool:
    """Return whether a parameter is a `DTensor`, or FSDP's flat one."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    flat = fsdp is not None and isinstance(parameter, fsdp.FlatParameter)
    return flat or hasattr(parameter, "device_mesh")
