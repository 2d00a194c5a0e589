"""Surgery on parameters and optimisers: what is kept goes on as if nothing had happened."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from cases import CASES, clamped, kept_part, random_plan
from torch import Tensor, nn

from guyot import UnsupportedError, find_structures
from guyot.core.types import KeepPlan, Structures
from guyot.surgery import operate

Optimizer = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, Optimizer] = {
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, 1e-2, weight_decay=1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
}


class Run:
    """A model in float64 that trains on the same random batches as every other run."""

    def __init__(self, name: str, optimizer: Optimizer) -> None:
        torch.manual_seed(1)
        self.case = CASES[name]
        self.model = self.case.build().double().train()
        self.optimizer = optimizer(self.model.parameters())
        self.batches = 0

    def backward(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.batches)
        self.batches += 1
        x = torch.randn(self.case.shape, generator=generator, dtype=torch.float64)
        self.optimizer.zero_grad()
        loss = self.model(x).square().mean()
        loss.backward()
        return loss

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.backward()
            self.optimizer.step()

    def structures(self) -> Structures:
        return find_structures(self.model, (self.case.inputs().double(),))


def assert_kept_equal(
    masked: nn.Module, pruned: nn.Module, structures: Structures, plan: KeepPlan
) -> None:
    full = dict(masked.named_parameters())
    for name, parameter in pruned.named_parameters():
        expected = kept_part(full[name].detach(), name, structures, plan)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "cifar", "dense", "mobile"])
def test_steps_after_surgery_are_those_of_the_masked_model(name: str, optimizer: str) -> None:
    masked, pruned = (Run(name, OPTIMIZERS[optimizer]) for _ in range(2))
    for run in (masked, pruned):
        run.train(3)
        run.backward()
    structures = pruned.structures()
    plan = random_plan(structures, seed=3)
    operate(pruned.model, structures, plan, [pruned.optimizer])

    gradients = {name: p.grad for name, p in masked.model.named_parameters()}
    for key, parameter in pruned.model.named_parameters():
        assert torch.equal(parameter.grad, kept_part(gradients[key], key, structures, plan)), key

    for run in (masked, pruned):  # with the gradients that were there at the time
        run.optimizer.step()
    assert_kept_equal(masked.model, pruned.model, structures, plan)
    gates = clamped(masked.model, structures, plan)
    for _ in range(3):
        masked.train(1)
        pruned.train(1)
    gates.detach()
    assert_kept_equal(masked.model, pruned.model, structures, plan)


@pytest.mark.parametrize("name", CASES)
def test_several_removals_are_one(name: str) -> None:
    case = CASES[name]
    model = case.build()
    x = case.inputs()
    first = find_structures(model, (x,))
    once, twice = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()

    plan = random_plan(first, seed=5)
    shrunk = operate(twice, first, KeepPlan({}, plan.removed_layers))
    index = {group.name: n for n, group in enumerate(first.groups)}
    rest = {
        n: plan.kept[index[group.name]]
        for n, group in enumerate(shrunk.structures.groups)
        if index[group.name] in plan.kept
    }
    last = operate(twice, shrunk.structures, KeepPlan(rest))
    combined = operate(once, first, plan)

    assert last.structures == combined.structures
    assert torch.equal(shrunk.gates[last.gates], combined.gates)
    assert torch.equal(once(x), twice(x))
    assert [*once.state_dict()] == [*twice.state_dict()]


@pytest.mark.parametrize("name", CASES)
def test_structures_left_are_those_found_in_the_result(name: str) -> None:
    case = CASES[name]
    model = case.build()
    structures = find_structures(model, (case.inputs(),))
    left = operate(model, structures, random_plan(structures, seed=7)).structures
    again = find_structures(model, (case.inputs(),))
    found = {frozenset(group.members): group for group in again.groups}
    for group in left.groups:
        if group.size > 1:
            twin = found[frozenset(group.members)]
            assert (twin.size, set(twin.readers)) == (group.size, set(group.readers))
    writers = {layer.writers for layer in left.layers}
    assert {layer.writers for layer in again.layers} <= writers
    assert {tensor.name for tensor in left.tensors} == set(model.state_dict())


def test_parameters_keep_their_identity_and_place() -> None:
    model = CASES["cifar"].build().to(memory_format=torch.channels_last)
    model.fc.weight.requires_grad_(False)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], lr=1e-2
    )
    x = CASES["cifar"].inputs()
    model(x).sum().backward()
    optimizer.step()
    before = dict(model.named_parameters())
    groups = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    structures = find_structures(model, (x,))
    kept = {n: torch.arange(0, g.size, 2) for n, g in enumerate(structures.groups)}
    operate(model, structures, KeepPlan(kept, frozenset({1})), [optimizer])

    after = dict(model.named_parameters())
    assert after and set(after) < set(before)
    assert all(parameter is before[name] for name, parameter in after.items())
    left = {id(p) for p in after.values()}
    for held, group in zip(groups, optimizer.param_groups, strict=True):
        assert {id(p) for p in group["params"]} == held & left
    assert {id(p) for p in optimizer.state} <= left
    assert [name for name, p in after.items() if not p.requires_grad] == ["fc.weight"]
    for parameter in after.values():
        state = optimizer.state.get(parameter, {})
        for tensor in [parameter, *([] if parameter.grad is None else [parameter.grad])]:
            if parameter.dim() == 4:
                assert tensor.is_contiguous(memory_format=torch.channels_last)
        for key in ("exp_avg", "exp_avg_sq"):
            if key in state:
                assert state[key].shape == parameter.shape
                assert state[key].stride() == parameter.stride()
    optimizer.step()


def test_dtype_is_kept() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = CASES["mlp"].build().to(dtype)
        structures = find_structures(model, (CASES["mlp"].inputs().to(dtype),))
        operate(model, structures, random_plan(structures, seed=0))
        assert {p.dtype for p in model.parameters()} == {dtype}


def test_scheduler_goes_on() -> None:
    run = Run("cifar", OPTIMIZERS["nesterov"])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, T_max=10)
    rates = []
    for step in range(10):
        run.train(1)
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
        if step == 4:
            structures = run.structures()
            operate(run.model, structures, random_plan(structures, 0), [run.optimizer])
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9)


def test_old_loss_may_outlive_the_surgery() -> None:
    run = Run("cifar", OPTIMIZERS["momentum"])
    loss = run.backward()
    output = run.model(run.case.inputs().double())  # a graph that was never run backward
    structures = run.structures()
    operate(run.model, structures, random_plan(structures, seed=2), [run.optimizer])
    run.backward()
    run.optimizer.step()
    assert loss.requires_grad
    assert output.requires_grad
    assert all(p.grad.shape == p.shape for p in run.model.parameters())


def test_state_dict_of_the_optimizer_fits() -> None:
    run = Run("mobile", OPTIMIZERS["adam"])
    run.train(2)
    structures = run.structures()
    operate(run.model, structures, random_plan(structures, seed=2), [run.optimizer])
    model, state = copy.deepcopy(run.model), copy.deepcopy(run.optimizer.state_dict())
    other = Run("mobile", OPTIMIZERS["adam"])
    other.model, other.batches = model, run.batches
    other.optimizer = OPTIMIZERS["adam"](model.parameters())
    other.optimizer.load_state_dict(state)
    for each in (run, other):
        each.train(2)
    for a, b in zip(run.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_empty_plan_changes_nothing() -> None:
    run = Run("cifar", OPTIMIZERS["adam"])
    run.train(1)
    pointers = [p.data_ptr() for p in run.model.parameters()]
    structures = run.structures()
    shrunk = operate(run.model, structures, KeepPlan(), [run.optimizer])
    assert shrunk.structures == structures
    assert [p.data_ptr() for p in run.model.parameters()] == pointers


class Exotic(torch.optim.SGD):
    """Keeps a state that is not elementwise."""

    def __init__(self, params, state: Callable[[Tensor], object]) -> None:
        super().__init__(params, 0.1)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["factors"] = state(p)


@pytest.mark.parametrize(
    "state",
    [
        lambda p: torch.ones(p.shape[0] + 1),
        lambda p: [torch.ones(p.shape[0]), torch.ones(3)],
        lambda p: {"left": torch.ones(p.shape[0], p.shape[0])},
    ],
    ids=["vector", "list", "dict"],
)
@pytest.mark.parametrize("layers", [False, True], ids=["units", "layers"])
def test_state_that_cannot_be_sliced_is_refused(state, layers: bool) -> None:
    model = CASES["cifar"].build()
    structures = find_structures(model, (CASES["cifar"].inputs(),))
    optimizer = Exotic(model.parameters(), state)
    before = {name: (p, p.shape) for name, p in model.named_parameters()}
    plan = random_plan(structures, seed=0, layers=layers)
    with pytest.raises(UnsupportedError, match=r"Exotic keeps 'factors'.*cannot slice it"):
        operate(model, structures, plan, [optimizer])
    after = {name: (p, p.shape) for name, p in model.named_parameters()}
    assert all(after[name][0] is p and p.shape == shape for name, (p, shape) in before.items())
    assert len(optimizer.state) == len(before)


def test_adafactor_is_refused() -> None:
    model = CASES["mlp"].build()
    optimizer = torch.optim.Adafactor(model.parameters())
    model(CASES["mlp"].inputs()).sum().backward()
    optimizer.step()
    structures = find_structures(model, (CASES["mlp"].inputs(),))
    with pytest.raises(UnsupportedError, match=r"Adafactor keeps .* use an optimiser"):
        operate(model, structures, random_plan(structures, seed=0), [optimizer])


def test_static_attributes_follow() -> None:
    model = CASES["mobile"].build()
    structures = find_structures(model, (CASES["mobile"].inputs(),))
    operate(model, structures, random_plan(structures, seed=1, layers=False))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels == module.weight.shape[0]
            assert module.in_channels == module.weight.shape[1] * module.groups
        elif isinstance(module, nn.BatchNorm2d):
            assert module.num_features == len(module.weight)
        elif isinstance(module, nn.Linear):
            assert (module.out_features, module.in_features) == module.weight.shape


def test_tied_modules_state_the_same_widths() -> None:
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    layers = [nn.Linear(4, 6), nn.ReLU(), first, nn.ReLU(), second, nn.ReLU(), nn.Linear(6, 2)]
    model = nn.Sequential(*layers)
    structures = find_structures(model, (torch.randn(3, 4),))
    operate(model, structures, KeepPlan({0: torch.tensor([0, 2])}))
    assert second.weight is first.weight
    for module in (first, second):
        assert (module.out_features, module.in_features) == (2, 2)
        assert module.bias.shape == (2,)
