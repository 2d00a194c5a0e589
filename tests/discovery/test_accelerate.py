"""The state of a discovery in Accelerate's checkpoints; `examples/accelerate_loop.py` trains."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from cases import CASES
from loops import batch, same

from guyot import Discovery, DiscoveryConfig, MisconfiguredError
from guyot.discovery.integrations.accelerate import register_discovery


def start(nu: float = 0.3, steps: int = 0) -> tuple[Accelerator, Discovery]:
    """A run after some steps, in whose checkpoints the discovery is."""
    accelerator = Accelerator(cpu=True)
    model = CASES["cifar"].build()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model, optimizer = accelerator.prepare(model, optimizer)
    config = DiscoveryConfig(round_to=1)
    inputs = (CASES["cifar"].inputs(),)
    discovery = Discovery(model, inputs, optimizer, total_steps=100, nu=nu, config=config)
    register_discovery(accelerator, discovery)
    for step in range(steps):
        x, y = batch("cifar", step)
        accelerator.backward(torch.nn.functional.cross_entropy(model(x), y))
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
    return accelerator, discovery


def test_state_goes_into_the_folder_without_pickle(tmp_path: Path):
    accelerator, discovery = start(steps=20)
    state = discovery.state_dict()
    accelerator.save_state(str(tmp_path / "state"))
    assert {"guyot.json", "guyot.safetensors"} <= {
        path.name for path in (tmp_path / "state").iterdir()
    }
    again, other = start()
    assert not same(other.state_dict(), state)
    again.load_state(str(tmp_path / "state"))
    assert same(other.state_dict(), state)


def test_a_state_of_other_settings_is_refused(tmp_path: Path):
    start()[0].save_state(str(tmp_path / "state"))
    with pytest.raises(MisconfiguredError, match=r"of another run: nu is 0.3, expected 0.5"):
        start(nu=0.5)[0].load_state(str(tmp_path / "state"))


def test_a_folder_without_a_discovery_is_refused(tmp_path: Path):
    start()[0].save_state(str(tmp_path / "state"))
    (tmp_path / "state" / "guyot.json").unlink()
    with pytest.raises(MisconfiguredError, match=r"guyot.json cannot be read"):
        start()[0].load_state(str(tmp_path / "state"))


def test_without_accelerate_the_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "guyot.discovery.integrations.accelerate")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MisconfiguredError, match=r"pip install 'guyot\[accelerate\]'"):
        importlib.import_module("guyot.discovery.integrations.accelerate")
