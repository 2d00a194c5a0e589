"""Source code of a network: operators, constructors, and whole networks against the original."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, random_plan
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F

from guyot.core.errors import GuyotWarning, UnsupportedError
from guyot.results.codegen.leaves import constructor, written
from guyot.results.codegen.markup import plain
from guyot.results.codegen.operators import BINARY, FUNCTIONS, METHODS, SPECIAL, TORCH, expression
from guyot.results.codegen.text import quoted, wrap_line
from guyot.results.export import to_source
from guyot.structures import find_structures
from guyot.surgery import operate

X = torch.linspace(-2, 2, 48).reshape(2, 4, 6)
IMAGE = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)
WEIGHT = torch.linspace(-1, 1, 4 * 4 * 3 * 3).reshape(4, 4, 3, 3)
ROW, MASK = torch.arange(6.0), X > 0
EXAMPLES: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        """
        abs.default clone.default contiguous.default cos.default detach.default detach_.default
        exp.default mean.default relu_.default sigmoid.default sin.default squeeze.default
        sum.default tanh.default elu.default gelu.default glu.default hardsigmoid.default
        hardswish.default hardtanh.default leaky_relu.default mish.default relu.default
        relu6.default silu.default softplus.default alias.default neg.default tril.default
        lift_fresh_copy.default
        """.split(),
        (X,),
    ),
    **{name: (X, ROW) for name in BINARY if name.endswith("Tensor")},
    **{name: (X, 2) for name in BINARY if name.endswith("Scalar")},
    "__and__.Tensor": (MASK, MASK),
    "__or__.Tensor": (MASK, MASK),
    "matmul.default": (X, X.transpose(1, 2)),
    "add_.Tensor": (X, ROW),
    "mul_.Tensor": (X, ROW),
    "fill_.Tensor": (X, torch.tensor(3.0)),
    "amax.default": (X, [1], True),
    "bmm.default": (X, X.transpose(1, 2)),
    "chunk.default": (X, 2, 1),
    "clamp.default": (X, -1, 1),
    "cumsum.default": (X, 1),
    "flatten.using_ints": (X, 1),
    "gather.default": (X, 1, torch.zeros(2, 2, 6, dtype=torch.int64)),
    "log.default": (X.exp(),),
    "log_softmax.int": (X, -1),
    "masked_fill.Scalar": (X, MASK, float("-inf")),
    "max.dim": (X, 1),
    "mean.dim": (X, [1, 2], True),
    "new_ones.default": (X, [2, 3]),
    "new_zeros.default": (X, [2, 3]),
    "roll.default": (X, [1, 2], [0, 1]),
    "rsqrt.default": (X.exp(),),
    "softmax.int": (X, -1),
    "split.Tensor": (X, 2, 1),
    "split_with_sizes.default": (X, [1, 3], 1),
    "sqrt.default": (X.exp(),),
    "squeeze.dim": (X[:, :1], 1),
    "squeeze.dims": (X[:, :1], [1]),
    "sum.dim_IntList": (X, [1]),
    "transpose.int": (X, 0, -1),
    "unbind.int": (X, 1),
    "unflatten.int": (X, -1, [2, 3]),
    "unsqueeze.default": (X, 1),
    "adaptive_avg_pool1d.default": (X, [3]),
    "adaptive_avg_pool2d.default": (IMAGE, [1, 1]),
    "avg_pool2d.default": (IMAGE, [2, 2], [2, 2], [1, 1], True),
    "conv1d.default": (X, WEIGHT[:, :, 0], None, [2], [1]),
    "conv2d.default": (IMAGE, WEIGHT, torch.ones(4), [1, 1], [1, 1]),
    "conv3d.default": (IMAGE[None], WEIGHT[None, :2, :2]),
    "conv_transpose2d.input": (IMAGE, WEIGHT, None, [2, 2], [1, 1], [1, 1], 2),
    "linear.default": (X, torch.ones(3, 6), torch.ones(3)),
    "max_pool2d.default": (IMAGE, [3, 3], [2, 2], [1, 1]),
    "pad.default": (X, [1, 0, 0, 2], "constant", 0.5),
    "pixel_shuffle.default": (IMAGE, 2),
    "prelu.default": (X, torch.full((4,), 0.3)),
    "rms_norm.default": (X, [6], ROW, 1e-3),
    "scaled_dot_product_attention.default": (X, X, X),
    "arange.default": (5,),
    "arange.start": (2, 5),
    "cat.default": ([X, X], 1),
    "einsum.default": ("bij,bkj->bik", [X, X]),
    "full.default": ([2, 3], 0.5),
    "ones.default": ([2, 3],),
    "stack.default": ([X, X], 1),
    "where.self": (MASK, X, X.neg()),
    "where.ScalarOther": (MASK, X, 0.0),
    "zeros.default": ([2, 3],),
    "view.default": (X, [2, -1]),
    "reshape.default": (X, [8, 6]),
    "expand.default": (X[:, :1], [-1, 3, -1]),
    "permute.default": (X, [2, 0, 1]),
    "slice.Tensor": (X, 1, 1, 2**63 - 1, 2),
    "select.int": (X, 1, -1),
    "index.Tensor": (X, [None, torch.tensor([2, 0])]),
    "to.dtype": (X, torch.float64),
    "to.device": (X, torch.device("cpu"), torch.float64),
    "to.dtype_layout": (X,),
    "_to_copy.default": (X,),
    "embedding.default": (torch.ones(9, 3), torch.tensor([[1, 2]]), 0),
    "dropout.default": (X, 0.5, False),
    "layer_norm.default": (X, [6], ROW, None, 1e-3, False),
    "group_norm.default": (X, 2, torch.ones(4), None, 1e-3, True),
    "batch_norm.default": (
        X, torch.ones(4), torch.ones(4), torch.ones(4), torch.ones(4), False, 0.1, 1e-3, True,
    ),
}  # fmt: skip
KEYWORDS: dict[str, dict[str, Any]] = {
    "gelu.default": {"approximate": "tanh"},
    "scaled_dot_product_attention.default": {"is_causal": True, "scale": 0.5},
    "arange.default": {"dtype": torch.float64, "device": torch.device("cpu"), "pin_memory": False},
    "new_ones.default": {"dtype": torch.bool, "pin_memory": False},
    "to.dtype_layout": {"dtype": torch.float64, "layout": torch.strided},
    "_to_copy.default": {"dtype": torch.float64},
    "mean.dim": {"dtype": torch.float64},
}


class Spelled:
    """Values by the names of placeholders."""

    training = False

    def __call__(self, value: Any, hint: str = "", *, tight: bool = False) -> str:
        if isinstance(value, list):
            return f"[{', '.join(self(item) for item in value)}]"
        return value.name if isinstance(value, fx.Node) else written(value, hint)

    def device(self) -> str:
        return 'torch.device("cpu")'


def in_source(name: str) -> tuple[str, Any]:
    """The source text of an operator on its example, and what the text gives."""
    packet, _, overload = name.partition(".")
    graph, values = fx.Graph(), {}

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        node = graph.placeholder(f"v{len(values)}")
        values[node.name] = value.clone()
        return node

    target = getattr(getattr(torch.ops.aten, packet), overload)
    arguments = tuple(placed(value) for value in EXAMPLES[name])
    node = graph.call_function(target, arguments, KEYWORDS.get(name, {}))
    text = plain(expression(node, Spelled()).text)
    found = eval(text, {"torch": torch, "F": F, "self": Spelled(), **values})
    return text, found


def leaves(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def test_every_operator_of_the_table_has_an_example():
    assert set(EXAMPLES) == METHODS | FUNCTIONS | TORCH | set(BINARY) | SPECIAL


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_operator_is_written_as_people_do(name: str):
    packet, _, overload = name.partition(".")
    target = getattr(getattr(torch.ops.aten, packet), overload)
    arguments = [a.clone() if isinstance(a, Tensor) else a for a in EXAMPLES[name]]
    expected = leaves(target(*arguments, **KEYWORDS.get(name, {})))
    text, found = in_source(name)
    assert "torch.ops" not in text
    assert len(leaves(found)) == len(expected)
    for ours, theirs in zip(leaves(found), expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs) or torch.allclose(ours, theirs, atol=1e-6)


def test_other_operators_are_written_by_their_full_name():
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_function(torch.ops.aten.diff.default, (x, 1, -1))
    assert plain(expression(node, Spelled()).text) == "torch.ops.aten.diff.default(x, 1, -1)"


class Short(nn.Module):
    """Calls operators without the arguments that have defaults."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.layer_norm(self.linear(x), (6,), eps=1e-2)
        return torch.group_norm(x, 2, bias=self.linear.bias)


