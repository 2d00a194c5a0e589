"""Why the width of a stream under a norm stays: what holds for its zeros and what does not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from guyot import find_structures

WIDTH, KEPT, EPS = 8, 5, 0.01


def masked_and_cut(
    kind: type[nn.RMSNorm | nn.LayerNorm], x: Tensor, factor: float, eps: float
) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    """A norm over units of which the last are zero, and one over those that stay."""
    torch.manual_seed(0)
    full = kind(WIDTH, eps=EPS).double()
    cut = kind(KEPT, eps=eps).double()
    with torch.no_grad():
        full.weight.uniform_(0.5, 1.5)
        cut.weight.copy_(full.weight[:KEPT] * factor)
    padded = torch.cat([x, x.new_zeros(len(x), WIDTH - KEPT)], 1)
    return full, cut, full(padded)[:, :KEPT], cut(x)


def test_rms_norm_of_zeros_is_a_scaled_one_of_the_rest_but_learns_slower() -> None:
    """mean over n = (k/n) mean over k, so the weight takes sqrt(n/k), and eps takes n/k."""
    x = torch.randn(3, KEPT, dtype=torch.float64, requires_grad=True)
    ratio = WIDTH / KEPT
    full, cut, one, two = masked_and_cut(nn.RMSNorm, x, ratio**0.5, EPS * ratio)
    torch.testing.assert_close(one, two)
    given = torch.randn_like(one)
    by_full = torch.autograd.grad((one * given).sum(), [x, full.weight])
    by_cut = torch.autograd.grad((two * given).sum(), [x, cut.weight])
    torch.testing.assert_close(by_full[0], by_cut[0])
    torch.testing.assert_close(by_full[1][:KEPT], by_cut[1] * ratio**0.5)
    # A step of SGD then moves the masked norm n/k times as far as the cut one.
    step = full.weight.detach()[:KEPT] - 0.1 * by_full[1][:KEPT]
    moved = step * ratio**0.5 - cut.weight.detach()
    torch.testing.assert_close(moved, -0.1 * by_cut[1] * ratio)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_layer_norm_of_zeros_is_none_of_the_rest(factor: float) -> None:
    """Kept units that are all m have no spread: a cut norm gives its bias, for m and for -m."""
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64).expand(2, KEPT)
    _, _, one, two = masked_and_cut(nn.LayerNorm, x, factor, EPS)
    torch.testing.assert_close(two[0], two[1])
    assert ((one[0] - one[1]).abs() > 0.5).all()


@pytest.mark.parametrize("kind", [nn.RMSNorm, nn.LayerNorm])
def test_width_under_a_norm_stays(kind: type[nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 6), kind(6), nn.Linear(6, 2))
    structures = find_structures(model, (torch.randn(4, 3),))
    assert not structures.groups
    assert any("the statistics of 1" in frozen.reason for frozen in structures.frozen)
