"""What the user decides: ignored modules, frozen groups and layers, tied groups."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from cases import CASES, Nested, counted, random_plan
from torch import Tensor, nn

from guyot import Discovery, DiscoveryConfig, MisconfiguredError, find_structures
from guyot.core.locate import named_tensors
from guyot.core.types import Structures
from guyot.results.rebuild import rebuild
from guyot.surgery import operate


def found(name: str, **wishes: Any) -> tuple[nn.Module, Structures]:
    model = CASES[name].build()
    return model, find_structures(model, (CASES[name].inputs(),), **wishes)


def reasons(structures: Structures) -> Mapping[str, str]:
    return {frozen.name: frozen.reason for frozen in structures.frozen}


def groups(structures: Structures) -> set[str]:
    return {group.name for group in structures.groups}


def layers(structures: Structures) -> set[str]:
    return {layer.name for layer in structures.layers}


@pytest.mark.parametrize(
    ("name", "pattern", "untouched"),
    [
        ("cifar", "stages.0.0.conv2", "stages.0.0.conv2."),
        ("cifar", "stages.1", "stages.1."),
        ("mobile", ["4.conv.3", "8"], ("4.conv.3.", "8.")),
        ("dense", "layers.?", "layers."),
        ("tokens", "*.mix.0", ("1.mix.0.", "2.mix.0.")),
    ],
)
def test_nothing_of_an_ignored_module_changes(
    name: str, pattern: str | list[str], untouched: str | tuple[str, ...]
) -> None:
    full, left = found(name)[1], found(name, ignore=pattern)[1]
    assert groups(left) < groups(full)
    assert layers(left) <= layers(full)
    assert {tensor.name for tensor in left.tensors if tensor.name.startswith(untouched)}
    changed = 0
    for seed in range(5):
        model = CASES[name].build()
        before = {key: tensor.shape for key, tensor in named_tensors(model).items()}
        operate(model, left, random_plan(left, seed))
        after = {key: tensor.shape for key, tensor in named_tensors(model).items()}
        for key, shape in before.items():
            if key.startswith(untouched):
                assert after[key] == shape, key
        changed += after != before
        assert model(CASES[name].inputs()).shape[-1] == 3


def test_a_residual_branch_with_an_ignored_module_stays() -> None:
    _, structures = found("cifar", ignore="stages.1.0.relu")
    assert layers(structures) == {"stages.0.0", "stages.2.0"}
    assert reasons(structures)["stages.1.0"] == "stages.1.0.relu is ignored by the user"
    assert groups(structures) == groups(found("cifar")[1])  # a ReLU has no tensors


def test_a_shared_weight_is_ignored_under_every_name() -> None:
    def tied_model() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5, bias=False), nn.ReLU())
        model.extend([nn.Linear(5, 5, bias=False), nn.Linear(5, 2)])
        model[3].weight = model[1].weight
        return model

    inputs = (torch.randn(2, 6),)
    assert find_structures(tied_model(), inputs).groups
    assert not find_structures(tied_model(), inputs, ignore="3").groups


def test_frozen_groups_and_layers_stay() -> None:
    _, full = found("nested")
    _, structures = found("nested", freeze=["*.first", "2"])
    assert groups(structures) == {name for name in groups(full) if not name.endswith(".first")}
    assert layers(structures) == layers(full) - {"2"}
    assert {k for k, v in reasons(structures).items() if v == "frozen by the user"} == {
        "1.first",
        "1.inner.first",
        "2.first",
        "2",
    }


def test_tied_groups_lose_the_same_units() -> None:
    _, full = found("tokens")
    model, structures = found("tokens", tie=["*.mix.0", ("1.feed.0", "2.feed.0")])
    assert groups(full) - groups(structures) == {"2.mix.0", "2.feed.0"}
    tied = {group.name: group.tied for group in structures.groups if group.tied}
    assert tied == {"1.mix.0": ("2.mix.0",), "1.feed.0": ("2.feed.0",)}
    plan = random_plan(structures, seed=2, layers=False)
    original = copy.deepcopy(model)
    operate(model, structures, plan)
    for kind in ("mix", "feed"):
        number = next(n for n, g in enumerate(structures.groups) if g.name == f"1.{kind}.0")
        for block in (1, 2):
            name = f"{block}.{kind}.0.weight"
            expected = original.get_parameter(name)[plan.kept[number]]
            stream = next(n for n, g in enumerate(structures.groups) if g.name == "0")
            expected = expected[:, plan.kept[stream]] if stream in plan.kept else expected
            assert torch.equal(model.get_parameter(name), expected)


def test_complexity_of_tied_groups_is_exact() -> None:
    """Two groups that follow one another become a square: n_a * n_b = n**2."""
    from guyot.costs.complexity import Complexity

    def chain() -> nn.Module:
        return nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
        )

    inputs = torch.randn(2, 4)
    structures = find_structures(chain(), (inputs,), tie=[("0", "2")])
    assert [(group.size, group.tied) for group in structures.groups] == [(8, ("2",))]
    for seed in range(4):
        plan = random_plan(structures, seed)
        gates = torch.zeros(8)
        gates[plan.kept.get(0, torch.arange(8))] = 1
        model = chain()
        operate(model, structures, plan)
        assert float(Complexity(structures).macs(gates)) == counted(model, inputs)


def test_ties_chain_and_spread_what_freezes() -> None:
    names = ("1.mix.0", "1.feed.0", "2.mix.0", "2.feed.0")
    _, structures = found("tokens", tie=[names[:2], names[1:3], names[2:]])
    assert {group.tied for group in structures.groups if group.tied} == {names[1:]}
    _, structures = found("tokens", tie=[names], freeze="2.mix.0")
    assert groups(structures) == {"0"}
    assert {reasons(structures)[name] for name in names} == {"frozen by the user"}
    _, structures = found("tokens", tie=[names], ignore="2.mix.0")
    assert groups(structures) == set()
    assert reasons(structures)["1.feed.0"] == (
        "it is tied to 2.mix.0, which cannot shrink: 2.mix.0 is ignored by the user"
    )


def test_wishes_do_not_rename_groups() -> None:
    class Twice(nn.Module):
        """Two groups that are named after one module."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6, 6))
            self.last = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = nn.functional.linear(x, self.a).relu()
            return self.last(nn.functional.linear(x, self.b).relu())

    model = nn.Sequential(Twice())
    inputs = (torch.randn(2, 4),)
    assert [g.name for g in find_structures(model, inputs).groups] == ["0", "0:3"]
    assert [g.name for g in find_structures(model, inputs, freeze="0").groups] == ["0:3"]
    tied = find_structures(model, inputs, tie=["0*"])
    assert [(g.name, g.tied) for g in tied.groups] == [("0", ("0:3",))]


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        (
            {"ignore": "stages.0.0.con1"},
            r"ignore='stages.0.0.con1' matches no module; close .*conv1",
        ),
        ({"freeze": ["stages.*", "stage1"]}, r"freeze='stage1' matches no group and no layer"),
        ({"freeze": "stages.0.0.bn1"}, r"no group and no layer; close .* stages.0.0.conv1"),
        ({"tie": ["*.conv8"]}, r"tie='\*.conv8' matches no group"),
        ({"tie": ["conv1"]}, r"'conv1' chooses conv1; a set is of two groups or more"),
        ({"tie": ("conv1", "stages.1.0.conv1")}, r"chooses conv1; .*tie=\[\('first', 'second'\)\]"),
        ({"tie": [("conv1", "stages.1.0.conv1")]}, r"\(conv1 has 6, stages.1.0.conv1 has 8\)"),
        ({"tie": [()]}, r"\(\) chooses nothing"),
        ({"tie": [("fc", "conv1")]}, r"tie='fc' chooses fc, which cannot shrink: an output of the"),
    ],
)
def test_bad_wishes(wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        found("cifar", **wishes)


def test_a_run_keeps_to_the_wishes_and_can_be_rebuilt() -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        blocks = [Nested(8, nn.Linear(8, 8)) for _ in range(2)]
        return nn.Sequential(nn.Linear(5, 8), *blocks, nn.Linear(8, 3))

    model = build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    config = DiscoveryConfig(
        freeze=("1", "0"), tie=[("1.first", "2.first")], ignore="2.last", round_to=1
    )
    inputs, labels = torch.randn(64, 5), torch.randint(3, (64,))
    discovery = Discovery(
        model, (inputs[:2],), optimizer, total_steps=120, target=0.6, config=config
    )
    assert groups(discovery.original) == {"1.first", "1.inner"}
    assert layers(discovery.original) == set()
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        discovery.step()
    small = discovery.finish()
    width = len(small[1].first.weight)
    assert width < 8 and len(small[2].first.weight) == width
    assert discovery.structure["units"]["1.first"] == discovery.structure["units"]["2.first"]
    again = rebuild(build(), (inputs[:2],), discovery.structure)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(inputs), small(inputs))
