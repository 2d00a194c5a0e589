"""The most probable network, and statistics that belong to it."""

from __future__ import annotations

import copy

import pytest
import torch
from cases import CASES, clamped, random_plan
from hypothesis import given
from hypothesis import strategies as st
from oracles import residual_network
from torch import nn

from guyot import find_structures
from guyot.gates.calibration import calibrated, most_probable
from guyot.surgery import operate

NETWORK = residual_network(stream=3, inner=(2, 4))
TOTAL = NETWORK.index.total


@given(
    st.lists(st.floats(0, 1), min_size=TOTAL, max_size=TOTAL),
    st.lists(st.booleans(), min_size=TOTAL, max_size=TOTAL),
)
def test_most_probable(values: list[float], flags: list[bool]) -> None:
    theta, alive = torch.tensor(values), torch.tensor(flags)
    theta = torch.where(alive, theta, 0)
    gates = most_probable(theta, alive, NETWORK)
    expected = (theta >= 0.5) & alive
    layers = NETWORK.index.layer_slice
    assert torch.equal(gates[layers] > 0, expected[layers])
    for number in range(len(NETWORK.groups)):
        where = NETWORK.index.units(number)
        on = gates[where] > 0
        assert bool(on.any())
        if bool(expected[where].any()):
            assert torch.equal(on, expected[where])
        else:
            assert int(on.sum()) == 1
            assert theta[where][on] == theta[where].max()


@pytest.mark.parametrize("name", ["cifar", "mobile", "dense", "mlp"])
def test_calibrated_is_the_pruned_network_with_statistics_of_its_own(name: str) -> None:
    """Statistics are those that the pruned network gets from the same batches."""
    case = CASES[name]
    model = case.build().double()
    batches = [case.inputs(8).double() for _ in range(3)]
    structures = find_structures(model, (batches[0],))
    plan = random_plan(structures, seed=4)
    pruned = copy.deepcopy(model)
    operate(pruned, structures, plan)
    for module in pruned.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for x in batches:
            pruned.train()(x)
    gates = clamped(model, structures, plan)
    gates.sampled.fill_(1)
    with calibrated(model, batches) as network, torch.no_grad():
        assert not any(module.training for module in network.modules())
        out = network(batches[0])
    torch.testing.assert_close(out, pruned.eval()(batches[0]), rtol=1e-9, atol=1e-9)


def test_everything_comes_back() -> None:
    case = CASES["cifar"]
    model = case.build()
    model(case.inputs())
    model.bn1.eval()
    model.bn1.momentum = 0.3
    modes = [module.training for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    pointers = [buffer.data_ptr() for buffer in model.buffers()]
    with pytest.raises(KeyError, match="inside"), calibrated(model, [case.inputs()]):
        raise KeyError("inside")
    assert [module.training for module in model.modules()] == modes
    assert model.bn1.momentum == 0.3
    assert [buffer.data_ptr() for buffer in model.buffers()] == pointers
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_a_batch_that_does_not_fit_leaves_no_trace() -> None:
    case = CASES["cifar"]
    model = case.build()
    state = copy.deepcopy(model.state_dict())
    with (
        pytest.raises(RuntimeError, match="channels"),
        calibrated(model, [case.inputs(), torch.randn(2, 9, 8, 8)]),
    ):
        pass
    assert model.training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert {m.momentum for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}


def test_without_batches_only_the_mode_changes() -> None:
    case = CASES["cifar"]
    model = case.build()
    x = case.inputs()
    model(x)
    expected = copy.deepcopy(model).eval()(x)
    with calibrated(model, []) as network:
        assert torch.equal(network(x), expected)
    assert model.training


def test_batches_may_be_tuples_of_arguments_and_generators() -> None:
    case = CASES["cifar"]
    model, x = case.build(), case.inputs(8)
    with calibrated(model, [x]) as network:
        expected = network(x)
    with calibrated(model, ((part,) for part in [x])) as network:
        assert torch.equal(network(x), expected)
