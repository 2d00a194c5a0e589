"""Every private name of PyTorch that guyot uses, with one accessor each.

A private name may move in any release of PyTorch. Each is looked up when it is needed, and one that
is gone raises an error that names it, this version of PyTorch and what works without it.

`_parameters`, `_buffers` and `_modules` of an `nn.Module` are not here: they have had these names
since the first release, and pickled modules, TorchScript and `torch.func` depend on them.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Generator
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from guyot.core.errors import UnsupportedError

if TYPE_CHECKING:
    from torch.nn.parallel import DistributedDataParallel

RULES = "models work, rules for operators of your own do not"
CHECKS = "find_structures(..., verify=False) does without it"
EXPORT = "everything but guyot.export works"
REDUCER = "train in one process"

OVERLOAD: type[Any] = type(torch.ops.aten.relu.default)
"""The class of operator overloads, such as `torch.ops.aten.relu.default`."""

PACKET: type[Any] = type(torch.ops.aten.relu)
"""The class of operators with all their overloads, such as `torch.ops.aten.relu`."""


def private(owner: object, name: str, without: str) -> Any:
    """Return a private attribute of something of PyTorch's.

    Args:
        owner: the object.
        name: of its attribute.
        without: what works without the attribute, for the error.

    Raises:
        UnsupportedError: this version of PyTorch has no such attribute.
    """
    try:
        return getattr(owner, name)
    except AttributeError as error:
        module = isinstance(owner, ModuleType)
        holder = owner.__name__ if module or isinstance(owner, type) else type(owner).__name__
        raise _moved(f"{holder}.{name}", without) from error


def _moved(name: str, without: str) -> UnsupportedError:
    return UnsupportedError(
        f"PyTorch {torch.__version__} has no {name}, a private name that guyot uses: {without}; "
        "or install a version that guyot is tested with"
    )


def _from_module(module: str, name: str, without: str) -> Any:
    """Return a name of a private module of PyTorch's."""
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise _moved(module, without) from error
    return private(found, name, without)


def is_operator(target: object) -> bool:
    """Return whether an object is an operator as `torch.export` names it."""
    return isinstance(target, _from_module("torch._ops", "OperatorBase", RULES))


def schema_of(target: object) -> Any:
    """Return the schema of an operator overload; None of anything else.

    Example:
        >>> [argument.name for argument in schema_of(torch.ops.aten.t.default).arguments]
        ['self']
    """
    if not isinstance(target, OVERLOAD):
        return None
    return private(target, "_schema", "nothing of guyot does")


def lazily_cloned(tensor: Tensor) -> Tensor:
    """Return a clone that has memory of its own only once one of the two is written."""
    return private(tensor, "_lazy_clone", "nothing of guyot does")()


def weightless() -> Any:
    """Return a context in which tensors are made that have a device, shape and dtype, no numbers.

    Example:
        >>> with weightless() as mode:
        ...     zeros = torch.zeros(10**12)
        >>> zeros.shape, zeros.device
        (torch.Size([1000000000000]), device(type='cpu'))
    """
    module = "torch._subclasses.fake_tensor"
    without = f"{CHECKS}, for models that have weights"
    return _from_module(module, "FakeTensorMode", without)(allow_non_fake_inputs=True)


def custom_overload(target: object) -> Any:
    """Return the overload that `torch.library.custom_op` defined; None of anything else."""
    definition = _from_module("torch._library.custom_ops", "CustomOpDef", RULES)
    return private(target, "_opoverload", RULES) if isinstance(target, definition) else None


def compiled_module(model: nn.Module) -> nn.Module | None:
    """Return the module that `torch.compile` wrapped; None of any other module."""
    frames = sys.modules.get("torch._dynamo.eval_frame")
    if frames is None:  # nothing was compiled
        return None
    wrapper = private(frames, "OptimizedModule", "models that torch.compile has not wrapped")
    if not isinstance(model, wrapper):
        return None
    return private(model, "_orig_mod", "pass the model that you gave to torch.compile")


def compiles_calls(module: nn.Module) -> bool:
    """Say whether `module.compile()` was called."""
    return private(module, "_compiled_call_impl", "torch.compile(model)") is not None


def convolve(module: nn.Module, read: Tensor, weight: Tensor) -> Tensor:
    """Return what a convolution computes with another weight, padded as its mode says."""
    convolution = private(module, "_conv_forward", "nothing that has convolutions")
    return convolution(read, weight, module.bias)


