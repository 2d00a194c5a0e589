import pytest
import torch

from guyot import models
from guyot.errors import MisconfiguredError

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


def test_counting_macs_leaves_the_model_as_it_was():
    model = models.resnet20().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    models.count_macs(model, torch.randn(4, 3, 32, 32))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_removing_a_branch_with_identity_shortcut_keeps_shapes():
    model = models.resnet(8, widths=(5, 7, 9), num_classes=4)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 4)
    assert model.stages[0][0].downsample is None
    assert model.stages[1][0].downsample is not None


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
    with pytest.raises(MisconfiguredError, match=r"model='resnet21'.*resnet20"):
        models.build("resnet21")
