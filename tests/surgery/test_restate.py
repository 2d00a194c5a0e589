"""Modules whose `forward` states lengths: written anew when these change, and only then."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cases import Baked
from torch import Tensor, fx, nn

from guyot import GuyotWarning, UnsupportedError, find_structures
from guyot.core.types import KeepPlan, Restated, Structures
from guyot.results.rebuild import rebuild
from guyot.surgery import operate
from guyot.surgery.restate import restate


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
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]

    once, turns = copy.deepcopy(model), copy.deepcopy(model)
    operate(once, structures, KeepPlan({number: torch.tensor([2])}))
    left = operate(turns, structures, KeepPlan({number: torch.tensor([0, 2])})).structures
    assert not left.restated
    written = [m for m in turns.modules() if isinstance(m, fx.GraphModule)]
    assert len(written) == 1
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
    with pytest.warns(GuyotWarning, match="units of attention.* cannot be removed"):
        structures = find_structures(model, (x,))
    assert all(group.size != 3 for group in structures.groups)
    operate(model, structures, KeepPlan({0: torch.tensor([0, 1])}))
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


def test_dropout_follows_the_mode() -> None:
    torch.manual_seed(0)
    model, x = Model(Baked()), torch.randn(2, 4, 5)
    structures = find_structures(model, (x,))
    operate(model, structures, KeepPlan({heads(structures): torch.tensor([0, 1])}))
    assert isinstance(model.attention, fx.GraphModule)
    assert type(model.attention).__name__ == "Baked"
    assert model.attention.num_heads == 2
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))
    assert "index" in dict(model.attention.named_buffers())


def test_another_call_is_refused() -> None:
    model, x = Model(Baked()), torch.randn(2, 4, 5)
    structures = find_structures(model, (x,))
    operate(model, structures, KeepPlan({heads(structures): torch.tensor([0, 1])}))
    with pytest.raises(AssertionError, match="mask has to be None, as it was when"):
        model.attention(torch.randn(2, 4, 12), torch.zeros(4, 4))


FEW = (("reshape", (None, None)), ("view", (2, 2)), ("reshape", (None,)))


class Twofold(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.sin() if self.training else x).view(-1, 2)


class Hidden(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(-1, 2) if len(x) > 1 else x


@pytest.mark.parametrize(
    ("module", "sizes", "message"),
    [
        (Twofold(), (("view", (None, 2)),), r"forward of it does other things in training mode"),
        (
            Hidden(),
            (("view", (None, 2)),),
            r"forward of it \(Hidden\) cannot be written anew: 'len'",
        ),
        (Baked(), (("view", (None, 2)),), r"shapes tensors by .*'reshape'.* and its graph by"),
        (Baked(), FEW, r"states 1 lengths where its graph has 2"),
        (nn.MultiheadAttention(6, 2), (), r"need_weights=False"),
        (nn.MultiheadAttention(6, 2, add_bias_kv=True), (), r"without added keys"),
    ],
)
def test_what_cannot_be_written_anew(module: nn.Module, sizes: tuple, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        restate(module, Restated("it", (("mask", None),), sizes, ()))
