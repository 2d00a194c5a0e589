"""Models without float64 are checked in float32: differences have to be explained by rounding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from guyot import find_structures
from guyot.core.reasons import ReasonKind
from guyot.structures.verify.rounding import SAFETY, UNIT, rounded, tolerance_of


class Single(nn.Module):
    """Refuses float64, as kernels written for one type do."""

    def __init__(self, divided: bool = False, faint: float = 1.0) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(6, 9), nn.Linear(9, 7), nn.Linear(7, 3)
        self.divided, self.faint = divided, faint

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is torch.float64:
            raise TypeError("this kernel computes in float32")
        y = self.one(x).relu()
        scale = self.one.out_features if self.divided else 9
        y = self.two(y / scale).tanh()
        return x[:, :3] + self.three(y) * self.faint


def found(model: nn.Module) -> tuple[list[str], dict[str, str]]:
    structures = find_structures(model, (torch.randn(4, 6),))
    failed = [f for f in structures.frozen if f.kind is ReasonKind.VERIFICATION]
    names = [group.name for group in structures.groups]
    return names + [layer.name for layer in structures.layers], {f.name: f.reason for f in failed}


def test_units_and_layers_of_a_model_in_float32() -> None:
    assert found(Single()) == (["one", "two", "(root)"], {})


def test_a_wrong_cut_is_seen_in_float32() -> None:
    with pytest.warns(UserWarning, match="units of one cannot be removed"):
        names, failed = found(Single(divided=True))
    assert "one" not in names and "two" in names
    assert "another output" in failed["one"] or "different outputs" in failed["one"]


def test_what_rounding_may_explain_is_refused() -> None:
    with pytest.warns(UserWarning, match="by more than rounding"):
        names, failed = found(Single(faint=1e-7))
    assert not names and {"one", "two"} <= failed.keys()


def test_the_tolerance_covers_another_order_of_the_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(8, 999, generator=generator), torch.randn(999, 5, generator=generator)
    order = torch.randperm(999, generator=generator)
    tolerance = tolerance_of(lambda: [(x @ w / 20).exp().sum(0)], list)
    other = (x[:, order] @ w[order] / 20).exp().sum(0)
    whole = (x @ w / 20).exp().sum(0)
    assert tolerance is not None and tolerance < 1e-4
    assert tolerance >= SAFETY * UNIT
    assert float((other - whole).abs().max()) <= tolerance * (1 + float(whole.abs().max()))


def test_whole_numbers_stay_and_views_are_views() -> None:
    x = torch.zeros(4)
    with rounded(seed=1):
        counts = torch.arange(4.0) + 1
        x.view(2, 2)[0] += 1.5
    assert counts.tolist() == [1, 2, 3, 4] and x.tolist() == [1.5, 1.5, 0, 0]


def test_numbers_that_rounding_makes_infinite_have_no_tolerance() -> None:
    assert tolerance_of(lambda: [1 / (torch.full((3,), 0.1) * 10 - 1)], list) is None
