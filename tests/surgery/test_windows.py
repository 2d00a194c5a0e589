"""Attention in shifted windows: written out for any number of heads, and found in networks."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import random_plan
from examine import masked_against_sliced
from torch import nn

from guyot import find_structures
from guyot.surgery.windows import write_out

swin = pytest.importorskip("torchvision.models.swin_transformer")


@pytest.mark.parametrize("kind", ["ShiftedWindowAttention", "ShiftedWindowAttentionV2"])
@pytest.mark.parametrize(
    ("shift", "drops"),
    [([0, 0], "attention_dropout"), ([1, 2], "attention_dropout"), ([1, 2], "dropout")],
)
def test_what_is_written_computes_the_same_for_all_sizes(
    kind: str, shift: list[int], drops: str
) -> None:
    torch.manual_seed(0)
    attention = getattr(swin, kind)(12, [2, 4], shift, 3, **{drops: 0.5}).double()
    for parameter in attention.parameters():
        nn.init.normal_(parameter)
    attention.eval()
    written = copy.deepcopy(attention)
    write_out(written)
    assert isinstance(written, type(attention))
    for height, width in ((4, 8), (5, 9), (2, 8), (6, 3), (2, 4), (1, 1)):
        x = torch.randn(2, height, width, 12, dtype=torch.float64)
        torch.testing.assert_close(written(x), attention(x), rtol=0, atol=1e-12)
    assert not torch.equal(written.train()(x), attention(x))
    assert dict(written.named_parameters()).keys() == dict(attention.named_parameters()).keys()


@pytest.mark.parametrize("version", [1, 2])
def test_heads_and_all_branches_go(version: int) -> None:
    torch.manual_seed(0)
    newer = {"block": swin.SwinTransformerBlockV2, "downsample_layer": swin.PatchMergingV2}
    model = swin.SwinTransformer(
        [4, 4], 12, [2, 1], [2, 4], [3, 3], num_classes=3, **(newer if version == 2 else {})
    )
    x = torch.randn(2, 3, 20, 20)
    structures = find_structures(model, (x,))
    heads = {g.name: g.size for g in structures.groups if ".attn" in g.name and "mlp" not in g.name}
    assert list(heads.values()) == [2, 2, 4], [group.name for group in structures.groups]
    assert len(structures.layers) == 6
    for seed in range(2):
        plan = random_plan(structures, seed)
        difference, _ = masked_against_sliced(copy.deepcopy(model), structures, plan, (x,))
        assert difference < 1e-10
