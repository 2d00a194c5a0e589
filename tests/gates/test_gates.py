"""Gates clamped to a mask are the pruned network, and leave no trace when they go."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from cases import CASES, clamped, gates_of, kept_part, random_plan
from torch import Tensor, nn
from torch.nn import functional

from guyot import find_structures
from guyot.core.types import KeepPlan
from guyot.gates.bank import Gates, Norms
from guyot.surgery import operate

CPU = torch.device("cpu")


def doubled(name: str) -> tuple[nn.Module, Tensor]:
    """A case in float64, every vector of it (norms, biases) random."""
    model = CASES[name].build().double()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
    return model, CASES[name].inputs().double()


def gated(model: nn.Module, inputs: Tensor) -> Gates:
    gates = Gates(find_structures(model, (inputs,)), CPU)
    gates.attach(model)
    return gates


def norms_of(gates: Gates, model: nn.Module) -> Norms:
    """As if one optimiser held all parameters."""
    squares = gates.squares(model.parameters())
    return gates.norms([squares], gates.gradient.abs(), torch.ones_like(gates.gradient))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_masked_is_pruned(name: str, training: bool, seed: int) -> None:
    model, x = doubled(name)
    structures = find_structures(model, (x,))
    plan = random_plan(structures, seed)
    assert not plan.empty
    masked, pruned = copy.deepcopy(model).train(training), copy.deepcopy(model).train(training)
    gates = clamped(masked, structures, plan)
    operate(pruned, structures, plan)

    torch.testing.assert_close(masked(x), pruned(x), rtol=1e-10, atol=1e-10)

    gates.detach()
    before = dict(masked.named_buffers())
    for key, buffer in pruned.named_buffers():
        expected = kept_part(before[key], key, structures, plan)
        torch.testing.assert_close(buffer, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_gates_are_derivatives_of_the_loss(name: str) -> None:
    model, x = doubled(name)
    gates = gated(model, x)
    gates.sampled.copy_(torch.bernoulli(torch.full_like(gates.sampled, 0.7)))
    model.train()

    def loss() -> Tensor:
        return model(x).square().mean()

    loss().backward()
    h, found = 2.0**-14, gates.gradient.clone()  # exact in float32
    assert bool(found.any())
    for j in range(0, len(gates.sampled), 3):
        values = []
        for sign in (1, -1):
            gates.sampled[j] += sign * h
            values.append(loss().item())
            gates.sampled[j] -= sign * h
        slope = (values[0] - values[1]) / (2 * h)
        torch.testing.assert_close(found[j].item(), slope, rtol=2e-3, atol=1e-4)


def test_gradients_add_up_over_backward_passes() -> None:
    model, x = doubled("mlp")
    gates = gated(model, x)
    for _ in range(2):
        model(x).square().mean().backward()
    twice = gates.gradient.clone()
    gates.zero_grad()
    model(x).square().mean().backward()
    torch.testing.assert_close(twice, 2 * gates.gradient)


@pytest.mark.parametrize("name", CASES)
def test_gates_leave_no_trace(name: str) -> None:
    model, x = doubled(name)
    parameters = list(model.named_parameters())
    buffers = list(model.named_buffers())
    values = {key: value.clone() for key, value in model.state_dict().items()}
    classes = [type(module) for module in model.modules()]

    gates = gated(model, x)
    model(x).sum().backward()
    gates.detach()

    now = list(model.named_parameters())
    assert [key for key, _ in now] == [key for key, _ in parameters], "order of parameters"
    assert all(a is b for (_, a), (_, b) in zip(now, parameters, strict=True))
    assert [key for key, _ in model.named_buffers()] == [key for key, _ in buffers]
    assert list(model.state_dict()) == list(values)
    assert [type(module) for module in model.modules()] == classes
    for key, buffer in model.state_dict().items():
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(buffer, values[key]), key


def test_open_gates_change_nothing() -> None:
    model, x = doubled("cifar")
    expected = copy.deepcopy(model).train()(x)
    gated(model, x)
    assert torch.equal(model.train()(x), expected)


def test_modes_choose_between_sampled_and_probable() -> None:
    model, x = doubled("tokens")
    structures = find_structures(model, (x,))
    plans = [random_plan(structures, seed) for seed in (1, 2)]
    gates = Gates(structures, CPU)
    gates.attach(model)
    gates.sampled.copy_(gates_of(structures, plans[0]))
    gates.probable.copy_(gates_of(structures, plans[1]))
    outputs = [model.train()(x), model.eval()(x)]
    gates.detach()
    for plan, output in zip(plans, outputs, strict=True):
        pruned = copy.deepcopy(model)
        operate(pruned, structures, plan)
        torch.testing.assert_close(output, pruned(x), rtol=1e-10, atol=1e-10)


class Tied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.one = nn.Linear(6, 6)
        self.two = nn.Linear(6, 6)
        self.two.weight = self.one.weight
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.two(torch.relu(self.one(torch.relu(self.stem(x)))))))


def test_tied_weights_are_masked_everywhere() -> None:
    model, x = Tied().double(), torch.randn(5, 4, dtype=torch.float64)
    structures = find_structures(model, (x,))
    plan = KeepPlan({0: torch.tensor([1, 4])})
    masked, pruned = copy.deepcopy(model), copy.deepcopy(model)
    gates = clamped(masked, structures, plan)
    operate(pruned, structures, plan)
    assert pruned.two.weight is pruned.one.weight
    assert pruned.two.weight.shape == (2, 2)
    torch.testing.assert_close(masked(x), pruned(x), rtol=1e-10, atol=1e-10)
    gates.detach()
    assert masked.two.weight is masked.one.weight


def test_a_module_called_twice_is_masked_in_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.again = nn.Linear(4, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.again(torch.relu(self.again(self.stem(x))))))

    model, x = Twice().double(), torch.randn(5, 4, dtype=torch.float64)
    structures = find_structures(model, (x,))
    plan = KeepPlan({0: torch.tensor([0, 3, 5])})
    masked, pruned = copy.deepcopy(model), copy.deepcopy(model)
    clamped(masked, structures, plan)
    operate(pruned, structures, plan)
    torch.testing.assert_close(masked(x), pruned(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gates_keep_the_dtype_of_weights(dtype: torch.dtype) -> None:
    model = CASES["mlp"].build().to(dtype)
    x = CASES["mlp"].inputs().to(dtype)
    gates = gated(model, x)
    output = model(x)
    output.sum().backward()
    assert output.dtype is dtype
    assert model[0].weight.dtype is dtype
    assert bool(gates.gradient.isfinite().all())
    assert bool(gates.gradient.any())


@pytest.mark.parametrize("name", ["cifar", "flat_cnn"])
def test_autocast_and_channels_last(name: str) -> None:
    case = CASES[name]
    model = case.build().to(memory_format=torch.channels_last)
    x = case.inputs().to(memory_format=torch.channels_last)
    gates = gated(model, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x).square().mean()
    loss.backward()
    assert gates.gradient.dtype is torch.float32
    assert bool(gates.gradient.any())
    gates.detach()
    four = [p for p in model.parameters() if p.dim() == 4]
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in four)


class Own(nn.Conv2d):
    """A forward of its own may do with its weight what it likes."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, self.bias)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("pixels", [5, 9], ids=["inputs", "weights"])
