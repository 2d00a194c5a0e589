"""`RunConfig`: everything that decides a training run, validated, to and from plain data."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guyot.errors import MisconfiguredError

DATA = ("digits", "cifar10", "cifar100", "imagefolder:DIR")
ESTIMATORS = ("two-sided", "straight-through", "taylor")
WISHES = ("ignore", "freeze", "tie")
DECAYS = ("cosine", "linear")

_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"model": "digits", "epochs": 60, "batch_size": 64, "threads": 1},
    "cifar10": {},
    "cifar100": {},
    "imagefolder": {},
}
"""What differs between data sets; everything else is the default of the field. A step on digits is
too short to be shared between threads: when another program holds a core, they mostly wait."""


@dataclass(frozen=True)
class RunConfig:
    """One training run. `RunConfig.of` fills in the defaults of a data set.

    Attributes:
        data: "digits", "cifar10", "cifar100" or "imagefolder:DIR".
        model: a name of guyot's own networks, torchvision's or timm's, or package.module:factory.
        data_dir: folder with the parquet files of CIFAR.
        image_size: pixels to which the images of a folder are resized.
        validation: share of the training images held out to watch the run.
        epochs: passes over the training images.
        batch_size: images per step.
        lr: peak learning rate of SGD.
        weight_decay: L2 coefficient.
        warmup_epochs: epochs of linear growth of the learning rate.
        decay: "cosine" or "linear", to 0 at the last step.
        label_smoothing: in [0, 1).
        discovery: False trains the full network.
        nu: nats of training loss worth paying to remove all of the complexity.
        target: share of the complexity to keep; exactly one of `nu` and `target` is given.
        alpha: 1 counts MACs only ... 0 parameters only.
        beta: 0 charges what each structure costs ... 1 whole layers only.
        estimator: "two-sided", "straight-through" or "taylor".
        round_to: widths that are not full are multiples of this; None: what suits the device,
            measured.
        ignore: patterns of names of modules that are left alone, see `find_structures`.
        freeze: patterns of names of groups and layers that stay.
        tie: sets of groups that lose the same units, patterns with commas between them.
        seed: of weights, batches, augmentation and gates.
        device: a torch device, or "auto": a GPU if there is one.
        threads: of the CPU; None: torch's own choice.
        bf16: autocast; None: where the hardware gains from it.

    Raises:
        MisconfiguredError: lists everything that is wrong.

    Example:
        >>> config = RunConfig.of("digits", epochs=5)
        >>> config.model, config.epochs, config.target
        ('digits', 5, 0.5)
        >>> RunConfig.from_dict(config.to_dict()) == config
        True
    """

    data: str = "digits"
    model: str = "resnet20"
    data_dir: str | None = None
    image_size: int = 32
    validation: float = 0.1
    epochs: int = 60
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    warmup_epochs: float = 1.0
    decay: str = "cosine"
    label_smoothing: float = 0.0
    discovery: bool = True
    nu: float | None = None
    target: float | None = None
    alpha: float = 1.0
    beta: float = 0.8
    estimator: str = "two-sided"
    round_to: int | None = None
    ignore: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    tie: tuple[str, ...] = ()
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        for name in WISHES:  # JSON has lists
            object.__setattr__(self, name, tuple(getattr(self, name)))
        problems = [*_data_problems(self), *_recipe_problems(self), *_discovery_problems(self)]
        if problems:
            raise MisconfiguredError("; ".join(problems))

    @classmethod
    def of(cls, data: str, **choices: Any) -> RunConfig:
        """The defaults of a data set, overruled by the choices that are not None."""
        given = {name: value for name, value in choices.items() if value is not None}
        defaults = _DEFAULTS.get(data.partition(":")[0], {})
        if given.get("discovery", True) and not {"nu", "target"} & given.keys():
            given["target"] = 0.5
        return cls(data=data, **(defaults | given))

    @property
    def name(self) -> str:
        """What the run is about, fit for the name of a folder."""
        data = self.data.partition(":")[0]
        model = re.sub(r"[^\w.-]+", "-", self.model).strip("-.")
        return data if model == data else f"{data}-{model}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_dict`.

        Raises:
            MisconfiguredError: a name that is no setting of a run.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise MisconfiguredError(
                f"the configuration has the unknown settings {', '.join(unknown)}; "
                f"known are {', '.join(sorted(known))}"
            )
        return cls(**values)


def _data_problems(config: RunConfig) -> list[str]:
    problems: list[str] = []
    kind, _, folder = config.data.partition(":")
    if kind not in _DEFAULTS or (kind == "imagefolder") != bool(folder):
        problems.append(f"data={config.data!r} is unknown: choose {', '.join(DATA)}")
    if config.data_dir is not None and not kind.startswith("cifar"):
        problems.append(
            f"data_dir={config.data_dir!r} is for CIFAR only and data is {config.data!r}: leave "
            "it out (a folder of images is given as imagefolder:DIR)"
        )
    if not 0 < config.validation < 1:
        problems.append(
            f"validation={config.validation}: give the share of the training images to hold out, "
            "such as 0.1"
        )
    if config.image_size < 1:
        problems.append(f"image_size={config.image_size}: give a number of pixels, such as 32")
    return problems


def _recipe_problems(config: RunConfig) -> list[str]:
    problems: list[str] = []
    for name in ("epochs", "batch_size", "threads"):
        value = getattr(config, name)
        if value is not None and value < 1:
            problems.append(f"{name}={value}: give at least 1")
    if not (math.isfinite(config.lr) and config.lr > 0):
        problems.append(f"lr={config.lr}: give a positive learning rate, such as 0.1")
    for name in ("weight_decay", "warmup_epochs"):
        value = getattr(config, name)
        if not (math.isfinite(value) and value >= 0):
            problems.append(f"{name}={value}: give 0 or more")
    if config.decay not in DECAYS:
        problems.append(f"decay={config.decay!r}: choose {' or '.join(DECAYS)}")
    if not 0 <= config.label_smoothing < 1:
        problems.append(f"label_smoothing={config.label_smoothing}: give a value in [0, 1)")
    if not 0 <= config.seed < 2**31:
        problems.append(f"seed={config.seed}: give an integer from 0 to 2147483647")
    return problems


def _discovery_problems(config: RunConfig) -> list[str]:
    if not config.discovery:
        return [
            f"{name}={value} has no effect without discovery: leave it out"
            for name in ("nu", "target", *WISHES)
            if (value := getattr(config, name)) not in (None, ())
        ]
    problems: list[str] = []
    if (config.nu is None) == (config.target is None):
        problems.append(
            f"nu={config.nu} and target={config.target}: give one of them, target for a known "
            "size or nu for a known price of accuracy"
        )
    if config.nu is not None and not (math.isfinite(config.nu) and config.nu >= 0):
        problems.append(
            f"nu={config.nu}: give the nats of training loss worth paying to remove all of the "
            "complexity, 0 or more, such as 0.3"
        )
    if config.target is not None and not 0 < config.target < 1:
        problems.append(
            f"target={config.target}: give the share of the complexity to keep, between 0 and 1, "
            "such as 0.5"
        )
    for name in ("alpha", "beta"):
        value = getattr(config, name)
        if not 0 <= value <= 1:
            problems.append(f"{name}={value}: give a number from 0 to 1")
    if config.estimator not in ESTIMATORS:
        problems.append(f"estimator={config.estimator!r}: choose {', '.join(ESTIMATORS)}")
    if config.round_to is not None and config.round_to < 1:
        problems.append(
            f"round_to={config.round_to}: widths are multiples of it, give at least 1 (any width)"
        )
    return problems
