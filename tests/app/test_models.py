import sys
from math import prod
from pathlib import Path

import pytest
import torch

from guyot import find_structures
from guyot.app import models
from guyot.core.axis import size_of
from guyot.core.errors import MisconfiguredError
from guyot.core.types import KeepPlan
from guyot.surgery import operate

IMAGE = torch.zeros(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("depth", "macs", "params"),
    [
        (20, 40_813_184, 272_474),
        (32, 69_124_736, 466_906),
        (44, 97_436_288, 661_338),
        (56, 125_747_840, 855_770),
        (110, 253_149_824, 1_730_714),
    ],
)
def test_size_is_that_of_the_paper_with_option_b_shortcuts(depth: int, macs: int, params: int):
    model = models.build(f"resnet{depth}")
    assert models.count_macs(model, IMAGE) == macs
    assert sum(parameter.numel() for parameter in model.parameters()) == params


def test_resnet20_macs_by_hand():
    stem = 32 * 32 * 9 * 3 * 16
    stages = 0
    for width, side, previous in ((16, 32, 16), (32, 16, 16), (64, 8, 32)):
        stages += side**2 * 9 * width * (previous + 5 * width)
        if width != previous:
            stages += side**2 * width * previous
    assert models.count_macs(models.resnet20(), IMAGE) == stem + stages + 64 * 10


