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
from collections.abc import Callable, Generator, Iterable, Sequence
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
SHARDS = "train with DistributedDataParallel"

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


STATE_PARTS = (
    "_fsdp_param_groups",
    "_is_root",
    "_lazy_init",
    "_modules",
    "_state_ctx",
    "_states_to_backward_prefetch",
    "_states_to_forward_prefetch",
)
"""What `fully_shard` keeps for a module, and its records are renewed with."""

RECORD_PARTS = (
    "_module_info",
    "_orig_size",
    "_param_fqn",
    "_post_load_hook_handle",
    "_setattr_on_modules",
    "_sharded_param_data",
    "device",
    "init_dtype_attrs",
    "is_dtensor",
    "mesh_info",
    "mp_policy",
    "offload_to_cpu",
    "post_forward_mesh_info",
    "reset_sharded_param",
    "sharded_param",
)
"""What `fully_shard` keeps for a parameter, and its record is renewed with."""


def _shard_states(modules: Iterable[Any]) -> list[Any]:
    """Return what `fully_shard` keeps for modules, once each."""
    states = {id(s): s for s in (private(m, "_get_fsdp_state", SHARDS)() for m in modules)}
    for state in states.values():
        for name in STATE_PARTS:
            private(state, name, SHARDS)
    return [*states.values()]


def shard_records(modules: Iterable[Any]) -> list[Any]:
    """Return what `fully_shard` keeps for the parameters of modules.

    Args:
        modules: that it was called for.
    """
    groups = [group for state in _shard_states(modules) for group in state._fsdp_param_groups]
    records = [record for group in groups for record in private(group, "fsdp_params", SHARDS)]
    for record in records:
        for name in RECORD_PARTS:
            private(record, name, SHARDS)
    return records


def begin_sharding(modules: Iterable[Any]) -> None:
    """Let `fully_shard` do what it leaves for the first forward pass, outermost module first."""
    for state in _shard_states(modules):
        if state._is_root is None:
            state._lazy_init()


def release_shards(modules: Iterable[Any]) -> None:
    """Let the records of parameters not hold the memory of shards that are replaced."""
    for record in shard_records(modules):
        record._sharded_param_data = record._sharded_param_data.new_empty(0)


def renew_shards(model: nn.Module, modules: Sequence[Any]) -> None:
    """Let the records of `fully_shard` fit the parameters that are there, after `release_shards`.

    Args:
        model: has changed.
        modules: that `fully_shard` was called for before.
    """
    living = {*model.modules()}
    states = _shard_states(modules)
    for state in states:
        for group in state._fsdp_param_groups:
            there = [record for record in group.fsdp_params if _is_there(record, living)]
            group.fsdp_params = [_renewed(record) for record in there]
        state._fsdp_param_groups[:] = [g for g in state._fsdp_param_groups if g.fsdp_params]
    for state in states:
        for others in (
            state._state_ctx.all_states,
            state._states_to_forward_prefetch,
            state._states_to_backward_prefetch,
        ):
            others[:] = [other for other in others if living.intersection(other._modules)]


def _is_there(record: Any, living: set[nn.Module]) -> bool:
    """Say whether a module still has a parameter; the record forgets modules that have not."""
    info = record._module_info
    names = [info.param_name, *info.shared_param_names]
    there = [
        (module, name)
        for module, name in zip([info.module, *info.shared_modules], names, strict=True)
        if module in living and module._parameters.get(name) is record.sharded_param
    ]
    if not there:
        record._post_load_hook_handle.remove()
        return False
    (info.module, info.param_name), *shared = there
    info.shared_modules, info.shared_param_names = [m for m, _ in shared], [n for _, n in shared]
    return True


def _renewed(record: Any) -> Any:
    """Return a record for a parameter that may have another shape."""
    parameter = record.sharded_param
    if record._orig_size != parameter.shape:
        old = record
        old._post_load_hook_handle.remove()
        blank = nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"))
        policy = _from_module("torch.distributed.fsdp", "OffloadPolicy", SHARDS)()
        info, meshes = old._module_info, (old.mesh_info, old.post_forward_mesh_info)
        record = type(old)(blank, info, *meshes, old.device, None, old.mp_policy, policy)
        record._param_fqn = old._param_fqn
        record.sharded_param = parameter
        record._setattr_on_modules(parameter)
        record.init_dtype_attrs(old.mp_policy)
    record.reset_sharded_param()
    return record


_HOOKS = (
    "_backward_hooks",
    "_backward_pre_hooks",
    "_forward_hooks",
    "_forward_hooks_always_called",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_load_state_dict_post_hooks",
    "_load_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
)
"""The dictionaries of a module's hooks."""

_NOTES = ("__composable_api", "_fsdp", "_is_fsdp")
"""How the attributes begin that `fully_shard` gives modules."""


@contextlib.contextmanager
def hidden_sharding(model: nn.Module) -> Generator[None]:
    """Let a model have no hooks and notes of `fully_shard`.

    Args:
        model: whose parameters are whole for now.
    """
    kept: list[tuple[nn.Module, dict[str, Any]]] = []
    for module in model.modules():
        own = vars(module)
        kept.append((module, dict(own)))
        for name in [name for name in own if name.startswith(_NOTES)]:
            del own[name]
        for name in _HOOKS:
            if own.get(name):
                own[name] = type(own[name])(
                    (key, hook) for key, hook in own[name].items() if not _of_sharding(hook)
                )
    try:
        yield
    finally:
        for module, own in kept:
            vars(module).update(own)


def _of_sharding(hook: Any) -> bool:
    """Say whether `fully_shard` registered a hook."""
    function = getattr(hook, "hook", hook)
    return str(getattr(function, "__module__", "")).startswith("torch.distributed.fsdp")