def test_arguments_that_were_left_out_stay_out(tmp_path: Path):
    text = source_of(Short(), (torch.randn(2, 6),), tmp_path / "net")
    call = "F.layer_norm(self.linear(x),[6],eps=0.01),2,bias=self.linear.bias"
    assert call in "".join(text.split())


LEAVES = [
    nn.Linear(3, 5, bias=False),
    nn.Conv2d(4, 6, (3, 1), stride=2, padding="valid", dilation=2, groups=2, padding_mode="zeros"),
    nn.Conv1d(3, 3, 5, padding=2, bias=False),
    nn.Conv3d(2, 2, 3),
    nn.ConvTranspose2d(4, 6, 2, stride=2, output_padding=1, groups=2),
    nn.BatchNorm2d(7, eps=1e-3, momentum=0.01),
    nn.BatchNorm1d(7, affine=False, track_running_stats=False),
    nn.LayerNorm((4, 5), eps=1e-6),
    nn.LayerNorm(8, bias=False),
    nn.GroupNorm(2, 8, affine=False),
    nn.RMSNorm(8),
    nn.Embedding(9, 3, padding_idx=2),
    nn.Dropout(0.25),
    nn.GELU(approximate="tanh"),
    nn.ReLU(inplace=True),
    nn.LeakyReLU(0.2),
    nn.PReLU(3),
    nn.Softmax(dim=1),
    nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True),
    nn.AvgPool2d((2, 3), count_include_pad=False),
    nn.AdaptiveAvgPool2d((1, 1)),
    nn.Upsample(scale_factor=2, mode="nearest"),
    nn.Flatten(2),
    nn.PixelShuffle(2),
    nn.MultiheadAttention(8, 2, bias=False, batch_first=True),
]


