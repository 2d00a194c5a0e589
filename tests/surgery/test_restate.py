"""Modules whose `forward` states lengths: their class is derived when these change, only then."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cases import Baked
from torch import Tensor, nn

from guyot import UnsupportedError, find_structures
from guyot.core.types import KeepPlan, Structures
from guyot.results.rebuild import rebuild
from guyot.surgery import operate
from guyot.surgery.restate import written_out


def encoder(batch_first: bool = True) -> nn.Module:
    return nn.TransformerEncoderLayer(12, 3, 16, 0.3, batch_first=batch_first)


class Model(nn.Module):
    def __init__(self, attention: nn.Module, masked: bool = False) -> None:
        super().__init__()
        self.stem, self.attention, self.head = nn.Linear(5, 12), attention, nn.Linear(12, 2)
        self.register_buffer("mask", torch.randn(4, 4) if masked else None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.attention(x) if self.mask is None else self.attention(x, self.mask)
        return self.head(y)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "baked": lambda: Model(Baked()),
    "baked, masked": lambda: Model(Baked(), masked=True),
    "PyTorch's": lambda: Model(encoder()),
    "PyTorch's, masked": lambda: Model(encoder(), masked=True),
    "PyTorch's, tokens first": lambda: Model(encoder(batch_first=False)),
}


def heads(structures: Structures) -> int:
    (number,) = (n for n, g in enumerate(structures.groups) if g.size == 3)
    return number


@pytest.mark.parametrize("name", MODELS)
def test_heads_go_in_turn(name: str, recwarn: pytest.WarningsRecorder) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name]().eval(), torch.randn(2 if "first" not in name else 4, 4, 5)
    structures = find_structures(model, (x,))
    assert not [w for w in recwarn if "cannot be removed" in str(w.message)]
    number = heads(structures)
    plain = copy.deepcopy(model)
    operate(plain, structures, KeepPlan())
    kinds = [type(m) for m in model.modules()]
    assert kinds == [type(m) for m in plain.modules()]

    once, turns = copy.deepcopy(model), copy.deepcopy(model)
    operate(once, structures, KeepPlan({number: torch.tensor([2])}))
    left = operate(turns, structures, KeepPlan({number: torch.tensor([0, 2])})).structures
    assert not left.restated
    derived = [m for m, kind in zip(turns.modules(), kinds, strict=True) if type(m) is not kind]
    assert len(derived) == 1
    assert all(isinstance(m, kind) for m, kind in zip(turns.modules(), kinds, strict=True))
    operate(turns, left, KeepPlan({number: torch.tensor([1])}))
    torch.testing.assert_close(turns(x), once(x))
    assert list(turns.state_dict()) == list(model.state_dict())

    masked = plain
    (reader,) = structures.groups[number].readers
    weight = masked.get_parameter(reader.tensor)
    with torch.no_grad():
        weight[:, :8] = 0
    torch.testing.assert_close(once(x), masked(x))
    once.train()(x).sum().backward()
    assert all(p.grad is not None for p in once.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_fewer_heads_is_built_again(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODELS[name](), torch.randn(2, 4, 5)
    again = copy.deepcopy(model)
    structures = find_structures(model, (x,))
    number = heads(structures)
    operate(model, structures, KeepPlan({number: torch.tensor([0, 2])}))
    kept = {"units": {structures.groups[number].name: [0, 2]}, "removed_layers": []}
    rebuild(again, (x,), kept).load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(x), model.eval()(x))


class Folded(Baked):
    """Heads are folded into the batch, as in BoTNet."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        b, n, c = x.shape
        heads = self.qkv(x).view(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).reshape(3, b * self.num_heads, n, -1).unbind(0)
        out = (q @ k.transpose(1, 2)).softmax(-1) @ v
        out = out.view(b, self.num_heads, n, -1).transpose(1, 2)
        return self.proj(out.reshape(b, n, c))


