"""What comes after a run: its network on test data, and in other formats."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from guyot.app.config import RunConfig
from guyot.app.data import Batches, Dataset
from guyot.app.factories import check_trusted
from guyot.app.models import count_macs, count_params
from guyot.app.running.folder import load_run, result_of
from guyot.app.running.setup import example, load_data, usable
from guyot.app.training import score
from guyot.core.condition import did_you_mean
from guyot.core.errors import MisconfiguredError
from guyot.core.metric import Metric, filed
from guyot.core.storage import read_json
from guyot.core.warning import warn
from guyot.report import REPORTED_BATCHES, Latency, measure_batches
from guyot.results import export
from guyot.results.fingerprint import inputs_like
from guyot.results.saved import STRUCTURE, WEIGHTS, read

_BATCH = 500
_OUTPUTS = {"onnx": "model.onnx", "pt2": "model.pt2", "state-dict": "state-dict"}


@dataclass(frozen=True)
class Evaluation:
    """A finished network on the test data of its run.

    Attributes:
        folder: of the run.
        model: name of the full network.
        data: name of the data set.
        metric: of the score.
        images: samples of the test data.
        score: on the test data, by the metric.
        loss: mean of the task's.
        deviation: root of the mean squared error of a regression, in the unit of what is predicted.
        macs: multiply-accumulates of one sample.
        params: trainable parameters.
        image_shape: of one sample, (C, H, W) of an image.
        latency: forward pass in float32 by batch size.
        device: where.
        threads: of the CPU.
        bf16: score and loss were taken under autocast, as in the run.
    """

    folder: str
    model: str
    data: str
    metric: Metric
    images: int
    score: float
    loss: float
    deviation: float | None
    macs: int
    params: int
    image_shape: tuple[int, ...]
    latency: Mapping[int, Latency]
    device: str
    threads: int
    bf16: bool

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, the score called by its metric."""
        return filed(dataclasses.asdict(self), self.metric) | {"metric": self.metric.key}


@dataclass(frozen=True)
class Delivery:
    """A network that left its run folder.

    Attributes:
        folder: of the run.
        format: "onnx", "pt2" or "state-dict".
        output: file or folder that was written.
        size: bytes.
        difference: largest difference between its outputs and those of the network, relative to
            the largest output where that exceeds 1.
        latency: name of what runs it -> batch size -> forward pass, for ONNX: "torch" and
            "onnxruntime", on the CPU, in turns.
        threads: of the CPU.
    """

    folder: str
    format: str
    output: str
    size: int
    difference: float
    latency: Mapping[str, Mapping[int, Latency]] = field(default_factory=dict)
    threads: int = field(default_factory=torch.get_num_threads)


def evaluate_run(
    folder: str | Path, data_dir: str | None = None, *, trust: bool = False
) -> Evaluation:
    """Measure the network of a run on the run's test data.

    Args:
        folder: of a run that has ended.
        data_dir: where the data is now, if not where the run found it.
        trust: call functions that the folder names.

    Raises:
        MisconfiguredError: no such run, it has not ended, or its data is not there.
    """
    config, structure = _finished(Path(folder))
    check_trusted(Path(folder) / "config.json", config.to_dict(), trust)
    config = _usable(config, data_dir)
    model = load_run(folder, trust=trust).to(config.device).to(memory_format=torch.channels_last)
    dataset = _as_trained(load_data(config), structure, config)
    test = Batches(dataset, dataset.test, _BATCH, augment=False, device=config.device)
    result = score(model, test.epoch(0), bf16=bool(config.bf16), task=test.task)
    images = example(dataset).to(config.device)
    target = dataset.target
    return Evaluation(
        folder=str(folder),
        model=config.model,
        data=config.data,
        metric=test.task.metric,
        images=result.count,
        score=result.value,
        loss=result.loss,
        deviation=None if target is None else target[1] * math.sqrt(result.loss),
        macs=count_macs(model, images),
        params=count_params(model),
        image_shape=dataset.image_shape,
        latency=measure_batches({"it": model}, images)["it"],
        device=config.device,
        threads=torch.get_num_threads(),
        bf16=bool(config.bf16),
    )


