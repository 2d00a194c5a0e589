"""Other formats: what is written gives the model's outputs, or is refused and leaves nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, clamped, random_plan
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from guyot import export
from guyot.core.errors import GuyotWarning, MisconfiguredError, UnsupportedError
from guyot.structures import find_structures
from guyot.surgery import operate


def finished(name: str) -> tuple[nn.Module, tuple[Tensor]]:
    """A network with units and layers gone, and inputs."""
    model, inputs = CASES[name].build(), (CASES[name].inputs(),)
    structures = find_structures(model, inputs)
    plan = random_plan(structures, seed=1)
    assert plan.kept and bool(plan.removed_layers) == bool(structures.layers)
    operate(model, structures, plan)
    return model, inputs


class Named(nn.Module):
    """Keyword arguments in, a mapping out; indices and a mask beside floats."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 3)

    def forward(
        self, ids: Tensor, *, mask: Tensor, scale: float = 1.0, use_cache: bool = True
    ) -> dict[str, Tensor]:
        assert not use_cache
        weight = mask.unsqueeze(-1) / mask.sum(1)[:, None, None]
        return {"logits": self.head((self.embed(ids) * weight).sum(1)) * scale, "weight": weight}


NAMED = {"ids": torch.randint(9, (3, 5)), "mask": torch.ones(3, 5), "scale": 0.5}


def without_guyot(folder: Path) -> None:
    """In a process that cannot import guyot: the module gives the outputs in `expected`."""
    program = """
import sys

class Refused:
    def find_spec(self, name, *rest):
        assert name.partition(".")[0] != "guyot", "guyot is imported"

sys.meta_path.insert(0, Refused())
sys.path.insert(0, sys.argv[1])
from safetensors.torch import load_file
from model import load
import torch
case = load_file(sys.argv[2])
with torch.no_grad():
    found = load()(case["inputs"])
assert torch.allclose(found, case["outputs"], atol=1e-6), (found - case["outputs"]).abs().max()
print("same", len(case["inputs"]))
"""
    command = [sys.executable, "-c", program, str(folder), str(folder.parent / "case.safetensors")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "same 7\n"


def test_the_source_needs_no_guyot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)  # as in a user's shell
    model, inputs = finished("cifar")
    exported = export.to_source(model, inputs, tmp_path / "net")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == [
        "model.py",
        "model.safetensors",
    ]
    assert exported.path == tmp_path / "net" and exported.difference < 1e-6
    assert exported.size == sum(path.stat().st_size for path in (tmp_path / "net").iterdir())
    images = torch.randn(7, *inputs[0].shape[1:])
    with torch.no_grad():
        case = {"inputs": images, "outputs": model.eval()(images)}
    save_file(case, tmp_path / "case.safetensors")
    without_guyot(tmp_path / "net")


@pytest.mark.parametrize("name", ["flat_cnn", "tokens"])
def test_a_program_takes_any_batch(name: str, tmp_path: Path):
    model, inputs = finished(name)
    model.train()
    exported = export.to_program(model, inputs, tmp_path / "net.pt2")
    assert model.training and exported.difference < 1e-6
    assert exported.size == (tmp_path / "net.pt2").stat().st_size
    network = torch.export.load(tmp_path / "net.pt2").module()
    model.eval()
    for batch in (1, 3, 64):
        images = torch.randn(batch, *inputs[0].shape[1:])
        assert torch.allclose(network(images), model(images), atol=1e-6)
    assert __file__.encode() not in (tmp_path / "net.pt2").read_bytes()


def test_a_program_with_named_inputs(tmp_path: Path):
    model = Named()
    export.to_program(model, NAMED, tmp_path / "net.pt2")
    network = torch.export.load(tmp_path / "net.pt2").module()
    ids, mask = torch.randint(9, (4, 5)), torch.rand(4, 5)
    found = network(ids=ids, mask=mask, scale=0.5, use_cache=False)
    expected = model(ids, mask=mask, scale=0.5, use_cache=False)
    assert torch.allclose(found["logits"], expected["logits"], atol=1e-6)


