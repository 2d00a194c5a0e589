"""A finished network in a folder: it comes back as it was, or the folder is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import guyot
from guyot import GuyotError, GuyotWarning, MisconfiguredError


def discovered(model: nn.Module, inputs: Any, steps: int = 100) -> guyot.Discovery:
    """A short run that leaves a smaller network; the loss is the outputs' size."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    config = guyot.DiscoveryConfig(round_to=1)
    discovery = guyot.Discovery(
        model, inputs, optimizer, total_steps=steps, target=0.4, beta=0.5, config=config
    )
    for _ in range(steps):
        outputs = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
        outputs.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        discovery.step()
    discovery.finish()
    assert discovery.removals
    return discovery


@pytest.mark.parametrize("name", ["cifar", "tokens", "dense"])
def test_a_network_comes_back(name: str, tmp_path: Path):
    inputs = (CASES[name].inputs(),)
    discovery = discovered(CASES[name].build(), inputs)
    guyot.save(tmp_path / "net", discovery.model, inputs, discovery.structure)
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "model.safetensors",
        "structure.json",
    ]
    torch.manual_seed(1)
    model = guyot.load(tmp_path / "net", CASES[name].build)
    assert not model.training
    for name, value in discovery.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    assert torch.equal(model(*inputs), discovery.model.eval()(*inputs))


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 8)
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, 9, bias=False)

    def forward(self, ids: Tensor, mask: Tensor, scale: float = 1.0) -> Tensor:
        x = (self.embed(ids) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return self.head(torch.relu(self.hidden(x))) * scale


def test_indices_masks_and_numbers_are_inputs_too(tmp_path: Path):
    inputs = {"ids": torch.randint(9, (4, 5)), "mask": torch.ones(4, 5).bool(), "scale": 0.5}
    discovery = discovered(Masked(), inputs)
    guyot.save(tmp_path, discovery.model, inputs, discovery.structure)
    described = json.loads((tmp_path / "structure.json").read_text())["inputs"]
    assert described == {
        "ids": {"tensor": [4, 5], "dtype": "int64"},
        "mask": {"tensor": [4, 5], "dtype": "bool"},
        "scale": 0.5,
    }
    model = guyot.load(tmp_path, Masked)
    assert torch.equal(model(**inputs), discovery.model.eval()(**inputs))


def saved(folder: Path) -> Path:
    inputs = (CASES["mlp"].inputs(),)
    discovery = discovered(CASES["mlp"].build(), inputs)
    guyot.save(folder, discovery.model, inputs, discovery.structure)
    return folder


def test_nothing_is_overwritten(tmp_path: Path):
    folder = saved(tmp_path / "net")
    model, inputs = CASES["mlp"].build(), (CASES["mlp"].inputs(),)
    whole = {"units": {}, "removed_layers": []}
    with pytest.raises(MisconfiguredError, match="holds a network already: give another one"):
        guyot.save(folder, model, inputs, whole)
    (tmp_path / "file").touch()
    with pytest.raises(GuyotError, match=r"folder='.*file' cannot be written"):
        guyot.save(tmp_path / "file", model, inputs, whole)


def test_inputs_must_be_plain(tmp_path: Path):
    model, whole = CASES["mlp"].build(), {"units": {}, "removed_layers": []}
    with pytest.raises(MisconfiguredError, match="example_inputs holds a object: give tensors"):
        guyot.save(tmp_path / "net", model, (object(),), whole)
    assert not (tmp_path / "net").exists()


def edited(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        structure = json.loads((folder / "structure.json").read_text())
        change(structure)
        (folder / "structure.json").write_text(json.dumps(structure))

    return edit


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def without_bias(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({n: v for n, v in state.items() if n != "0.bias"}, folder / "model.safetensors")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "holds no complete network .*No such file",
    ),
    "no structure": (
        lambda folder: (folder / "structure.json").unlink(),
        "holds no complete network .*structure.json",
    ),
    "truncated weights": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-9]
        ),
        "holds no complete network",
    ),
    "no JSON": (
        lambda folder: (folder / "structure.json").write_text("{"),
        "holds no complete network",
    ),
    "no object": (
        lambda folder: (folder / "structure.json").write_text("[]"),
        r"structure.json describes no network \(it is a list of 0, expected a mapping",
    ),
    "no inputs": (
        edited(lambda structure: structure.pop("inputs")),
        r"structure.json describes no network \(inputs is missing",
    ),
    "unknown dtype": (
        edited(lambda structure: structure["inputs"][0].update(dtype="load")),
        "names the dtype 'load', which PyTorch does not have",
    ),
    "another group": (
        edited(lambda structure: structure["units"].update(nobody=[1])),
        "the structure names the group 'nobody'",
    ),
    "other units": (
        edited(lambda structure: structure["units"].update({"0": [1, 2]})),
        r"do not fit what model_factory makes: 0.weight is .* expected .* of shape \(2, 7\)",
    ),
    "a unit twice": (
        edited(lambda structure: structure["units"].update({"0": [1, 1]})),
        r"units\.0 names something twice",
    ),
    "a fraction": (
        edited(lambda structure: structure["units"].update({"0": [0, 1.7]})),
        r"units\.0\[1\] is 1\.7, expected a whole number",
    ),
    "a truth": (
        edited(lambda structure: structure["units"].update({"0": [True]})),
        r"units\.0\[0\] is True, expected a whole number",
    ),
    "no unit": (
        edited(lambda structure: structure["units"].update({"0": []})),
        r"units\.0 is a list of 0, expected a list of 1 to",
    ),
    "inputs without end": (
        edited(lambda structure: structure["inputs"][0].update(tensor=[2**20, 2**20])),
        r"inputs\[0\] has 1099511627776 entries, more than",
    ),
    "inputs of a negative size": (
        edited(lambda structure: structure["inputs"][0].update(tensor=[-1, 7])),
        r"inputs\[0\]\.tensor\[0\] is -1",
    ),
    "inputs in inputs": (
        edited(lambda structure: structure.update(inputs=nested(40))),
        r"inputs.* lies too deep",
    ),
    "another fingerprint": (
        edited(lambda structure: structure["fingerprint"].update(scale=True)),
        r"fingerprint\.scale is True, expected a number",
    ),
    "a weight less": (without_bias, "do not fit what model_factory makes: 0.bias is missing"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused(damage: str, tmp_path: Path):
    harm, message = DAMAGES[damage]
    harm(saved(tmp_path / "net"))
    with pytest.raises(MisconfiguredError, match=message):
        guyot.load(tmp_path / "net", CASES["mlp"].build)


def test_another_model_is_refused(tmp_path: Path):
    saved(tmp_path / "net")
    with pytest.raises(MisconfiguredError, match="build the model as it was built for the run"):
        guyot.load(tmp_path / "net", lambda: nn.Sequential(nn.Linear(7, 12), nn.Linear(12, 3)))


def test_a_folder_that_is_not_there(tmp_path: Path):
    with pytest.raises(MisconfiguredError, match=r"folder='.*nowhere' holds no complete network"):
        guyot.load(tmp_path / "nowhere", CASES["mlp"].build)


class Bent(nn.Module):
    """Two layers whose shapes do not tell what is between them."""

    def __init__(self, bend: Callable[[Tensor], Tensor] = torch.relu, sigma: float = 0.0) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)
        self.bend, self.sigma = bend, sigma

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.bend(self.first(x))
        return self.second(hidden + self.sigma * torch.randn_like(hidden))


