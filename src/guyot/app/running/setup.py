"""From a `RunConfig` to data, a network and a machine that are ready, or a clear refusal."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from guyot.app.config import RunConfig
from guyot.app.data import Batches, Dataset, load_dataset
from guyot.app.models import build, load_fitting
from guyot.app.running.machine import remembered
from guyot.app.settings import settings_of
from guyot.app.tasks import TASKS
from guyot.app.training import Recipe, make_optimizer, prefers_bf16
from guyot.app.user_code import accepted, function_of
from guyot.core.errors import MisconfiguredError, first_line
from guyot.core.packages import needed
from guyot.core.randomness import isolated
from guyot.core.storage import read_tensors
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
        raise MisconfiguredError(
            f"device={device!r} cannot be used ({first_line(error)}): leave it out, or give cpu or "
            "cuda"
        ) from error


def table_of(config: RunConfig) -> LatencyTable | None:
    """The latency table that the configuration names.

    Raises:
        MisconfiguredError: it cannot be read.
    """
    return None if config.latency_table is None else LatencyTable.load(config.latency_table)


def cost_of(config: RunConfig) -> float | Cost:
    """Return what the configuration means by complexity: its `alpha`, or a `Cost`."""
    if config.cost is None:
        return config.alpha
    return Cost(**weights_of(config.cost), table=table_of(config))


def load_data(config: RunConfig) -> Dataset:
    """The data set, with the same validation images held out whatever the seed.

    Raises:
        MisconfiguredError: no such data, or a package to read it is missing.
    """
    with needed(f"data={config.data!r} needs", "data"):
        dataset = load_dataset(
            config.data,
            config.data_dir,
            image_size=config.image_size,
            skip_corrupt=config.on_corrupt == "skip",
            test_share=config.test_share,
            regression=config.task == "regression",
            label=config.label,
            context=config.context,
            validation=config.validation,
            workers=config.data_workers,
        )
    if config.augment is not None:
        ways = config.augment.split("+")
        dataset = dataclasses.replace(
            dataset,
            flip="flip" in ways,
            pad=dataset.pad if "crop" in ways else 0,
            resized="resized-crop" in ways,
        )
    if dataset.validation is not None:
        return dataset
    return dataset.hold_out(max(1, round(config.validation * len(dataset.train))))


def example(data: Dataset) -> Tensor:
    """Return two training samples as the network sees them, on the CPU."""
    some = data.train.take(torch.arange(len(data.train))[:2])
    return next(Batches(data, some, 2, augment=False).epoch(0))[0]


def check_forward(model: nn.Module, images: Tensor, config: RunConfig, data: Dataset) -> None:
    """Run a copy of the model on two samples, in training mode.

    Raises:
        MisconfiguredError: it fails, or its output has not the shape that the task needs.
    """
    shape = "x".join(str(n) for n in images.shape[1:])
    kind = "images" if images.dim() == 4 else "samples"
    problem = f"model={config.model!r} does not fit data={config.data!r} with {kind} of {shape}"
    needed = TASKS[data.task].shape(images, data.outputs)
    remedy = "choose another model or data"
    if config.data.startswith("imagefolder"):
        remedy += ", or another image_size"
    usual = "mlp" if images.is_floating_point() else "transformer"
    if images.dim() == 2 and config.model != usual:
        remedy = f"give model={usual}, or other data"
    try:
        with torch.no_grad(), isolated():
            logits = copy.deepcopy(model).train()(images)
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise MisconfiguredError(f"{problem}: {first_line(error)}; {remedy}") from error
    if not isinstance(logits, Tensor) or logits.shape != needed:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        what = "predictions" if data.task == "regression" else "logits"
        raise MisconfiguredError(
            f"{problem}: its output is {found}, not a tensor of {needed} {what}; {remedy}"
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


@dataclass(frozen=True)
class LossOfUser(Recipe):
    """A recipe with a loss of the user's.

    Attributes:
        name: of the function, for errors.
        function: of outputs and labels; its result must be a scalar.
    """

    name: str = ""
    function: Callable[[Tensor, Tensor], Any] = F.cross_entropy

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch.

        Raises:
            MisconfiguredError: the function returns something else.
        """
        loss = self.function(*self.task.aligned(outputs, targets))
        free = torch.is_grad_enabled() and outputs.requires_grad
        if not isinstance(loss, Tensor) or loss.dim() or (free and not loss.requires_grad):
            found = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise MisconfiguredError(
                f"loss={self.name!r} returned {found}: return the mean over the samples, a tensor "
                "of no dimension that depends on the outputs"
            )
        return loss


def recipe_of(config: RunConfig, task: str) -> Recipe:
    """Return how to train.

    Args:
        config: of the run.
        task: of its data.

    Raises:
        MisconfiguredError: there is no such function as the loss.
    """
    names = {field.name for field in dataclasses.fields(Recipe)} & settings_of(RunConfig).keys()
    settings: dict[str, Any] = {name: getattr(config, name) for name in names}
    settings |= {"bf16": bool(config.bf16), "task": TASKS[task]}
    if config.loss is None:
        return Recipe(**settings)
    function = function_of(config.loss, "loss", "the mean loss of outputs and labels")
    return LossOfUser(**settings, name=config.loss, function=function)


def optimizer_of(config: RunConfig, model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make the optimiser that the configuration names.

    Raises:
        MisconfiguredError: a function of the user's returns something else.
    """
    if config.optimizer == "sgd":
        return make_optimizer(model, recipe)
    lr, weight_decay = config.lr, config.weight_decay
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    make = function_of(config.optimizer, "optimizer", "a torch.optim.Optimizer")
    made = make(model.parameters(), **accepted(make, {"lr": lr, "weight_decay": weight_decay}))
    if not isinstance(made, torch.optim.Optimizer):
        raise MisconfiguredError(
            f"optimizer={config.optimizer!r} returned {type(made).__name__}: return a "
            "torch.optim.Optimizer of the parameters that it is given"
        )
    return made


def network_of(config: RunConfig, classes: int, shape: Sequence[int]) -> nn.Module:
    """Build the full network, with trained weights if the configuration names some.

    Raises:
        MisconfiguredError: it cannot be built, or the weights do not fit.
    """
    model = build(config.model, classes, shape, pretrained=config.pretrained)
    if config.weights is not None:
        load_fitting(model, read_tensors(Path(config.weights)), f"weights={config.weights!r}")
    return model