@pytest.mark.parametrize("module", LEAVES, ids=lambda module: type(module).__name__)
def test_a_constructor_is_read_off_the_module(module: nn.Module):
    text = plain(constructor(module) or "")
    made = eval(text, {"nn": nn})
    assert type(made) is type(module)
    assert repr(made) == repr(module)
    assert {n: t.shape for n, t in made.state_dict().items()} == {
        n: t.shape for n, t in module.state_dict().items()
    }


class Shifted(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input) + 1


def test_modules_that_differ_from_their_class_have_no_constructor():
    cut = nn.Linear(4, 4)
    cut.weight.data = cut.weight.data[:3]
    assert constructor(cut) is None
    assert constructor(Shifted(2, 2)) is None
    assert constructor(nn.Sequential(nn.Linear(2, 2))) is None
    assert constructor(nn.LSTM(2, 2)) is None


# -- whole networks ----------------------------------------------------------------------------


def source_of(model: nn.Module, inputs: Any, folder: Path) -> str:
    to_source(model, inputs, folder)
    return (folder / "model.py").read_text()


def network_of(folder: Path) -> nn.Module:
    """The generated network, with its weights."""
    space: dict[str, Any] = {"__file__": str(folder / "model.py"), "__name__": "generated"}
    exec(compile((folder / "model.py").read_text(), "model.py", "exec"), space)
    return space["load"]()


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=2, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_what_surgery_leaves_is_written(
    name: str, tmp_path_factory: pytest.TempPathFactory, seed: int
):
    model, inputs = CASES[name].build(), (CASES[name].inputs(),)
    structures = find_structures(model, inputs)
    operate(model, structures, random_plan(structures, seed))
    folder = tmp_path_factory.mktemp("source") / "net"
    exported = to_source(model, inputs, folder)
    assert exported.difference < 1e-6
    network = network_of(folder)
    assert {n: t.shape for n, t in network.state_dict().items()} == {
        n: t.shape for n, t in model.state_dict().items()
    }
    assert sum(p.numel() for p in network.parameters()) == sum(
        p.numel() for p in model.parameters()
    )
    assert "torch.ops" not in (folder / "model.py").read_text()


def test_the_source_trains_like_the_model(tmp_path: Path):
    case = CASES["cifar"]
    model, inputs = case.build(), case.inputs()
    structures = find_structures(model, (inputs,))
    operate(model, structures, random_plan(structures, 3))
    source_of(model, (inputs,), tmp_path / "net")
    network = network_of(tmp_path / "net")
    for each in (model, network):
        each.train()
        each(inputs).square().mean().backward()
    gradients = {name: p.grad for name, p in network.named_parameters()}
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradients[name], parameter.grad, atol=1e-6)
    for name, buffer in model.named_buffers():
        assert torch.allclose(dict(network.named_buffers())[name].float(), buffer.float())


