"""What is written is compared with the model before it gets its name."""

from __future__ import annotations

import contextlib
import importlib
import shutil
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.errors import MisconfiguredError, UnsupportedError
from guyot.core.inputs import Inputs, arguments, changed, evaluation_mode, tensors_of
from guyot.core.packages import needed
from guyot.core.torch_private import pytree

_BATCHES = (1, 2, 5)
"""Numbers of samples on which what is written for any number is compared."""

_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: file or folder.
        size: bytes, of all files.
        difference: largest difference from the model's outputs that was seen, relative to the
            largest output where that exceeds 1.
        batch: the only number of samples that it takes; None: it takes any.
    """

    path: Path
    size: int
    difference: float
    batch: int | None = None

    @classmethod
    def of(cls, path: str | Path, difference: float, batch: int | None = None) -> Exported:
        """Describe a file or folder that was written."""
        path = Path(path)
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
        return cls(path, sum(file.stat().st_size for file in files), difference, batch)


def with_samples(inputs: Inputs, count: int, *, noise: bool = True) -> Inputs:
    """Give inputs another number of samples: those of the example again and again.

    Args:
        inputs: of the model.
        count: samples.
        noise: add some where they are not numbers of classes, tokens or the like.
    """
    size = tensors_of(inputs)[0].shape[0]

    def drawn(tensor: Tensor) -> Tensor:
        if tensor.shape[0] == size:
            tensor = tensor[torch.arange(count) % size]
        if noise and tensor.is_floating_point():
            generator = torch.Generator().manual_seed(count)
            return tensor + torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
        return tensor

    return changed(inputs, drawn)


@torch.no_grad()
def largest_gap(
    model: nn.Module,
    network: Callable[..., Any],
    inputs: Inputs,
    tolerance: float,
    *,
    batch: int | None = None,
    flat: bool = True,
) -> float:
    """Return the largest relative difference over batches of several sizes.

    Args:
        model: what was written.
        network: what was read back.
        inputs: of the model.
        tolerance: for float32 and float64.
        batch: the only number of samples that the network takes; None: it takes any.
        flat: the network takes the tensors of the inputs one after another; else as the model.

    Raises:
        UnsupportedError: it is too large, or the outputs are not alike.
    """
    largest = 0.0
    with evaluation_mode(model):
        for count in _BATCHES if batch is None else (batch,):
            args, kwargs = arguments(model, with_samples(inputs, count))
            expected = tensors_of(pytree().tree_leaves(model(*args, **kwargs)))
            given = network(*tensors_of([args, kwargs])) if flat else network(*args, **kwargs)
            found = tensors_of(pytree().tree_leaves(given))
            if [e.shape for e in expected] != [f.shape for f in found]:
                raise UnsupportedError(
                    f"what was written gives outputs of shapes {[tuple(f.shape) for f in found]} "
                    f"for a batch of {count}, the model {[tuple(e.shape) for e in expected]}: "
                    "write it in another format"
                )
            for ours, theirs in zip(expected, found, strict=True):
                scale = max(1.0, float(ours.double().abs().max()))
                gap = float((ours.double() - theirs.double()).abs().max()) / scale
                bound = max(tolerance, 16 * _epsilon(ours.dtype))
                if not gap <= bound:
                    raise UnsupportedError(
                        f"what was written differs from the model by {gap:.1e} for a batch of "
                        f"{count}, more than {bound:.0e}: write it in another format"
                    )
                largest = max(largest, gap)
    return largest


def _epsilon(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 0.0


@contextlib.contextmanager
def staged(path: str | Path) -> Generator[Path]:
    """Give a scratch path that takes the place of `path` when everything went well."""
    path = Path(path)
    if path.exists():
        raise MisconfiguredError(
            f"output={str(path)!r} exists: give another, nothing is overwritten"
        )
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise MisconfiguredError(
            f"output={str(path)!r} cannot be written ({error.strerror}): give another"
        ) from error
    try:
        scratch = folder / f"network{path.suffix}"
        yield scratch
        scratch.rename(path)
    finally:
        shutil.rmtree(folder)


def onnx_package(name: str = "onnx") -> Any:
    """Return a package of the extra, when all of them are there.

    Raises:
        MisconfiguredError: one is missing.
    """
    with needed("ONNX needs", "onnx"):
        packages = {each: importlib.import_module(each) for each in _ONNX_PACKAGES}
    return packages[name]


class OnnxNetwork(nn.Module):
    """An ONNX file as a module: tensors in, tensors out, computed by ONNX Runtime on the CPU.

    Args:
        path: of the file.
        threads: of ONNX Runtime; None: as many as PyTorch uses.

    Raises:
        MisconfiguredError: the package onnxruntime is missing.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        super().__init__()
        onnxruntime = onnx_package("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._names = [value.name for value in self.session.get_inputs()]

    def forward(self, *tensors: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return outputs for inputs in the order of the file."""
        feed = {
            name: tensor.detach().contiguous().numpy()
            for name, tensor in zip(self._names, tensors, strict=True)
        }
        outputs = tuple(torch.from_numpy(array) for array in self.session.run(None, feed))
        return outputs[0] if len(outputs) == 1 else outputs