def export_run(
    folder: str | Path,
    format: str,  # noqa: A002
    output: str | Path | None = None,
    *,
    trust: bool = False,
) -> Delivery:
    """Write the network of a run in another format.

    Args:
        folder: of a run that has ended.
        format: "onnx", "pt2" or "state-dict" (a Python module and its weights).
        output: what to write; by default `model.onnx`, `model.pt2` or `state-dict` in the folder.
        trust: call a function that the folder names as its model.

    Raises:
        MisconfiguredError: no such run, it has not ended, an unknown format, the output exists, or
            a package is missing.
        UnsupportedError: the network cannot be written in this format.
    """
    if format not in _OUTPUTS:
        raise MisconfiguredError(
            f"format={format!r} is unknown: choose {', '.join(_OUTPUTS)}"
            f"{did_you_mean(format, _OUTPUTS)}"
        )
    folder = Path(folder)
    _, structure = _finished(folder)
    path = folder / _OUTPUTS[format] if output is None else Path(output)
    model = load_run(folder, trust=trust)
    (example,) = inputs_like(structure["inputs"])
    write = {"onnx": export.to_onnx, "pt2": export.to_program, "state-dict": export.to_source}
    written = write[format](model, (example,), path)
    times: dict[str, dict[int, Latency]] = {}
    if format == "onnx":
        models = {"torch": model, "onnxruntime": export.OnnxNetwork(path)}
        batches = REPORTED_BATCHES if written.batch is None else (written.batch,)
        times = measure_batches(models, example, batches)
    return Delivery(str(folder), format, str(written.path), written.size, written.difference, times)


def _finished(folder: Path) -> tuple[RunConfig, dict[str, Any]]:
    """Settings and structure of a run that has ended."""
    try:
        config = RunConfig.from_dict(read_json(folder / "config.json"))
    except MisconfiguredError as error:
        raise MisconfiguredError(
            f"{str(folder)!r} is not a run folder ({error}): give one that `guyot train` wrote"
        ) from error
    if config.targets:
        members = ", ".join(str(folder / f"{target:g}") for target in config.targets)
        raise MisconfiguredError(
            f"{str(folder)!r} is a family of runs: give one of its members, {members}"
        )
    if config.seeds > 1:
        runs = ", ".join(str(folder / f"seed-{config.seed + n}") for n in range(config.seeds))
        raise MisconfiguredError(
            f"{str(folder)!r} holds the runs of several seeds: give one of them, {runs}"
        )
    for name in (STRUCTURE, WEIGHTS):
        if not (folder / name).is_file():
            raise MisconfiguredError(
                f"the run in {str(folder)!r} has not ended, it has no {name} yet: let "
                "`guyot train --resume` finish it"
            )
    structure, _ = read(folder)
    if phase := result_of(folder).get("interrupted"):
        warn(
            f"the run in {str(folder)!r} was interrupted during {phase}: this is the network as it "
            "was then",
        )
    return config, structure


def _usable(config: RunConfig, data_dir: str | None) -> RunConfig:
    """The settings on this machine, with the data where it is now."""
    if data_dir is not None:
        kind, _, place = config.data.partition(":")
        if place and kind in ("imagefolder", "table", "text"):
            config = dataclasses.replace(config, data=f"{kind}:{data_dir}")
        else:
            config = dataclasses.replace(config, data_dir=data_dir)
    try:
        usable(config.device)
    except MisconfiguredError:
        warn(
            f"the run used the device {config.device}, which is not here: this is on the CPU",
        )
        config = dataclasses.replace(config, device="cpu")
    return config


def _as_trained(dataset: Dataset, structure: Mapping[str, Any], config: RunConfig) -> Dataset:
    """The data with the statistics of the run; refused when it is other data."""
    shape = tuple(structure["inputs"][0]["tensor"][1:])
    found, outputs = dataset.image_shape, dataset.outputs
    if found != shape or outputs != structure["classes"]:
        raise MisconfiguredError(
            f"data={config.data!r} has {outputs} classes and samples of shape {found}, the network "
            f"{structure['classes']} and {shape}: give the data_dir of the run's data"
        )
    characters = dataset.task == "text" and list(dataset.classes) != structure["class_names"]
    target = dataset.target is not None and list(dataset.target) != structure["target"]
    if characters or target:
        raise MisconfiguredError(
            f"data={config.data!r} is not what the network was trained on, it has other "
            f"{'characters' if characters else 'numbers'}: give the data_dir of the run's data"
        )
    return dataclasses.replace(dataset, mean=tuple(structure["mean"]), std=tuple(structure["std"]))
