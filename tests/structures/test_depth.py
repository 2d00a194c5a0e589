"""Equal blocks share what is found in one of them: nothing differs from looking at all of them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from architectures import deep_architecture
from cases import random_plan
from compared import differences
from torch import Tensor, fx, nn
from torch.nn import functional as F

from guyot import find_structures
from guyot.core.inputs import Inputs
from guyot.core.types import Structures
from guyot.structures import discover
from guyot.structures.depth import short
from guyot.structures.depth.ledger import Ledger
from guyot.structures.depth.runs import Run, ShortNames, runs_of
from guyot.structures.depth.short import Short, short_of
from guyot.structures.trace import Trace, trace

DEPTH = 5


@pytest.fixture(autouse=True)
def worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small networks share as well."""
    monkeypatch.setattr(short, "WORTH", 0)


def described(found: Trace) -> list[tuple[Any, ...]]:
    """Return all of a graph, with numbers for the nodes."""
    number = {node: n for n, node in enumerate(found.graph.nodes)}
    return [
        (
            node.op,
            node.op == "call_function" and node.target,
            fx.map_arg((node.args, node.kwargs), lambda source: ("node", number[source])),
            list((node.meta.get("nn_module_stack") or {}).items()),
            getattr(node.meta.get("val"), "shape", None),
            found.tensors.get(node.name),
            node.name in found.inputs,
            node.name in found.constants,
        )
        for node in number
    ]


def both(model: nn.Module, inputs: Inputs) -> tuple[Short | None, Structures]:
    """Return the short network and the structures, which are those without one."""
    results: list[tuple[Structures, list[str]]] = []
    found = short_of(model, inputs)
    for replaced in (lambda *_: found, lambda *_: None):
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            patch.setattr(discover, "short_of", replaced)
            structures = find_structures(model, inputs)
            results.append((structures, [str(message.message) for message in said]))
    assert results[0] == results[1]
    return found, results[0][0]


class Residual(nn.Module):
    """A convolution and a norm beside a shortcut."""

    def __init__(self, width: int = 6, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 5, 3, stride, padding=1)
        self.norm, self.act = nn.BatchNorm2d(5), nn.ReLU(inplace=True)
        self.out, self.weight = nn.Conv2d(5, width, 1), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight * self.out(self.act(self.norm(self.conv(x))))


class Stack(nn.Module):
    """Blocks in a list."""

    def __init__(self, block: Callable[[], nn.Module] = Residual, depth: int = DEPTH) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 6, 1)
        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


IMAGE = torch.ones(2, 3, 5, 5)


class Stated(nn.Module):
    """Attention that states its lengths as numbers: `forward` has to be rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 36), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(-1, 25, 3, 2, 6).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        y = self.out(mixed.transpose(1, 2).reshape(-1, 25, 12))
        return x + y.transpose(1, 2).view(-1, 6, 5, 5)


class Guarded(nn.Module):
    """A block that refuses another width than its author's."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Conv2d(6, 8, 1), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.up.weight.shape[0] != 8:
            raise RuntimeError("eight channels are wanted")
        return x + self.down(F.relu(self.up(x)))


class Words(nn.Module):
    """A stack of transformer layers of PyTorch's, with a mask that all of them read."""

    def __init__(self, depth: int = DEPTH) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True, norm_first=True)
        self.table, self.blocks = nn.Embedding(9, 8), nn.TransformerEncoder(layer, depth)
        self.head = nn.Linear(8, 9)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.blocks(self.table(ids)))


@pytest.mark.parametrize("block", [Residual, Stated, Guarded])
def test_the_graph_and_the_structures_are_those_of_the_whole(
    block: Callable[[], nn.Module],
) -> None:
    model = Stack(block)
    found, structures = both(model, IMAGE)
    assert found is not None
    whole = trace(model, IMAGE)
    assert described(found.whole) == described(whole)
    assert (found.whole.calls, found.whole.events) == (whole.calls, whole.events)
    assert len(structures.layers) == DEPTH
    verdicts = {"Residual": len(structures.groups), "Stated": len(structures.restated)}
    refused = [f for f in structures.frozen if f.name.endswith(".up")]
    assert verdicts.get(block.__name__, len(refused)) >= DEPTH
    assert not differences(model, (IMAGE,), structures, random_plan(structures, seed=1))


def test_a_transformer_has_equal_layers() -> None:
    model, ids = Words(), torch.arange(8).view(2, 4)
    found, structures = both(model, ids)
    assert found is not None and len(structures.layers) == 2 * DEPTH
    assert len(found.model.get_submodule("blocks.layers")._modules) == 3  # pyright: ignore[reportPrivateUsage]
    assert not differences(model, (ids,), structures, random_plan(structures, seed=1))


@pytest.mark.parametrize("seed", [3, 8])
def test_structures_of_random_deep_architectures(seed: int) -> None:
    model, inputs = deep_architecture(seed)
    found, structures = both(model, inputs)
    assert found is not None
    assert not differences(model, inputs, structures, random_plan(structures, seed))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_structures_of_many_random_deep_architectures() -> None:
    """All are the same, and a third or more are stacks of blocks that share."""
    shared = [both(*deep_architecture(seed))[0] is not None for seed in range(40)]
    assert sum(shared) >= 13


class Keeping(Stack):
    """The sum of what all blocks make, beside the last."""

    def forward(self, x: Tensor) -> Tensor:
        x, found = self.first(x), []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return self.head((x + found[1]).mean((2, 3)))


