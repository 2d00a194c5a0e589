"""Private names of PyTorch: a test per name says which one moved, and a moved one is no default."""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel

from guyot import UnsupportedError
from guyot.core import torch_private
from guyot.core.locate import unwrap

aten = torch.ops.aten


@torch.library.custom_op("guyot_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@pytest.fixture
def wrapper(one_process: None) -> DistributedDataParallel:
    return DistributedDataParallel(nn.Linear(3, 2), static_graph=True)


@pytest.fixture
def sharded(one_process: None) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(3, 2), nn.Sequential(nn.Linear(2, 2)))
    for module in (model[1], model):
        fully_shard(module, mesh=init_device_mesh("cpu", (1,)))
    return model


def test_operators_are_of_their_classes() -> None:
    assert isinstance(aten.mm.default, torch_private.OVERLOAD)
    assert isinstance(aten.mm, torch_private.PACKET)
    assert torch_private.is_operator(aten.mm.default)
    assert torch_private.is_operator(torch.ops.higher_order.wrap_with_autocast)
    assert not torch_private.is_operator(torch.relu)


def test_schema() -> None:
    names = [argument.name for argument in torch_private.schema_of(aten.addmm.default).arguments]
    assert names == ["self", "mat1", "mat2", "beta", "alpha"]
    assert torch_private.schema_of(aten.relu_.default).is_mutable
    assert torch_private.schema_of(len) is None


def test_version_of() -> None:
    weight = nn.Parameter(torch.ones(2))
    before = torch_private.version_of(weight)
    with torch.no_grad():
        weight.mul_(2)
    assert torch_private.version_of(weight) == before + 1


def test_has_forward_hooks() -> None:
    module = nn.ReLU()
    assert not torch_private.has_forward_hooks(module)
    module.register_forward_hook(lambda *_: None)
    assert torch_private.has_forward_hooks(module)


def test_weightless() -> None:
    with torch_private.weightless():
        made = torch.empty(10**6, 10**6) @ torch.empty(10**6, 3)
    assert made.shape == (10**6, 3)
    assert made.device.type == "cpu"


def test_custom_op() -> None:
    assert torch_private.custom_overload(twice) is torch.ops.guyot_tests.twice.default
    assert torch_private.custom_overload(torch.relu) is None


def test_compiled_module() -> None:
    module = nn.Linear(2, 2)
    assert torch_private.compiled_module(module) is None
    assert torch_private.compiled_module(torch.compile(module)) is module


def test_compiles_calls() -> None:
    module = nn.Linear(2, 2)
    assert not torch_private.compiles_calls(module)
    module.compile(backend="eager")
    assert torch_private.compiles_calls(module)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_convolve(mode: str) -> None:
    module = nn.Conv2d(3, 4, 3, padding=1, padding_mode=mode)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(torch_private.convolve(module, x, module.weight), module(x))
    twice_as_much = torch_private.convolve(module, x, 2 * module.weight)
    torch.testing.assert_close(
        twice_as_much - module.bias.view(-1, 1, 1), 2 * (module(x) - module.bias.view(-1, 1, 1))
    )


def test_computes_as() -> None:
    class Named(nn.Conv2d):
        pass

    class Other(nn.Conv2d):
        def _conv_forward(self, *_: Any) -> torch.Tensor:
            return torch.zeros(1)

    assert torch_private.computes_as(Named, nn.Conv2d)
    assert not torch_private.computes_as(Other, nn.Conv2d)
    assert not torch_private.computes_as(nn.Bilinear, nn.Linear)


def test_batch_norms() -> None:
    norms = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)]
    others = [nn.InstanceNorm2d(2), nn.GroupNorm(1, 2), nn.LayerNorm(2), nn.Linear(2, 2)]
    assert torch_private.batch_norms(nn.Sequential(*norms, *others)) == norms


def test_leave_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.TransformerEncoderLayer(4, 2, batch_first=True).eval()
    called: list[bool] = []

    def forward(query: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, None]:
        called.append(True)
        return query, None

    monkeypatch.setattr(layer.self_attn, "forward", forward)
    with torch.no_grad():
        layer(torch.randn(2, 3, 4))
        assert not called, "nothing is to be left: PyTorch has no fast path any more"
        torch_private.leave_fast_path(layer.self_attn)
        layer(torch.randn(2, 3, 4))
    assert called == [True]


def test_attributes_as_weights() -> None:
    class Silent(nn.GRU):
        @property
        def weight_hh_l0(self) -> torch.Tensor:
            return torch.zeros(9, 3)

    torch.manual_seed(0)
    module, x = nn.GRU(2, 3), torch.randn(4, 1, 2)
    found = module(x)[0]
    module.__class__ = Silent
    with torch_private.attributes_as_weights(module):
        assert not torch.equal(module(x)[0], found)
    module.__class__ = nn.GRU
    torch.testing.assert_close(copy.deepcopy(module)(x)[0], found)
    torch.testing.assert_close(module(x)[0], found)


def test_pytree() -> None:
    leaves, spec = torch_private.pytree().tree_flatten({"a": (1, [2])})
    assert leaves == torch_private.pytree().tree_leaves({"a": (1, [2])}) == [1, 2]
    assert torch_private.pytree().tree_unflatten([3, 4], spec) == {"a": (3, [4])}
    paths = torch_private.pytree().tree_flatten_with_path({"a": 1})[0]
    assert [leaf for _, leaf in paths] == [1]


