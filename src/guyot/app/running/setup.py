"""From a `RunConfig` to data, a network and a machine that are ready, or a clear refusal."""

from __future__ import annotations

import copy
import dataclasses
import os

import torch
from torch import Tensor, nn

from guyot.app.config import RunConfig
from guyot.app.data import Dataset, load
from guyot.app.running.machine import remembered
from guyot.app.training import prefers_bf16
from guyot.core.errors import MisconfiguredError
from guyot.core.randomness import isolated
from guyot.costs.complexity import Cost, weights_of
from guyot.costs.latency import LatencyTable
from guyot.costs.quantum import measure_quantum
from guyot.costs.widths import quanta_of, uniform_plan
from guyot.structures import find_structures
from guyot.surgery import operate
from guyot.surgery.record import Record


def resolve(config: RunConfig) -> RunConfig:
    """Settle device, threads, precision and rounding; sets the threads.

    What widths are rounded to is measured if it is not given, for two seconds and once per machine,
    and from then on part of the configuration.

    Widths that suit training and, with a latency table, prediction are multiples of what either
    asks for: both are powers of 2. A target in milliseconds becomes a share.

    Raises:
        MisconfiguredError: the device cannot be used, or the latency table cannot be read.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    usable(name)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    bf16 = prefers_bf16(name) if config.bf16 is None else config.bf16
    table = table_of(config)
    round_to = config.round_to
    if round_to is None and config.cuts:
        dtype, threads = torch.bfloat16 if bf16 else torch.float32, torch.get_num_threads()
        round_to = remembered(lambda: measure_quantum(name, dtype), name, dtype, threads)
        round_to = max(round_to, table.quantum if table is not None else 1)
    if config.target_ms is not None and table is not None:
        share = table.share(config.target_ms)
        config = dataclasses.replace(config, target=share, target_ms=None)
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    threads = torch.get_num_threads()
    return dataclasses.replace(config, device=name, threads=threads, bf16=bf16, round_to=round_to)


def usable(device: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        MisconfiguredError: it cannot be used.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise MisconfiguredError(
            f"device={device!r} cannot be used ({reason}): leave it out, or give cpu or cuda"
        ) from error


def table_of(config: RunConfig) -> LatencyTable | None:
    """The latency table that the configuration names.

    Raises:
        MisconfiguredError: it cannot be read.
    """
    return None if config.latency_table is None else LatencyTable.load(config.latency_table)


def cost_of(config: RunConfig) -> float | Cost:
    """What the configuration means by complexity: its `alpha`, or a `Cost`."""
    if config.cost is None:
        return config.alpha
    return Cost(**weights_of(config.cost), table=table_of(config))


def load_data(config: RunConfig) -> Dataset:
    """The data set, with the same validation images held out whatever the seed.

    Raises:
        MisconfiguredError: no such data, or a package to read it is missing.
    """
    try:
        dataset = load(
            config.data,
            config.data_dir,
            image_size=config.image_size,
            skip_corrupt=config.on_corrupt == "skip",
        )
    except ImportError as error:
        raise MisconfiguredError(
            f"data={config.data!r} needs the package {error.name!r}, which is not installed: "
            "pip install 'guyot[data]'"
        ) from error
    return dataset.hold_out(max(1, round(config.validation * len(dataset.train))))


def check_forward(model: nn.Module, images: Tensor, config: RunConfig, classes: int) -> None:
    """Run a copy of the model on two images, in training mode.

    Raises:
        MisconfiguredError: it fails, or gives anything but (2, classes) logits.
    """
    shape = "x".join(str(n) for n in images.shape[1:])
    problem = f"model={config.model!r} does not fit data={config.data!r} with images of {shape}"
    remedy = "choose another model or data" + (
        ", or another image_size" if config.data.startswith("imagefolder") else ""
    )
    try:
        with torch.no_grad(), isolated():
            logits = copy.deepcopy(model).train()(images)
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise MisconfiguredError(f"{problem}: {reason}; {remedy}") from error
    if not isinstance(logits, Tensor) or logits.shape != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise MisconfiguredError(
            f"{problem}: its output is {found}, not a tensor of (2, {classes}) logits; {remedy}"
        )


def slimmed(model: nn.Module, images: Tensor, config: RunConfig, macs: float) -> Record:
    """Cut a network to the same share of every width before it is trained.

    Args:
        model: is cut in place.
        images: example inputs.
        config: says what stays, and of what widths are multiples.
        macs: of one image that the network keeps at least.

    Returns:
        What went.
    """
    tie = [patterns.split(",") for patterns in config.tie]
    structures = find_structures(model, images, ignore=config.ignore, freeze=config.freeze, tie=tie)
    plan = uniform_plan(structures, macs, quanta_of(structures, config.round_to or 1))
    record = Record(structures)
    record.add(0, structures, plan, operate(model, structures, plan), round(macs))
    return record