class Again(Stack):
    """One block in the middle runs twice."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for number, block in enumerate(self.blocks):
            x = block(block(x)) if number == 3 else block(x)
        return self.head(x.mean((2, 3)))


class Reading(Stack):
    """The weight of one block is read outside of it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.blocks[3].conv.bias.mean()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue, reportArgumentType]


class Counting(Stack):
    """The number of blocks is a factor."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * len(self.blocks)


class OnlyInTraining(Stack):
    """Training reads what one block makes; evaluation does not."""

    def forward(self, x: Tensor) -> Tensor:
        x, kept = self.first(x), x
        for number, block in enumerate(self.blocks):
            x = block(x)
            kept = x if number == 3 else kept
        x = x + kept if self.training else x
        return self.head(x.mean((2, 3)))


class Shared(Stack):
    """Blocks get what the first of them got as well."""

    def __init__(self) -> None:
        super().__init__(Two)

    def forward(self, x: Tensor) -> Tensor:
        x = start = self.first(x)
        for block in self.blocks:
            x = block(x, start)
        return self.head(x.mean((2, 3)))


class Two(Residual):
    """A block with two arguments."""

    def forward(self, x: Tensor, start: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x) + start


@pytest.mark.parametrize("kind", [Keeping, Again, Reading, Counting, OnlyInTraining, Shared])
def test_what_is_no_chain_of_blocks_is_looked_at_as_a_whole(kind: Callable[[], Stack]) -> None:
    model = kind()
    assert runs_of(model)
    assert short_of(model, IMAGE) is None


def test_who_looks_at_an_inner_block_breaks_the_chain() -> None:
    chained: list[bool] = []
    for model in (Stack(), Keeping()):
        ledger = Ledger(runs_of(model))
        with torch.no_grad(), ledger.around(model):
            model(IMAGE)
        chained.append(ledger.chained)
    assert chained == [True, False]


def hooked(model: Stack) -> None:
    model.blocks[len(model.blocks) // 2 + 1].register_forward_hook(
        lambda module, args, output: output * 2
    )


def with_parameter(model: Stack) -> None:
    model.blocks[2].register_parameter("idle", nn.Parameter(torch.ones(1)))


def tied(model: Stack) -> None:
    model.blocks[2].get_submodule("out").weight = model.blocks[0].get_submodule("out").weight


def viewed(model: Stack) -> None:
    weight = model.blocks[0].get_submodule("out").weight
    model.blocks[2].get_submodule("out").weight = nn.Parameter(weight.detach())


def placed_twice(model: Stack) -> None:
    model.blocks[2] = model.blocks[0]


def not_learning(model: Stack) -> None:
    model.blocks[2].get_submodule("norm").weight.requires_grad_(False)  # pyright: ignore[reportCallIssue]


def negative(model: Stack) -> None:
    with torch.no_grad():
        model.blocks[2].get_submodule("conv").weight[0] = -torch.inf  # pyright: ignore[reportIndexIssue]


def set_to(path: str, value: Any) -> Callable[[Stack], None]:
    def change(model: Stack) -> None:
        owner, _, name = path.rpartition(".")
        setattr(model.blocks[2].get_submodule(owner), name, value)

    return change


CHANGES = {
    "hook": hooked,
    "parameter": with_parameter,
    "tied": tied,
    "viewed": viewed,
    "twice": placed_twice,
    "activation": set_to("act", nn.GELU()),
    "in place": set_to("act.inplace", False),
    "attribute": set_to("weight", 2.0),
    "frozen": not_learning,
    "infinite": negative,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_block_that_differs_is_no_part_of_a_run(change: str) -> None:
    model = Stack()
    assert [len(run.blocks) for run in runs_of(model)] == [DEPTH]
    CHANGES[change](model)
    assert not runs_of(model)


def test_blocks_beside_one_that_differs_are_shared() -> None:
    model = Stack(depth=6)
    hooked(model)
    found, _ = both(model, IMAGE)
    assert found is not None and list(found.model.get_submodule("blocks")._modules) == list("01245")  # pyright: ignore[reportPrivateUsage]


def test_the_user_may_freeze_or_ignore_one_block() -> None:
    model = Stack()
    for wish in (
        {"freeze": "blocks.3*"},
        {"ignore": "blocks.3"},
        {"tie": [("blocks.2.*", "blocks.3.*")]},
    ):
        shared = find_structures(model, IMAGE, **wish)  # pyright: ignore[reportArgumentType]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(discover, "short_of", lambda *_: None)
            assert find_structures(model, IMAGE, **wish) == shared  # pyright: ignore[reportArgumentType]


def test_a_model_is_left_as_it_is() -> None:
    model = Stack()
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    assert short_of(model, IMAGE) is not None
    assert modes == [module.training for module in model.modules()]
    assert len(model.blocks) == DEPTH
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_short_network_stands_for_first_inner_and_last_blocks() -> None:
    names = ShortNames([Run(tuple(f"a.{n}" for n in range(12)))])
    shown = [names.short(name) for name in ("a.0.x:2", "a.1.x", "a.10", "a.11.x", "a.12.x", "b.1")]
    assert shown == ["a.0.x:2", "a.1.x", "a.1", "a.2.x", "a.12.x", "b.1"]
    assert names.in_whole("a.10.x", "a.1.y is not a.11.y") == "a.10.y is not a.11.y"