def test_dispatching() -> None:
    def double(operator: Any, args: Any, kwargs: Any) -> Any:
        result = operator(*args, **kwargs)
        return 2 * result if operator is aten.relu.default else result

    with torch_private.dispatching(double):
        found = torch.ones(2).relu()
    assert found.tolist() == [2, 2]


@pytest.mark.parametrize("name", torch_private.REDUCER_PARTS)
def test_parts_of_the_reducer(wrapper: DistributedDataParallel, name: str) -> None:
    assert hasattr(wrapper, name), f"DistributedDataParallel.{name} moved in {torch.__version__}"


def test_the_reducer_is_rebuilt(wrapper: DistributedDataParallel) -> None:
    torch_private.check_reducer(wrapper)
    assert torch_private.communication_hooks(wrapper) == []
    assert torch_private.built_in_hook(wrapper) is None
    assert torch_private.keeps_copies(wrapper) is None
    source = inspect.getsource(DistributedDataParallel)
    assert "_static_graph_delay_allreduce_enqueued" in source
    torch_private.remove_reducer_hooks(wrapper)
    wrapper.module.weight = nn.Parameter(wrapper.module.weight[:, :2].detach().clone())
    torch_private.rebuild_reducer(wrapper)
    wrapper(torch.ones(4, 2)).sum().backward()
    torch.testing.assert_close(wrapper.module.weight.grad, torch.full((2, 2), 4.0))


def test_parts_of_sharding(sharded: nn.Sequential) -> None:
    modules: list[Any] = [sharded, sharded[1]]
    states = [module._get_fsdp_state() for module in modules]
    for state in states:
        missing = [name for name in torch_private.STATE_PARTS if not hasattr(state, name)]
        assert not missing, f"of FSDPState in {torch.__version__}"
        assert state._is_root is None
    records = torch_private.shard_records(modules)
    assert [record.sharded_param for record in records] == [*sharded.parameters()]
    for record in records:
        missing = [name for name in torch_private.RECORD_PARTS if not hasattr(record, name)]
        assert not missing, f"of FSDPParam in {torch.__version__}"
    torch_private.begin_sharding(modules)
    assert [state._is_root for state in states] == [True, False]


def test_records_of_sharding_are_renewed(sharded: nn.Sequential) -> None:
    modules: list[Any] = [sharded, sharded[1]]
    sharded(torch.ones(4, 3)).sum().backward()
    before = torch_private.shard_records(modules)
    held = before[0]._sharded_param_data.untyped_storage()
    torch_private.release_shards(modules)
    assert before[0]._sharded_param_data.untyped_storage().data_ptr() != held.data_ptr()
    weight: Any = sharded[0].weight
    fewer = weight.from_local(weight.to_local()[:, :2].detach().clone(), weight.device_mesh)
    torch.utils.swap_tensors(weight, nn.Parameter(fewer))
    sharded[1] = nn.Identity()
    torch_private.renew_shards(sharded, modules)
    records = torch_private.shard_records([sharded])
    assert [record.sharded_param for record in records] == [*sharded.parameters()]
    assert len(sharded._get_fsdp_state()._state_ctx.all_states) == 1
    sharded(torch.ones(4, 2)).sum().backward()
    torch.testing.assert_close(weight.grad.full_tensor(), torch.full((2, 2), 4.0))


def test_notes_and_hooks_of_sharding_are_hidden(sharded: nn.Sequential) -> None:
    sharded[0].register_forward_hook(own := lambda *_: None)
    with torch_private.hidden_sharding(sharded):
        assert [*sharded[0]._forward_hooks.values()] == [own]
        assert not sharded._forward_hooks and not sharded._forward_pre_hooks
        assert not [name for name in vars(sharded) if "fsdp" in name or "composable" in name]
    assert sharded._forward_hooks and sharded._forward_pre_hooks
    assert isinstance(sharded, FSDPModule)
    sharded(torch.ones(1, 3)).sum().backward()


def gone_state(patch: pytest.MonkeyPatch) -> object:
    class Moved(FSDPModule):
        _get_fsdp_state = property()

    return torch_private.shard_records([object.__new__(Moved)])


def gone_schema(_: pytest.MonkeyPatch) -> object:
    return torch_private.private(aten.mm.default, "_schema_that_moved", "little")


def gone_wrapped(patch: pytest.MonkeyPatch) -> object:
    class Empty:
        pass

    frames = SimpleNamespace(OptimizedModule=Empty)
    patch.setitem(sys.modules, "torch._dynamo.eval_frame", frames)
    return unwrap(Empty())  # pyright: ignore[reportArgumentType]


def gone_class(patch: pytest.MonkeyPatch) -> object:
    import torch._library.custom_ops as definitions

    patch.delattr(definitions, "CustomOpDef")
    return torch_private.custom_overload(twice)


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (gone_schema, r"OpOverload._schema_that_moved"),
        (gone_wrapped, r"Empty._orig_mod"),
        (gone_class, r"torch._library.custom_ops.CustomOpDef"),
        (gone_state, r"Moved._get_fsdp_state"),
    ],
)
def test_a_name_that_is_gone_is_named(
    monkeypatch: pytest.MonkeyPatch, ask: Callable[[pytest.MonkeyPatch], object], name: str
) -> None:
    with pytest.raises(UnsupportedError, match=rf"PyTorch \S+ has no {name}, .*; or install"):
        ask(monkeypatch)


def test_a_wrapper_whose_parts_moved_is_refused(wrapper: DistributedDataParallel) -> None:
    del wrapper._comm_hooks
    with pytest.raises(UnsupportedError, match=r"DistributedDataParallel._comm_hooks.*one process"):
        torch_private.communication_hooks(wrapper)