def test_onnx_gives_the_same_outputs_for_any_batch(tmp_path: Path):
    onnx, onnxruntime = (importlib.import_module(name) for name in ("onnx", "onnxruntime"))
    model, inputs = finished("cifar")
    exported = export.to_onnx(model, inputs, tmp_path / "net.onnx")
    assert exported.difference < 1e-4
    assert exported.size == (tmp_path / "net.onnx").stat().st_size
    onnx.checker.check_model(onnx.load(tmp_path / "net.onnx"), full_check=True)
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    (given,), (output,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.shape) == ("x", ["batch", *inputs[0].shape[1:]])
    assert (output.name, output.shape) == ("output", ["batch", 3])
    model.eval()
    for batch in (1, 3, 64):
        images = torch.randn(batch, *inputs[0].shape[1:])
        (found,) = session.run(None, {"x": images.numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(found), model(images), atol=1e-4)
    assert b".py" not in (tmp_path / "net.onnx").read_bytes()


def test_onnx_names_inputs_and_outputs(tmp_path: Path):
    export.to_onnx(Named(), NAMED, tmp_path / "net.onnx")
    network = export.OnnxNetwork(tmp_path / "net.onnx", threads=1)
    assert [value.name for value in network.session.get_inputs()] == ["ids", "mask"]
    assert [value.name for value in network.session.get_outputs()] == ["logits", "weight"]
    logits, weight = network(torch.randint(9, (4, 5)), torch.ones(4, 5))
    assert logits.shape == (4, 3) and weight.shape == (4, 5, 1)


WRITERS: dict[str, Callable[..., Any]] = {
    "net": export.to_source,
    "net.pt2": export.to_program,
    "net.onnx": export.to_onnx,
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_overwritten(name: str, tmp_path: Path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(MisconfiguredError, match=rf"output='.*{name}' exists: give another"):
        WRITERS[name](CASES["mlp"].build(), (CASES["mlp"].inputs(),), tmp_path / name)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_is_not_there_is_named(name: str, tmp_path: Path):
    with pytest.raises(MisconfiguredError, match=r"output='.*nowhere.*cannot be written \(No such"):
        WRITERS[name](CASES["mlp"].build(), (CASES["mlp"].inputs(),), tmp_path / "nowhere" / name)


class Fixed(nn.Module):
    """Writes the batch of the example into its graph."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.arange(len(x))[:, None]


class Noisy(Fixed):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.rand_like(x)


class Grid(Fixed):
    """Remembers the shape that it saw, as detectors do for their anchors."""

    seen: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        if self.seen != x.shape:
            self.seen, self.grid = x.shape, torch.arange(x.shape[0] * 4.0).view(-1, 4)
        return self.linear(x + self.grid)


@pytest.mark.parametrize("kind", [Fixed, Grid])
@pytest.mark.parametrize("name", WRITERS)
def test_a_fixed_batch_is_that_of_the_example(name: str, kind: type[Fixed], tmp_path: Path):
    model, x = kind().eval(), torch.randn(3, 4)
    message = rf"batches of 3 only.*{kind.__name__} for batches of any"
    with pytest.warns(GuyotWarning, match=message):
        written = WRITERS[name](model, (x,), tmp_path / name)
    assert written.batch == 3 and written.difference < 1e-4
    again = read_back(name, tmp_path / name)
    torch.testing.assert_close(again(x), model(x), rtol=1e-4, atol=1e-4)


def test_tracing_leaves_what_forward_remembers():
    model = Grid().eval()
    model(torch.randn(3, 4))
    grid = model.grid
    with pytest.raises(UnsupportedError, match="cannot trace Grid for batches of any size"):
        export.program(model, (torch.randn(3, 4),))
    assert model.seen == (3, 4) and model.grid is grid


class Counting(Fixed):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + len(x) if bool(x.sum() > 0) else x


@pytest.mark.parametrize("name", WRITERS)
def test_what_no_batch_makes_possible_is_refused(name: str, tmp_path: Path):
    message = r"cannot trace Counting for batches of any size: .*values of tensors"
    with pytest.raises(UnsupportedError, match=message):
        WRITERS[name](Counting(), (torch.randn(3, 4),), tmp_path / name)
    assert not list(tmp_path.iterdir())


def read_back(name: str, path: Path) -> Callable[[Tensor], Tensor]:
    if name == "net":
        spec = importlib.util.spec_from_file_location("written", path / "model.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.load()
    if name == "net.pt2":
        return torch.export.load(path).module()
    return export.OnnxNetwork(path)


@pytest.mark.parametrize("name", ["net", "net.pt2"])
def test_other_outputs_are_refused_and_nothing_is_left(name: str, tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"differs from the model by \d.*for a batch of 1"):
        WRITERS[name](Noisy(), (torch.randn(3, 4),), tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", WRITERS)
def test_a_model_with_gates_is_refused(name: str, tmp_path: Path):
    model, inputs = CASES["mlp"].build(), (CASES["mlp"].inputs(),)
    structures = find_structures(model, inputs)
    clamped(model, structures, random_plan(structures, 0))
    with pytest.raises(MisconfiguredError, match="still has the gates of another Discovery"):
        WRITERS[name](model, inputs, tmp_path / name)


@pytest.mark.parametrize("name", WRITERS)
def test_one_tensor_is_enough(name: str, tmp_path: Path):
    written = WRITERS[name](CASES["mlp"].build(), CASES["mlp"].inputs(), tmp_path / f"net.{name}")
    assert written.difference < 1e-4


def test_inputs_that_do_not_fit_are_refused(tmp_path: Path):
    with pytest.raises(MisconfiguredError, match="example input 0 is a scalar"):
        export.to_program(CASES["mlp"].build(), torch.tensor(1.0), tmp_path / "net.pt2")


def test_a_program_has_its_ending(tmp_path: Path):
    with pytest.raises(MisconfiguredError, match=r"output='.*net.bin' must end in .pt2"):
        export.to_program(CASES["mlp"].build(), (CASES["mlp"].inputs(),), tmp_path / "net.bin")


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_names_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(
        MisconfiguredError, match=rf"needs the package '{package}'.*pip install 'guyot\[onnx\]'"
    ):
        export.to_onnx(CASES["mlp"].build(), (CASES["mlp"].inputs(),), tmp_path / "net.onnx")


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.qr(self.linear(x)[:, None] * torch.eye(4))[0]


def test_an_operator_that_onnx_lacks_is_told(tmp_path: Path):
    with pytest.raises(UnsupportedError, match=r"torch.onnx cannot write Sorted: .*as pt2 or"):
        export.to_onnx(Sorted(), (torch.randn(3, 4),), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_weights_in_the_file_are_those_of_the_model(tmp_path: Path):
    model, inputs = finished("tokens")
    export.to_source(model, inputs, tmp_path / "net")
    state = load_file(tmp_path / "net" / "model.safetensors")
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    """
    resnet18 mobilenet_v3_small efficientnet_b0 densenet121 googlenet shufflenet_v2_x0_5
    squeezenet1_1 regnet_y_400mf convnext_tiny swin_t vit_b_16 maxvit_t
    """.split(),
)
def test_networks_of_torchvision_are_written_as_source(name: str, tmp_path: Path):
    from torchvision import models

    model = models.get_model(name, weights=None, num_classes=10)
    size = 224 if name.startswith(("vit", "maxvit")) else 64
    assert export.to_source(
        model, (torch.randn(2, 3, size, size),), tmp_path / "net"
    ).difference < (1e-5)
