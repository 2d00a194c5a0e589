"""Surgery under `DistributedDataParallel`: its reducer is made anew, in the same wrapper.

The reducer averages gradients over processes. It holds buckets of the parameters' sizes and a hook
on every parameter's gradient accumulator, both made for the shapes at the time. PyTorch offers no
public way to change them. Hence this file, the only one that uses the wrapper's private parts:
`_remove_autograd_hooks`, `_build_params_for_reducer`, `_build_debug_param_to_name_mapping` and
`_ddp_init_helper`, which the wrapper itself uses when it is unpickled (`__setstate__`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any

from torch.nn.parallel import DistributedDataParallel

from guyot.core.errors import UnsupportedError

_PARTS = (
    "_remove_autograd_hooks",
    "_build_params_for_reducer",
    "_build_debug_param_to_name_mapping",
    "_ddp_init_helper",
)
_REFUSED = {
    "mixed_precision": "keeps copies of the parameters; use torch.autocast",
    "_delay_all_reduce_params": "keeps a buffer of the parameters' sizes; leave it out",
    "_use_python_reducer": "compiles the parameters' sizes in; use another optimize_ddp mode",
}
"""Private or public attributes that are set when a wrapper does what surgery cannot follow."""


def check_wrapper(wrapper: DistributedDataParallel) -> None:
    """Refuse a wrapper whose reducer cannot be made anew.

    Raises:
        UnsupportedError: it was made with arguments that keep more state of the parameters'
            shapes than the reducer does, or PyTorch changed its private parts.
    """
    missing = [name for name in _PARTS if not hasattr(wrapper, name)]
    if missing:
        raise UnsupportedError(
            f"this version of PyTorch has no DistributedDataParallel.{missing[0]}, which guyot "
            "needs to change a wrapped model: train in one process, or with another version"
        )
    for name, why in _REFUSED.items():
        if getattr(wrapper, name, None):
            raise UnsupportedError(f"DistributedDataParallel with {name.removeprefix('_')} {why}")
    hooks = _hooks(wrapper)
    if not hooks and (name := wrapper._get_ddp_logging_data().get("comm_hook")):  # pyright: ignore[reportPrivateUsage]
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
    private: Any = wrapper
    private._remove_autograd_hooks()
    try:
        yield
    finally:
        parameters, sparse = private._build_params_for_reducer()
        names = private._build_debug_param_to_name_mapping(parameters)
        private._ddp_init_helper(parameters, sparse, names, private.static_graph)
        private._has_rebuilt_buckets = False
        left = {id(parameter) for parameter in wrapper.module.parameters()}
        private._module_parameters = [p for p in private._module_parameters if id(p) in left]
        if private.static_graph:
            private.reducer._set_static_graph()
            private.logger._set_static_graph()
            private._static_graph_delay_allreduce_enqueued = False
        hooks = _hooks(wrapper)
        private._comm_hooks = []
        for hook, state in hooks:
            wrapper.register_comm_hook(state, hook)


def _hooks(wrapper: DistributedDataParallel) -> list[tuple[Any, object]]:
    return [*getattr(wrapper, "_comm_hooks", [])]
