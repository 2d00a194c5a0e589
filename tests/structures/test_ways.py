"""Branches of modules whose code is elsewhere, and lengths that attributes state."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import torch
from compared import differences
from torch import Tensor, nn
from torch.nn import functional as F

from guyot import find_structures
from guyot.core.types import KeepPlan, Structures
from guyot.surgery import operate


class Processor:
    """Does what an attention is for, and adds it to what the attention was given."""

    def __call__(self, attn: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (
            f(x).view(n, t, attn.heads, -1).transpose(1, 2) for f in (attn.q, attn.k, attn.v)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return attn.out(y.reshape(n, t, attn.heads * y.shape[-1])) + x


class Delegating(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.processor, self.unused = heads, Processor(), nn.Linear(2, 2)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.processor(self, x) / 1.0


class Wide(nn.Module):
    """Insists on a width that no attribute states."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 8
        return x


def quiet_structures(model: nn.Module, *inputs: Tensor) -> Structures:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return find_structures(model, inputs)


def count_call(module: nn.Module, args: Any, output: Any) -> None:
    module.seen = getattr(module, "seen", 0) + 1


def delegating(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), Delegating(8, 4), *more, nn.Linear(8, 3))


def test_a_module_whose_branch_is_written_elsewhere_returns_its_argument() -> None:
    model, x = delegating(), torch.randn(2, 5, 4)
    model[1].register_forward_hook(count_call)
    structures = quiet_structures(model, x)
    (layer,) = structures.layers
    assert layer.owner == "1"
    plan = KeepPlan({}, frozenset({0}))
    assert not differences(model.double(), (x.double(),), structures, plan)
    operate(model, structures, plan)
    attention = model[1]
    assert type(attention).__name__ == "Delegating" and isinstance(attention, Delegating)
    assert {name for name, _ in attention.named_children()} == {"unused"}
    given = torch.randn(2, 5, 8)
    loaded = pickle.loads(pickle.dumps(attention))  # noqa: S301  (it was just made)
    for module in (attention, copy.deepcopy(attention), loaded):
        before = getattr(module, "seen", 0)
        assert torch.equal(module(given), given) and module.seen == before + 1


def test_a_class_that_cannot_be_rewritten_stays_prunable_as_it_is() -> None:
    """The width fails; what is tried for it must not cost the heads."""
    structures = quiet_structures(delegating(Wide()), torch.randn(2, 5, 4))
    assert [(group.name, group.size) for group in structures.groups] == [("1.q", 4)]
    assert "own forward does not run" in {f.name: f.reason for f in structures.frozen}["0"]


class Shared(nn.Module):
    """Keys that several queries share: repeated only where a mask is given."""

    def __init__(self) -> None:
        super().__init__()
        self.num_key_value_groups = 2
        self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out = nn.Linear(16, 8)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (f(x).view(n, t, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        if mask is None:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            k, v = (z.repeat_interleave(self.num_key_value_groups, dim=1) for z in (k, v))
            y = F.scaled_dot_product_attention(q, k, v, mask)
        return self.out(y.transpose(1, 2).reshape(n, t, -1))


def test_the_number_of_queries_that_share_a_key_follows() -> None:
    model, x = Shared(), torch.randn(2, 3, 8)
    structures = quiet_structures(model, x)
    (number,) = (
        n
        for n, g in enumerate(structures.groups)
        if "k.weight" not in {m.tensor for m in g.members}
    )
    operate(model, structures, KeepPlan({number: torch.tensor([1])}))
    assert model.num_key_value_groups == 1
    torch.testing.assert_close(model(x, torch.zeros(3, 3)), model(x))


class Scores(nn.Module):
    """Begins with a dropout that drops nothing; its products are in its own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.one, self.two = nn.Dropout(0.0), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(x)
        y = self.one(x)
        return self.two((y @ y.mT) @ y)


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.main, self.shortcut = Scores(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return y


def test_a_dropout_that_drops_nothing_belongs_to_nobody() -> None:
    model = nn.Sequential(nn.Linear(4, 6), Around(), nn.Linear(6, 3))
    structures = quiet_structures(model, torch.randn(2, 5, 4))
    assert [layer.owner for layer in structures.layers] == ["1"]


class OneDropout(nn.Module):
    """Calls one dropout, which drops nothing, in both of its branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.dropout = nn.Linear(6, 6), nn.Linear(6, 6), nn.Dropout(0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.first(x))
        return x + self.dropout(self.second(x).relu())


def test_a_dropout_that_two_branches_call_hides_none() -> None:
    model = nn.Sequential(nn.Linear(3, 6), OneDropout(), nn.Linear(6, 2))
    found = find_structures(model, (torch.randn(4, 3),))
    assert [layer.name for layer in found.layers] == ["1", "1:2"]


class Doubled(nn.Module):
    """Two attributes state widths that happen to be the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels = self.out_channels = width
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        y = self.conv(F.interpolate(x, scale_factor=2.0))
        assert y.shape[1] == self.out_channels
        return y


def test_widths_that_are_read_and_made_are_told_apart() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), Doubled(6), nn.Conv2d(6, 2, 1))
    structures = quiet_structures(model, torch.randn(2, 3, 4, 4))
    assert [group.size for group in structures.groups] == [6, 6]
    operate(model, structures, KeepPlan({0: torch.arange(4), 1: torch.arange(5)}))
    assert (model[1].channels, model[1].out_channels) == (4, 5)
    assert model(torch.randn(2, 3, 4, 4)).shape == (2, 2, 8, 8)