def computes_as(kind: type[nn.Module], known: type[nn.Module]) -> bool:
    """Return whether a class computes what another does: it overrides no method for that."""
    names = ["forward"]
    if issubclass(known, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        private(known, "_conv_forward", "nothing that has convolutions")
        names.append("_conv_forward")
    return all(getattr(kind, name, None) is getattr(known, name) for name in names)


def batch_norms(model: nn.Module) -> list[nn.BatchNorm2d]:
    """Return the BatchNorms of a model, of any rank; all have the attributes of one for images."""
    kind = _from_module("torch.nn.modules.batchnorm", "_BatchNorm", "models without BatchNorm")
    return [cast(nn.BatchNorm2d, module) for module in model.modules() if isinstance(module, kind)]


def leave_fast_path(attention: nn.MultiheadAttention) -> None:
    """Keep the modules that call an attention from computing it without its `forward`."""
    name = "_qkv_same_embed_dim"
    private(attention, name, "nothing that loses heads of nn.MultiheadAttention")
    setattr(attention, name, False)


@contextlib.contextmanager
def attributes_as_weights(module: nn.RNNBase) -> Generator[None]:
    """Let a recurrent module compute with its attributes, and keep its own list of parameters.

    Tensors that are computed in its attributes would stay in the list, and could not be copied.
    """
    without = "nothing that has recurrent layers"
    parameters, names = (
        private(module, name, without) for name in ("_flat_weights", "_flat_weights_names")
    )
    vars(module)["_flat_weights"] = [getattr(module, name) for name in names]
    try:
        yield
    finally:
        vars(module)["_flat_weights"] = parameters


def pytree() -> ModuleType:
    """Return the functions that flatten nests of containers as `torch.export` does."""
    try:
        return importlib.import_module("torch.utils._pytree")
    except ImportError as error:
        raise _moved("torch.utils._pytree", EXPORT) from error


def dispatching(handler: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> Any:
    """Return a context in which a function runs every operator.

    Args:
        handler: takes the operator, its arguments and its keyword arguments.
    """
    mode = _from_module("torch.utils._python_dispatch", "TorchDispatchMode", CHECKS)

    class Mode(mode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
        ) -> Any:
            return handler(func, args, dict(kwargs or {}))

    return Mode()


def version_of(tensor: Tensor) -> int:
    """Return how often a tensor was written into in place."""
    return int(private(tensor, "_version", CHECKS))


def has_forward_hooks(module: nn.Module) -> bool:
    """Say whether hooks look at what a module returns."""
    return bool(private(module, "_forward_hooks", CHECKS))


class Moving(nn.Module):
    """A module that is told when it goes to another device or dtype."""

    def moved(self, change: Callable[[Tensor], Tensor]) -> None:
        """Apply a change that every tensor of the module undergoes."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Moving:
        self.moved(fn)
        return super()._apply(fn, recurse)


def communication_hooks(wrapper: DistributedDataParallel) -> list[tuple[Any, object]]:
    """Return the registered communication hooks, each with its state."""
    return [*private(wrapper, "_comm_hooks", REDUCER)]


def built_in_hook(wrapper: DistributedDataParallel) -> str | None:
    """Return the name of the communication hook in C++ that a wrapper has."""
    return private(wrapper, "_get_ddp_logging_data", REDUCER)().get("comm_hook") or None


REDUCER_PARTS = (
    "_build_debug_param_to_name_mapping",
    "_build_params_for_reducer",
    "_ddp_init_helper",
    "_has_rebuilt_buckets",
    "_module_parameters",
    "_remove_autograd_hooks",
    "_delay_all_reduce_params",
    "_use_python_reducer",
)
"""What a wrapper has and its reducer is rebuilt with, or refused for."""


def check_reducer(wrapper: DistributedDataParallel) -> None:
    """Refuse a wrapper without the parts that its reducer is rebuilt with.

    Raises:
        UnsupportedError: this version of PyTorch has not all of them.
    """
    for name in REDUCER_PARTS:
        private(wrapper, name, REDUCER)
    if wrapper.static_graph:
        private(wrapper.reducer, "_set_static_graph", REDUCER)
        private(wrapper.logger, "_set_static_graph", REDUCER)


def keeps_copies(wrapper: DistributedDataParallel) -> str | None:
    """Return why a wrapper keeps more of the parameters' shapes than its reducer does, or None."""
    if private(wrapper, "_delay_all_reduce_params", REDUCER):
        return "delay_all_reduce_params keeps a buffer of the parameters' sizes; leave it out"
    if private(wrapper, "_use_python_reducer", REDUCER):
        return "use_python_reducer compiles the parameters' sizes in; use another optimize_ddp mode"
    return None


def remove_reducer_hooks(wrapper: DistributedDataParallel) -> None:
    """Take the hooks of a wrapper's reducer off the parameters."""
    private(wrapper, "_remove_autograd_hooks", REDUCER)()


def rebuild_reducer(wrapper: DistributedDataParallel) -> None:
    """Give a wrapper a reducer for the parameters that its module has now.

    These are the steps by which the wrapper makes its reducer when it is unpickled.
    """
    parts: Any = wrapper
    parameters, sparse = parts._build_params_for_reducer()
    names = parts._build_debug_param_to_name_mapping(parameters)
    parts._ddp_init_helper(parameters, sparse, names, parts.static_graph)
    parts._has_rebuilt_buckets = False
    left = {id(parameter) for parameter in wrapper.module.parameters()}
    parts._module_parameters = [p for p in parts._module_parameters if id(p) in left]
    if parts.static_graph:
        parts.reducer._set_static_graph()
        parts.logger._set_static_graph()
        parts._static_graph_delay_allreduce_enqueued = False
    hooks = communication_hooks(wrapper)
    parts._comm_hooks = []
    for hook, state in hooks:
        wrapper.register_comm_hook(state, hook)
