"""What is found in real networks, and that its polynomials count what PyTorch counts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import CASES, counted, gates_of, random_plan
from torch import Tensor, nn

from guyot import GuyotWarning, find_structures
from guyot.app.models.cifar import resnet20
from guyot.core.types import Fixed, Product, Structures, Units
from guyot.costs.complexity import Complexity
from guyot.surgery import operate

torchvision_models = pytest.importorskip("torchvision.models")


@dataclass(frozen=True)
class Network:
    """A network of the literature: groups, layers, GMACs."""

    build: Callable[..., nn.Module]
    pixels: int
    groups: int
    layers: int
    size: str = "fast"


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(torchvision_models, name)(num_classes=10, **options)


NETWORKS = {
    "resnet20": Network(resnet20, 32, groups=12, layers=9),
    "resnet18": Network(torchvision("resnet18"), 64, groups=12, layers=8),
    "resnet50": Network(torchvision("resnet50"), 64, groups=37, layers=16),
    "mobilenet_v2": Network(torchvision("mobilenet_v2"), 64, groups=25, layers=10),
    "vgg16_bn": Network(torchvision("vgg16_bn"), 64, groups=15, layers=0),
    "densenet121": Network(torchvision("densenet121"), 64, groups=120, layers=0),
}
SLOW = {"resnet50", "mobilenet_v2", "vgg16_bn", "densenet121"}
SMALL = [name for name in NETWORKS if name not in SLOW]
ALL = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(SLOW))]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def assert_counts(model: nn.Module, structures: Structures, x: Tensor) -> None:
    complexity = Complexity(structures)
    ones = torch.ones(structures.index.total)
    assert float(complexity.macs(ones)) == counted(model, x)
    assert float(complexity.params(ones)) == parameters(model)


@pytest.mark.parametrize("name", ALL)
def test_real_networks(name: str, recwarn: pytest.WarningsRecorder) -> None:
    network = NETWORKS[name]
    model = network.build()
    x = torch.randn(2, 3, network.pixels, network.pixels)
    structures = find_structures(model, (x,))
    assert not [w for w in recwarn if issubclass(w.category, GuyotWarning)]
    assert (len(structures.groups), len(structures.layers)) == (network.groups, network.layers)
    assert {frozen.reason for frozen in structures.frozen} <= {
        "an input of the network",
        "an output of the network",
    }
    assert_counts(model, structures, x)

    complexity = Complexity(structures)
    for seed in range(2):
        plan = random_plan(structures, seed)
        sliced = copy.deepcopy(model)
        left = operate(sliced, structures, plan).structures
        gates = gates_of(structures, plan)
        assert float(complexity.macs(gates)) == counted(sliced, x)
        assert float(complexity.params(gates)) == parameters(sliced)
        assert_counts(sliced, left, x)
        sliced.train()(x).sum().backward()


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str, recwarn: pytest.WarningsRecorder) -> None:
    case = CASES[name]
    model, x = case.build(), case.inputs()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    structures = find_structures(model, (x,))
    assert not [w for w in recwarn if issubclass(w.category, GuyotWarning)]
    assert (len(structures.groups), len(structures.layers)) == (case.groups, case.layers)
    assert {tensor.name for tensor in structures.tensors} == set(before)
    assert structures.input_shapes == (case.shape,)
    assert_counts(model, structures, x)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    complexity = Complexity(structures)
    for seed in range(4):
        plan = random_plan(structures, seed)
        sliced = copy.deepcopy(model)
        left = operate(sliced, structures, plan).structures
        assert float(complexity.macs(gates_of(structures, plan))) == counted(sliced, x)
        assert_counts(sliced, left, x)


@pytest.mark.parametrize("name", CASES)
def test_counts_do_not_depend_on_the_batch(name: str) -> None:
    case = CASES[name]
    model = case.build()
    sizes = [1, 2, 5]
    found = [find_structures(model, (case.inputs(size),)) for size in sizes]
    assert len({structures.operations for structures in found}) == 1
    assert len({structures.groups for structures in found}) == 1
    assert len({structures.layers for structures in found}) == 1


def test_a_batch_that_is_folded_into_another_dimension() -> None:
    class Folded(nn.Module):
        """Frames are folded into the batch, as video models do."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 1), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            frames = self.two(torch.relu(self.one(x.flatten(0, 1)))).mean((2, 3))
            return self.head(frames).unflatten(0, x.shape[:2]).mean(1)

    for batch in (1, 2):
        model, x = Folded(), torch.randn(batch, 4, 3, 5, 5)
        structures = find_structures(model, (x,))
        assert [group.size for group in structures.groups] == [6, 5]
        assert_counts(model, structures, x)


def test_names_readers_and_members() -> None:
    case = CASES["cifar"]
    structures = find_structures(case.build(), (case.inputs(),))
    stream = structures.groups[0]
    assert stream.name == "conv1"
    assert {(slot.tensor, slot.dim) for slot in stream.readers} == {
        ("stages.0.0.conv1.weight", 1),
        ("stages.1.0.conv1.weight", 1),
        ("stages.1.0.downsample.0.weight", 1),
    }
    members = {(slot.tensor, slot.dim) for slot in stream.members}
    assert ("bn1.running_mean", 0) in members
    assert ("stages.0.0.conv2.weight", 0) in members
    assert ("stages.0.0.bn2.bias", 0) in members
    layer = structures.layers[1]
    assert layer.name == layer.owner == "stages.1.0"
    assert set(layer.writers) == {"stages.1.0.bn2.weight", "stages.1.0.bn2.bias"}
    assert not any("downsample" in name for name in layer.tensors)
    assert "stages.1.0.bn2.num_batches_tracked" in layer.tensors


def test_flattened_channels_are_units() -> None:
    case = CASES["flat_cnn"]
    structures = find_structures(case.build(), (case.inputs(),))
    (axes,) = (tensor.axes for tensor in structures.tensors if tensor.name == "8.weight")
    assert axes[1] == Product((Units(1), Fixed(2), Fixed(2)))


def test_patterns_and_kinds() -> None:
    case = CASES["cifar"]
    model, inputs = case.build(), (case.inputs(),)
    full = find_structures(model, inputs)
    units = find_structures(model, inputs, layers=False)
    assert units.groups == full.groups
    assert not units.layers
    layers = find_structures(model, inputs, units=False)
    assert layers.layers == full.layers
    assert not layers.groups
    assert "left alone by the user" in {frozen.reason for frozen in layers.frozen}


class Baked(nn.Module):
    """A forward that states the width as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x).view(-1, 6).relu())


def test_what_verification_excludes_is_said() -> None:
    reason = "own forward does not run"
    with pytest.warns(GuyotWarning, match=f"units of one cannot be removed: .*{reason}"):
        structures = find_structures(Baked(), (torch.randn(3, 4),))
    assert not structures.groups
    assert any(f.name == "one" and reason in f.reason for f in structures.frozen)


def test_verification_may_be_left_out() -> None:
    assert len(find_structures(Baked(), (torch.randn(3, 4),), verify=False).groups) == 1


def test_units_pass_a_weight_norm() -> None:
    model = nn.Sequential(
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)),
        nn.ReLU(),
    ).append(nn.Linear(5, 2))
    structures = find_structures(model, (torch.randn(3, 4),))
    assert {group.size for group in structures.groups} == {6, 5}
    members = {slot.tensor for group in structures.groups for slot in group.members}
    norm = "2.parametrizations.weight.original"
    assert {f"{norm}0", f"{norm}1", "2.bias"} <= members
