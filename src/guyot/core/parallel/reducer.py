"""Surgery under `DistributedDataParallel`: its reducer is rebuilt, in the same wrapper.

The reducer averages gradients over processes. It holds buckets of the parameters' sizes and a hook
on every parameter's gradient accumulator, both made for the shapes at the time. PyTorch offers no
public way to change them, so `guyot.core.torch_private` does what the wrapper does when it is
unpickled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator

from torch.nn.parallel import DistributedDataParallel

from guyot.core.errors import UnsupportedError
from guyot.core.torch_private import (
    built_in_hook,
    check_reducer,
    communication_hooks,
    keeps_copies,
    rebuild_reducer,
    remove_reducer_hooks,
)


def check_wrapper(wrapper: DistributedDataParallel) -> None:
    """Refuse a wrapper whose reducer cannot be rebuilt.

    Raises:
        UnsupportedError: it was made with arguments that keep more state of the parameters'
            shapes than the reducer does, or PyTorch changed its private parts.
    """
    check_reducer(wrapper)
    why = keeps_copies(wrapper)
    if wrapper.mixed_precision is not None:
        why = "mixed_precision keeps copies of the parameters; use torch.autocast"
    if why is not None:
        raise UnsupportedError(f"DistributedDataParallel with {why}")
    hooks = communication_hooks(wrapper)
    if not hooks and (name := built_in_hook(wrapper)):
        raise UnsupportedError(
            f"the built-in communication hook {name} would be lost when the wrapper gets smaller: "
            "register one of torch.distributed.algorithms.ddp_comm_hooks by register_comm_hook"
        )
    for hook, state in hooks:
        if type(state).__name__ == "PowerSGDState":
            raise UnsupportedError(
                f"the communication hook {getattr(hook, '__name__', hook)} keeps errors of the "
                "gradients' shapes: use another hook, such as bf16_compress_hook"
            )


@contextlib.contextmanager
def resized(wrapper: DistributedDataParallel | None) -> Generator[None]:
    """Take the wrapper's hooks off; put them on the parameters and buffers there are afterwards.

    The wrapper stays the object it was, with its settings and communication hooks. Nothing is
    sent: every rank must do the same by itself. To be used between two iterations.

    Args:
        wrapper: around the module that changes; None: there is none.
    """
    if wrapper is None:
        yield
        return
    remove_reducer_hooks(wrapper)
    try:
        yield
    finally:
        rebuild_reducer(wrapper)