def test_attention_counts_whatever_kernel_computes_it():
    layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    projections, mlp, scores = 4 * 16 * 16, 2 * 16 * 32, 2 * 10 * 16
    tokens = torch.zeros(3, 10, 16)

    class Attention(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    assert models.count_macs(Attention(), torch.zeros(1, 4, 10, 4)) == 10 * scores
    assert models.count_macs(layer, tokens) == 10 * (projections + mlp + scores)
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_macs_leaves_the_model_as_it_was():
    model = models.resnet20().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    models.count_macs(model, torch.randn(4, 3, 32, 32))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_removed_branch_leaves_its_shortcut():
    model = models.resnet(8, widths=(5, 7, 9), num_classes=4)
    image = torch.randn(2, 3, 16, 16)
    structures = find_structures(model, (image,))
    names = [layer.name for layer in structures.layers]
    assert names == ["stages.0.0", "stages.1.0", "stages.2.0"]
    before = models.count_macs(model, image)
    branches = 16**2 * 9 * (5 * 5 + 5 * 5) + 8**2 * 9 * (5 * 7 + 7 * 7)
    operate(model, structures, KeepPlan(removed_layers=frozenset({0, 1})))
    assert model(image).shape == (2, 4)
    assert models.count_macs(model, image) == before - branches
    left = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    blocks = {name for name in left if name.startswith("stages")}
    assert {name for name in blocks if not name.startswith("stages.2.0.")} == {
        "stages.1.0.downsample.0",
        "stages.1.0.downsample.1",
    }


def test_digits_model_takes_8_by_8_grey_images():
    assert models.build("digits")(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_same_seed_same_weights():
    first, second = ((torch.manual_seed(3), models.resnet20().state_dict())[1] for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_bad_arguments():
    with pytest.raises(MisconfiguredError, match=r"depth=21.*6n \+ 2"):
        models.resnet(21)
    with pytest.raises(MisconfiguredError, match=r"widths=\(16, 0, 64\).*positive"):
        models.resnet(20, widths=(16, 0, 64))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet20", (3, 32, 32)),
        ("guyot:digits", (1, 8, 8)),
        ("mobilenet_v2", (3, 32, 32)),
        ("torchvision:vit_b_16", (3, 32, 32)),
        ("torchvision:googlenet", (3, 64, 64)),
        ("mobilenetv3_small_050", (3, 32, 32)),
        ("timm:vit_tiny_patch16_224", (1, 32, 32)),
    ],
)
def test_networks_by_name(name: str, shape: tuple[int, ...]):
    model = models.build(name, 7, shape)
    assert model.train()(torch.zeros(2, *shape)).shape == (2, 7)


def test_a_plain_name_is_looked_up_here_then_in_torchvision_then_in_timm():
    modules = [type(models.build(name)).__module__ for name in ("resnet20", "resnet18", "resnet26")]
    assert [module.partition(".")[0] for module in modules] == ["guyot", "torchvision", "timm"]
    assert type(models.build("timm:resnet18")).__module__.startswith("timm.")


def test_what_networks_were_made_for():
    shapes = {
        "resnet56": (3, 32, 32),
        "digits": (1, 8, 8),
        "torchvision:inception_v3": (3, 299, 299),
        "timm:vit_tiny_patch16_384": (3, 384, 384),
        "somewhere.else:factory": None,
    }
    assert {name: models.natural_shape(name) for name in shapes} == shapes


FACTORIES = """
from __future__ import annotations
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Settings:
    width: int = 3

def mlp(num_classes, image_shape=None, width=Settings().width):
    inputs = 4 if image_shape is None else image_shape[0]
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, num_classes))

def with_inputs():
    return nn.Linear(2, 2), (torch.ones(5, 2),)

def number():
    return 7

def broken():
    raise KeyError("no such layer")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_networks.py").write_text(FACTORIES)
    (tmp_path / "needs.py").write_text("import a_package_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_networks", raising=False)


@pytest.mark.usefixtures("own")
def test_networks_of_ones_own():
    for place in ("my_networks", "my_networks.py"):
        model = models.build(f"{place}:mlp", 6)
        assert model(torch.zeros(2, 4)).shape == (2, 6)
        assert models.build(f"{place}:mlp", 6, (9, 1, 1))(torch.zeros(2, 9)).shape == (2, 6)
    _, inputs = models.build_with_inputs("my_networks:with_inputs")
    assert [tensor.shape for tensor in inputs] == [(5, 2)]
    assert models.build_with_inputs("my_networks:mlp")[1] is None


def test_the_products_of_attention_count():
    """PyTorch's counter does not know the kernel that attention takes on a CPU."""
    network = models.build("timm:vit_tiny_patch16_224", 10, (3, 32, 32))
    structures = find_structures(network, (IMAGE.repeat(2, 1, 1, 1),))
    sizes = [group.size for group in structures.groups]
    counted = sum(prod(size_of(x, sizes) for x in o.axes) for o in structures.operations)
    assert models.count_macs(network, IMAGE) == counted


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet21", "model='resnet21' is unknown, did you mean resnet.*choose resnet20"),
        ("torchvision:resnet51", "'torchvision:resnet51' is unknown, did you mean resnet50"),
        ("my_network:mlp", "my_network cannot be imported .*No module named 'my_network'"),
        ("my_network.py:mlp", "my_network.py cannot be imported .*No such file"),
        ("needs.py:mlp", "needs.py cannot be imported .*a_package_that_is_not_there"),
        ("my_networks:mpl", "my_networks has no function 'mpl', did you mean mlp"),
        ("my_networks:number", "returned int: it must return an nn.Module"),
        ("my_networks:broken", "images of 3x0x0: KeyError: 'no such layer'"),
        ("timm:vit_tiny_patch16_224", "cannot be built with 10 classes and images of 3x0x0"),
    ],
)
def test_bad_names(name: str, message: str):
    with pytest.raises(MisconfiguredError, match=message):
        models.build(name, image_shape=(3, 0, 0))


def test_missing_packages_name_the_extra(monkeypatch: pytest.MonkeyPatch):
    for package, extra in (("torchvision", "vision"), ("timm", "timm")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MisconfiguredError, match=rf"{package}.*pip install 'guyot\[{extra}\]'"):
            models.build("resnet19")
        with pytest.raises(MisconfiguredError, match=rf"pip install 'guyot\[{extra}\]'"):
            models.natural_shape(f"{package}:resnet18")
    assert models.build("digits") is not None