def test_no_length_follows_that_holds_the_batch() -> None:
    torch.manual_seed(0)
    model, x = Model(Folded()).eval(), torch.randn(2, 4, 5)
    structures = find_structures(model, (x,))
    number = heads(structures)
    operate(model, structures, KeepPlan({number: torch.tensor([0, 1])}))
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_dropout_follows_the_mode() -> None:
    torch.manual_seed(0)
    model, x = Model(Baked()), torch.randn(2, 4, 5)
    structures = find_structures(model, (x,))
    operate(model, structures, KeepPlan({heads(structures): torch.tensor([0, 1])}))
    assert isinstance(model.attention, Baked) and type(model.attention) is not Baked
    assert repr(type(model.attention)) == repr(Baked)
    assert model.attention.num_heads == 2
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))
    assert "index" in dict(model.attention.named_buffers())


def test_other_calls_work_where_the_forward_allows_them() -> None:
    model, x = Model(Baked()), torch.randn(2, 4, 5)
    structures = find_structures(model, (x,))
    operate(model, structures, KeepPlan({heads(structures): torch.tensor([0, 1])}))
    model.eval()
    y = torch.randn(2, 4, 12)
    plain = model.attention(y)
    torch.testing.assert_close(model.attention(y, torch.zeros(4, 4)), plain)
    assert not torch.allclose(model.attention(y, torch.randn(4, 4)), plain)


def test_weights_of_an_attention_that_lost_heads_are_refused() -> None:
    model, x = Model(encoder()), torch.randn(2, 4, 5)
    structures = find_structures(model, (x,))
    operate(model, structures, KeepPlan({heads(structures): torch.tensor([0, 1])}))
    y = torch.randn(2, 4, 12)
    with pytest.raises(UnsupportedError, match="call it with need_weights=False"):
        model.attention.self_attn(y, y, y)


def write_out(attention: nn.MultiheadAttention) -> None:
    change = written_out(attention)
    assert change is not None
    change()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("masks", ["none", "added", "boolean", "per head", "padding", "both"])
@pytest.mark.parametrize("batched", [True, False])
def test_written_out_attention_computes_what_pytorch_does(
    batch_first: bool, masks: str, batched: bool
) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=batch_first).double().eval()
    written = copy.deepcopy(attention)
    write_out(written)
    shape = (2, 4) if batch_first else (4, 2)
    x = torch.randn(*(shape if batched else (4,)), 12, dtype=torch.float64)
    padding = torch.tensor([[False, False, True, True], [False] * 4])
    given: dict[str, Tensor] = {}
    if masks in ("added", "both"):
        given["attn_mask"] = torch.randn(4, 4, dtype=torch.float64)
    if masks == "boolean":
        given["attn_mask"] = torch.ones(4, 4).triu(1).bool()
    if masks == "per head":
        given["attn_mask"] = torch.randn(6 if batched else 3, 4, 4, dtype=torch.float64)
    if masks in ("padding", "both"):
        padding = padding if batched else padding[0]
        given["key_padding_mask"] = padding if masks == "padding" else padding.double()
    expected = attention(x, x, x, need_weights=False, **given)[0]
    torch.testing.assert_close(written(x, x, x, need_weights=False, **given)[0], expected)


@pytest.mark.parametrize("setting", ["add_bias_kv", "add_zero_attn"])
def test_what_cannot_be_written_out(setting: str) -> None:
    with pytest.raises(UnsupportedError, match=r"without added keys"):
        written_out(nn.MultiheadAttention(6, 2, **{setting: True}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_written_out_attention_without_biases_takes_masks_of_other_dtypes(
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, bias=False, batch_first=True).to(dtype).eval()
    written = copy.deepcopy(attention)
    write_out(written)
    x = torch.randn(2, 4, 12, dtype=dtype)
    mask = torch.randn(4, 4, dtype=torch.float64)
    found = written(x, x, x, need_weights=False, attn_mask=mask)[0]
    expected = attention(x, x, x, need_weights=False, attn_mask=mask.to(dtype))[0]
    torch.testing.assert_close(found, expected)


def test_written_out_attention_drops_while_it_trains() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, dropout=0.5, batch_first=True)
    x = torch.randn(2, 4, 12)
    write_out(attention)

    def called() -> Tensor:
        return attention(x, x, x, need_weights=False)[0]

    assert not torch.equal(called(), called())
    attention.eval()
    assert torch.equal(called(), called())