class Block(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.grow = nn.Linear(width, hidden)
        self.shrink = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shrink(F.gelu(self.grow(self.norm(x))))


class Tokens(nn.Module):
    """Attention, a class token, a ModuleList, and a size that depends on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.blocks = nn.ModuleList(Block(6, hidden) for hidden in (5, 8, 3))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0])


GOLDEN = '''
class Block(nn.Module):
    """blocks.0, blocks.1, blocks.2."""

    def __init__(self, grow_out: int):
        super().__init__()
        self.norm = nn.LayerNorm(6)
        self.grow = nn.Linear(6, grow_out)
        self.shrink = nn.Linear(grow_out, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.shrink(F.gelu(self.grow(self.norm(x))))


class Network(nn.Module):
    """The whole network."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 6))
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.blocks = nn.ModuleList([Block(5), Block(8), Block(3)])
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        x = self.blocks[0](x + self.attention(x, x, x, need_weights=False)[0])
        return self.head(self.blocks[2](self.blocks[1](x))[:, 0])


def load('''


def test_the_source_reads_like_source(tmp_path: Path):
    assert GOLDEN in source_of(Tokens(), (torch.randn(2, 4, 6),), tmp_path / "net")


class Odd(nn.Module):
    """Everything that is not a chain of torch.nn's own modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.shared = nn.Sequential(nn.Linear(6, 6), nn.ReLU())
        self.again = self.shared
        self.by_name = nn.ModuleDict({"a-b": nn.Linear(6, 6), "class": Block(6, 4)})
        self.named = nn.Sequential()
        self.named.add_module("first", nn.Linear(6, 6))
        self.named.add_module("second", nn.Tanh())
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))
        self.plain = nn.Linear(6, 6)
        self.frozen = nn.Parameter(torch.randn(6), requires_grad=False)
        self.register_buffer("scale", torch.rand(6), persistent=False)
        self.output = nn.Linear(6, 11, bias=False)
        self.output.weight = self.embed.weight
        self.unused = nn.Linear(3, 3)
        self.factors = nn.ParameterList([nn.Parameter(torch.randn(6))])

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Mapping[str, Any]:
        x = self.again(self.shared(self.embed(ids))) * self.scale + self.frozen
        x = x + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) * torch.tensor(0.5)
        x = self.named(self.by_name["class"](self.by_name["a-b"](x)))
        x = self.norm(x) * self.factors[0] @ self.plain.weight + self.plain(x)
        left, _, right = x.split([2, 1, 3], -1)
        x = torch.cat((right, x.amax(-1, keepdim=True), left), -1)
        pooled = torch.zeros(ids.shape[0], 6)
        pooled += x.mean(1)
        if mask is not None:
            pooled *= mask.unsqueeze(1)
        return {"logits": self.output(x), "rest": [pooled, (x, left)]}


def test_what_is_odd_is_written_too(tmp_path: Path):
    model = Odd()
    inputs = {"ids": torch.randint(11, (2, 4)), "mask": torch.tensor([1.0, 0.0])}
    with pytest.warns(GuyotWarning, match=r"2 parameters .*not use were left out.*unused.weight"):
        text = source_of(model, inputs, tmp_path / "net")
    network = network_of(tmp_path / "net")
    assert network.output.weight is network.embed.weight
    assert not network.frozen.requires_grad
    assert text.count("class Block") == 1
    assert "self.shared(self.shared(" in text
    ids, mask = torch.randint(11, (7, 4)), torch.rand(7)
    with torch.no_grad():
        expected, found = model.eval()(ids, mask), network(ids=ids, mask=mask)
    assert found.keys() == {"logits", "rest"} and isinstance(found["rest"][1], tuple)
    assert torch.allclose(found["logits"], expected["logits"], atol=1e-6)
    assert torch.allclose(found["rest"][0], expected["rest"][0], atol=1e-6)


class Twice(nn.Module):
    """One module, called in two ways: only one of them can be its `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, 2) + self.inner(x, 3) + self.inner(x, 2)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, factor: int) -> Tensor:
        for _ in range(factor):
            x = self.linear(x).relu() * factor
        return x


def test_a_module_that_is_called_in_two_ways(tmp_path: Path):
    text = source_of(Twice(), (torch.randn(2, 4),), tmp_path / "net")
    assert text.count("self.inner(x)") == 2
    assert text.count("self.inner.linear(") == 3


def test_dtypes_stay(tmp_path: Path):
    model = CASES["mlp"].build().to(torch.bfloat16)
    model[0].to(torch.float64)
    model.insert(1, Cast())
    source_of(model, (torch.randn(2, 7, dtype=torch.float64),), tmp_path / "net")
    network = network_of(tmp_path / "net")
    assert [p.dtype for p in network.parameters()] == [p.dtype for p in model.parameters()]


class Cast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (self.linear(x),))


def test_what_cannot_be_written_is_refused(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"operator cond .*cannot be written.*pt2 or onnx"):
        to_source(Branching(), (torch.randn(2, 4),), tmp_path / "net")
    assert not (tmp_path / "net").exists()


NASTY = st.text(
    st.sampled_from("ab1_ -,()[]{}\"'\\\n\t\x01\x02\x03#é\ufb01{"), min_size=1, max_size=12
)


@given(NASTY)
def test_a_text_is_quoted_as_what_it_is(text: str):
    assert eval(quoted(text)) == text


@given(st.lists(NASTY, min_size=6, max_size=12, unique=True))
def test_lines_are_not_broken_inside_texts(texts: list[str]):
    call = f"nn.ModuleDict({{{', '.join(f'{quoted(t)}: (1, {n})' for n, t in enumerate(texts))}}})"
    nested = "\n".join(wrap_line(f"f({call}, [{', '.join(map(quoted, texts))}])"))
    found = eval(
        nested,
        {"f": lambda *given: given, "nn": nn.Module and type("nn", (), {"ModuleDict": dict})},
    )
    assert found == ({t: (1, n) for n, t in enumerate(texts)}, texts)


class Named(nn.Module):
    """Modules, a parameter, a buffer, a tie and a key of the output, all with the same odd name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.heads, self.plain, self.label = nn.ModuleDict(), nn.Linear(3, 3), name
        self.inner, self.twin = nn.Module(), nn.Module()
        self.heads[name] = nn.Linear(3, 3)
        self.add_module(name, nn.Linear(3, 3))
        self.inner.register_parameter(name, nn.Parameter(torch.randn(3)))
        self.twin.register_parameter(name, self.inner.get_parameter(name))
        self.twin.register_buffer(f"{name}+", torch.randn(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = getattr(self, self.label)(self.heads[self.label](self.plain(x)))
        x = x + getattr(self.inner, self.label) * getattr(self.twin, f"{self.label}+")
        return {self.label: x}


ATTACK = '"); open("{file}", "w"); ("'


@pytest.mark.parametrize(
    "name",
    [
        '5" screen',
        "it's",
        "back\\slash",
        "a, b(c]",
        'x"""y',
        "\ufb01t",
        "\n#",
        ATTACK,
        ATTACK.replace('"', "'"),
    ],
)
def test_names_are_written_as_texts(name: str, tmp_path: Path):
    mark = tmp_path / "ran"
    name = name.replace("{file}", str(mark).replace(".", "_"))  # names of modules have no dot
    source_of(Named(name).eval(), torch.randn(2, 3), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_name_of_a_class_is_no_code(tmp_path: Path):
    text = 'Net"""\nopen("' + str(tmp_path / "ran") + '", "w")\n"""'
    odd = type(text, (nn.Module,), {"forward": lambda self, x: self.a(x).relu()})()
    odd.a = nn.Linear(3, 3)
    outer = nn.Module.__new__(type(text, (nn.Module,), {"forward": lambda self, x: self.b(x) + 1}))
    nn.Module.__init__(outer)
    outer.b = odd
    source_of(outer.eval(), torch.randn(2, 3), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class Said(str):
    """A text that shows itself as something else."""

    def __repr__(self) -> str:
        return "print('code ran')"


def test_values_do_not_say_how_they_are_written():
    assert plain(written(Said("zeros"))) == "'zeros'"
    assert plain(
        constructor(nn.Conv2d(3, 3, 3, padding=1, padding_mode=Said("reflect"))) or ""
    ) == ("nn.Conv2d(3, 3, 3, padding=1, padding_mode='reflect')")
    with pytest.raises(
        UnsupportedError, match=r"a value of type .*Path cannot be written as source"
    ):
        written(Path("x"))


def test_the_table_of_operators_is_sorted_out():
    groups = [METHODS, FUNCTIONS, TORCH, set(BINARY), SPECIAL]
    assert sum(map(len, groups)) == len(set().union(*groups))