WHOLE: dict[str, Any] = {"units": {}, "removed_layers": []}


def test_a_network_that_computes_something_else_is_refused(tmp_path: Path):
    guyot.save(tmp_path, Bent(), (torch.zeros(2, 4),), WHOLE)  # zeros in, zeros out
    assert guyot.load(tmp_path, Bent)(torch.ones(1, 4)).shape == (1, 3)
    with pytest.raises(MisconfiguredError, match="is not the network that was saved: output 0 is"):
        guyot.load(tmp_path, lambda: Bent(torch.nn.functional.gelu))


def test_weights_that_were_exchanged_are_refused(tmp_path: Path):
    guyot.save(tmp_path, Bent(), (torch.zeros(2, 4),), WHOLE)
    state = load_file(tmp_path / "model.safetensors")
    save_file({n: v.flip(0).contiguous() for n, v in state.items()}, tmp_path / "model.safetensors")
    with pytest.raises(MisconfiguredError, match="is not the network that was saved"):
        guyot.load(tmp_path, Bent)


def test_without_a_fingerprint_it_is_told(tmp_path: Path):
    with pytest.warns(GuyotWarning, match="without a fingerprint.*differ from call to call"):
        guyot.save(tmp_path, Bent(sigma=0.1), (torch.zeros(2, 4),), WHOLE)
    with pytest.warns(GuyotWarning, match="has no fingerprint of outputs: compare some"):
        assert guyot.load(tmp_path, lambda: Bent(sigma=0.1)) is not None


def test_inputs_that_cannot_be_made_are_told(tmp_path: Path):
    model = nn.Sequential(nn.Embedding(1, 4), nn.Linear(4, 2))  # no index 1
    with pytest.warns(GuyotWarning, match="does not run on inputs made from their shapes"):
        guyot.save(tmp_path, model, (torch.zeros(2, 3, dtype=torch.int64),), WHOLE)