@pytest.mark.parametrize("kind", [nn.Conv2d, Own])
def test_narrow_weights_change_nothing(kind: type[nn.Conv2d], pixels: int, compiled: bool) -> None:
    """Under autocast to bfloat16 gates multiply narrow weights where no operator sees wide ones."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), kind(8, 4, 3), nn.Flatten())
    plain, x = copy.deepcopy(model), torch.randn(2, 3, pixels, pixels)
    gates = gated(model, x)
    gone = torch.tensor([0, 3])
    gates.sampled[gone] = 0
    plain[2].weight.data[:, gone] = 0
    losses: list[Tensor] = []
    for network in (model, plain):
        read: list[torch.dtype] = []
        network[2].register_forward_hook(lambda m, *_, read=read: read.append(m.weight.dtype))
        run = torch.compile(network, backend="aot_eager") if compiled else network
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(run(x).square().mean())
        losses[-1].backward()
        narrow = network is model and kind is nn.Conv2d
        assert read == [torch.bfloat16 if narrow else torch.float32]
    assert losses[0] == losses[1]
    weight, gradient = plain[2].weight, dict(model.named_parameters())["2.weight"].grad
    expected = weight.grad.index_fill(1, gone, 0)
    assert torch.equal(gradient, expected)
    of_gates = (weight * expected).sum((0, 2, 3))
    torch.testing.assert_close(gates.gradient[4:], of_gates[4:], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", ["linear", "convolution"])
def test_masking_what_is_read_is_masking_the_weight(name: str, batched: bool) -> None:
    torch.manual_seed(0)
    if name == "linear":
        layers, x = (nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 9)), torch.randn(40, 5)
    else:
        layers = nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3, padding=1)
        x = torch.randn(40, 2, 6)
    model, x = nn.Sequential(*layers).double(), x.double()
    gates = gated(model, x)
    gates.sampled[1::3] = 0
    masked = []
    for parts in ([x], x.split(2) if batched else x.unbind()):
        gates.zero_grad()
        model.zero_grad()
        outputs = [model(part) for part in parts]
        torch.stack([output.square().sum() for output in outputs]).sum().backward()
        together = torch.cat(outputs) if batched or len(parts) == 1 else torch.stack(outputs)
        masked.append([together, gates.gradient, *(p.grad.clone() for p in model.parameters())])
    for whole, few in zip(*masked, strict=True):
        torch.testing.assert_close(whole, few, rtol=1e-6, atol=1e-8)
    assert bool(masked[0][1].all())
    assert not masked[0][4][:, 1::3].any()


def test_few_inputs_leave_a_weight_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 9))
    gated(model, torch.randn(2, 5))
    multiplied = []
    monkeypatch.setattr(
        "guyot.gates.module._product", lambda tensor, *_: multiplied.append(tensor.shape) or tensor
    )
    for count in (2, 9):
        model(torch.randn(count, 5))
    assert multiplied == [(2, 16), (9, 16), (9, 16)]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_second_derivatives_do_not_lose_gradients() -> None:
    model, x = doubled("tokens")
    gates = gated(model, x)
    model(x).square().mean().backward()
    plain = gates.gradient.clone()
    assert bool(plain.any())
    gates.zero_grad()
    model(x).square().mean().backward(create_graph=True)
    torch.testing.assert_close(gates.gradient, plain)


def test_gates_of_frozen_norms_are_sampled() -> None:
    """Fine-tuning with BatchNorm in evaluation mode still tells what a branch earns."""
    model, x = doubled("cifar")
    gates = gated(model, x)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    model(x).square().mean().backward()
    assert bool((gates.gradient[gates.structures.index.layer_slice] != 0).all())


class Tying(nn.Module):
    """Reads the weight of a child in its own `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.first(x).relu(), self.last.weight, self.last.bias)


def test_outside_of_forward_a_weight_is_its_parameter() -> None:
    model, x = Tying(), torch.randn(3, 4)
    parameter = model.last.weight
    gates = gated(model, x)
    gates.sampled[:4] = 0
    assert model.last.weight is parameter
    with torch.no_grad():
        model.last.weight.clamp_(-0.1, 0.1)
        hidden = model.first(x).relu().double()
        hidden[:, :4] = 0
    expected = functional.linear(hidden, parameter.double(), model.last.bias.double())
    y = model(x)
    torch.testing.assert_close(y.double(), expected)
    y.sum().backward()
    assert model.last.weight.grad is parameter.grad is not None
    assert not parameter.grad[:, :4].any() and parameter.grad[:, 4:].any()
    with pytest.raises(RuntimeError, match="shapes"):
        model(x[:, :3])
    assert model.last.weight is parameter
    assert [*inspect.signature(model.last.forward).parameters] == ["input"]
    twin = copy.deepcopy(model)
    assert isinstance(twin.last.weight, nn.Parameter) and torch.equal(twin(x), y)


@pytest.mark.parametrize("direct", [False, True])
def test_parts_that_are_called_alone_are_gated(direct: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 2)))
    gates = gated(model, torch.randn(3, 4))
    gates.sampled[:] = 0
    part = model[2]
    out = part[0].forward(torch.ones(3, 6)) if direct else part(torch.ones(3, 6))
    assert torch.equal(out, part[0].bias.expand(3, 2))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_a_hook_computes_from_weights_is_gated_as_well() -> None:
    norm = nn.utils.weight_norm(nn.Linear(6, 2))  # pyright: ignore[reportDeprecated]
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), norm)
    gates = gated(model, torch.randn(3, 4))
    gates.sampled[2:] = 0
    x = torch.randn(3, 6)
    assert torch.equal(norm(x), norm(x.index_fill(1, torch.arange(2, 6), 9.0)))
    assert norm.weight_v is dict(norm.named_parameters())["weight_v"]


class Frozen(nn.Module):
    """A norm of buffers alone, as detectors have."""

    def __init__(self, width: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "mean", "var"):
            self.register_buffer(name, torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        own = (self.weight, self.bias, self.mean, self.var)
        weight, bias, mean, var = (buffer.view(1, -1, 1, 1) for buffer in own)
        scale = weight * var.rsqrt()
        return x * scale + (bias - mean * scale)


class Residual(nn.Module):
    """A branch that ends in a frozen norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1), Frozen(4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.two(self.one(x).relu()))


def test_a_branch_that_ends_in_buffers_is_gated_and_never_certified() -> None:
    model, x = (
        nn.Sequential(nn.Conv2d(3, 4, 1), Residual(), nn.Conv2d(4, 2, 1)),
        torch.rand(2, 3, 4, 4),
    )
    gates = gated(model, x)
    (layer,) = gates.structures.layers
    assert layer.writers == ("1.norm.bias", "1.norm.weight")
    place = gates.structures.index.layer(0)
    model(x).square().sum().backward()
    assert gates.gradient[place] != 0
    norms = norms_of(gates, model)
    assert norms.weight[place] > 0 and norms.gradient[place].isinf()
    assert bool(norms.gradient[:place].isfinite().all()) and bool(norms.gradient[:place].any())
    gates.sampled[place] = 0
    torch.testing.assert_close(model(x), model[2](model[0](x)))
    state = model.state_dict()
    assert bool(state["1.norm.weight"].all())


def test_weights_that_do_not_learn_are_never_certified() -> None:
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(5, 4)
    model[2].weight.requires_grad_(False)
    gates = gated(model, x)
    model(x).square().sum().backward()
    norms = norms_of(gates, model)
    assert bool(norms.gradient.isinf().all())
