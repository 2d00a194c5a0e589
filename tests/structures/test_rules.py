"""Rules for operators of the user's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from guyot import GuyotWarning, MisconfiguredError, find_structures
from guyot.core.types import KeepPlan
from guyot.costs.complexity import Complexity
from guyot.structures.rules import AxisGraph, DimVars, rule, rule_for, unify
from guyot.structures.rules.registry import _RULES
from guyot.surgery import operate


@torch.library.custom_op("guyot_tests::project", mutates_args=())
def project(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.T


@project.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
    x, weight = ctx.saved_tensors
    return gradient @ weight, gradient.flatten(0, -2).T @ x.flatten(0, -2)


project.register_autograd(
    _backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


class Project(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight)


def network() -> nn.Module:
    return nn.Sequential(Project(4, 6), nn.ReLU(), Project(6, 5), nn.GELU(), nn.Linear(5, 2))


@pytest.fixture
def ruled() -> Iterator[None]:
    @rule(project)
    def _(graph: AxisGraph, node: torch.fx.Node) -> DimVars:
        x, weight = graph.operands(node, 0, 1)
        unify(x[-1], weight[1])
        graph.contract(node, 1, dim=1)
        graph.count(node, weight[0], weight[1], *graph.samples(x[:-1]))
        return (*x[:-1], weight[0])

    yield
    del _RULES[torch.ops.guyot_tests.project.default]


def test_without_a_rule_the_operator_is_named() -> None:
    with pytest.warns(
        GuyotWarning, match=r"guyot_tests.project.default.*guyot.structures.rules.rule"
    ):
        assert not find_structures(network(), (torch.randn(3, 4),)).groups


@pytest.mark.usefixtures("ruled")
@pytest.mark.parametrize("shape", [(3, 4), (3, 7, 4)])
def test_a_custom_operator_shrinks(shape: tuple[int, ...]) -> None:
    model, inputs = network().double(), torch.randn(shape, dtype=torch.float64)
    structures = find_structures(model, (inputs,))
    assert [(group.name, group.size) for group in structures.groups] == [("0", 6), ("2", 5)]
    places = inputs[0].numel() // 4
    complexity = Complexity(structures)
    assert complexity.full.macs == places * (4 * 6 + 6 * 5 + 5 * 2)
    kept = torch.tensor([0, 2, 3])
    masked = network().double()
    masked.load_state_dict(model.state_dict())
    with torch.no_grad():
        masked[2].weight[:, [1, 4, 5]] = 0
    operate(model, structures, KeepPlan({0: kept}))
    assert model[0].weight.shape == (3, 4) and model[2].weight.shape == (5, 3)
    torch.testing.assert_close(model(inputs), masked(inputs), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.ops.guyot_tests.project, r"overloads default: give one of them.*project.default"),
        (torch.relu, r"about no operator: give one as torch.export names it"),
        ("mine::project", r"rule\('mine::project'\) is about no operator"),
    ],
)
def test_what_is_no_operator(target: object, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        rule(target)


def test_names_of_an_operator_are_one() -> None:
    relu = torch.ops.aten.relu.default
    before = rule_for(relu)
    assert before is not None
    assert rule(relu)(before) is before
    assert rule_for(relu) is before
