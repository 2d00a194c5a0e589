"""`RunConfig`: everything that decides a training run, validated, to and from plain data."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from guyot.core.errors import MisconfiguredError
from guyot.costs.complexity import weights_of
from guyot.planning.config import problem_of, problem_of_targets

DATA = ("digits", "cifar10", "cifar100", "imagefolder:DIR")
WISHES = ("ignore", "freeze", "tie")
GOALS = ("nu", "target", "targets", "target_ms")
DECAYS = ("cosine", "linear")
ON_CORRUPT = ("stop", "skip")
MAX_THREADS = 1024
MAX_IMAGE_SIZE = 4096

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
        targets: of a family of runs instead of one, falling, see `guyot.Family`.
        target_ms: the same in milliseconds of one forward pass, where `cost` is latency alone.
        alpha: 1 counts MACs only ... 0 parameters only.
        cost: what complexity means instead of `alpha`: "latency", or weights such as
            "macs=1,latency=3" of macs, params and latency.
        latency_table: file of `guyot profile`; given if and only if `cost` counts latency.
        beta: 0 charges what each structure costs ... 1 whole layers only.
        estimator: "two-sided", "fisher", "straight-through" or "taylor".
        round_to: widths that are not full are multiples of this; None: what suits the device,
            measured.
        ignore: patterns of names of modules that are left alone, see `find_structures`.
        freeze: patterns of names of groups and layers that stay.
        tie: sets of groups that lose the same units, patterns with commas between them.
        seed: of weights, batches, augmentation and gates.
        device: a torch device, or "auto": a GPU if there is one.
        threads: of the CPU; None: torch's own choice.
        bf16: autocast; None: where the hardware gains from it.
        deterministic: let torch use deterministic algorithms only; on the CPU they are anyway.
        on_corrupt: "stop" at an image that cannot be read, or "skip" it.
        checkpoint_every: a number of steps ("500") or of minutes ("10m"); epochs are saved anyway.
        keep: how many checkpoints stay; 0: none is written.
        max_nan_steps: after so many steps in a row with a loss of NaN or inf the run stops.

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
    targets: tuple[float, ...] = ()
    target_ms: float | None = None
    alpha: float = 1.0
    cost: str | None = None
    latency_table: str | None = None
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
    deterministic: bool = False
    on_corrupt: str = "stop"
    checkpoint_every: str = "10m"
    keep: int = 2
    max_nan_steps: int = 20

    def __post_init__(self) -> None:
        problems = _type_problems(self)
        if not problems:
            for name in (*WISHES, "targets"):  # JSON has lists
                object.__setattr__(self, name, tuple(getattr(self, name)))
            problems = [
                *_data_problems(self),
                *_recipe_problems(self),
                *_discovery_problems(self),
                *_run_problems(self),
            ]
        if problems:
            raise MisconfiguredError("; ".join(problems))

    @classmethod
    def of(cls, data: str, **choices: Any) -> RunConfig:
        """The defaults of a data set, overruled by the choices that are not None."""
        given = {name: value for name, value in choices.items() if value is not None}
        defaults = _DEFAULTS.get(data.partition(":")[0], {})
        if given.get("discovery", True) and not set(GOALS) & given.keys():
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
        if not isinstance(values, Mapping):
            raise MisconfiguredError(
                f"the configuration is a {type(values).__name__}: give settings by name, such as "
                '{"data": "digits", "target": 0.5}'
            )
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise MisconfiguredError(
                f"the configuration has the unknown settings {', '.join(unknown)}; "
                f"known are {', '.join(sorted(known))}"
            )
        return cls(**values)


_KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "None": (type(None),),
}
_NAMES = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}


def _type_problems(config: RunConfig) -> list[str]:
    """Values of another kind than the field's, as they may come from a file."""
    problems: list[str] = []
    for field in dataclasses.fields(config):
        value, names = getattr(config, field.name), str(field.type).split(" | ")
        if field.name in WISHES:
            if not isinstance(value, list | tuple) or not all(map(_is_text, value)):
                problems.append(f"{field.name}={value!r}: give a list of patterns")
            continue
        if field.name == "targets":
            if not isinstance(value, list | tuple) or not all(map(_is_number, value)):
                problems.append(f"targets={value!r}: give a list of numbers")
            continue
        kinds = tuple(kind for name in names for kind in _KINDS[name])
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            problems.append(f"{field.name}={value!r}: give {_NAMES[names[0]]}")
        elif isinstance(value, str) and not _is_text(value):
            problems.append(f"{field.name}={value!r}: leave out characters that cannot be printed")
        elif isinstance(value, int) and abs(value) >= 2**31:
            problems.append(f"{field.name}={value}: give a number below 2147483648")
    return problems


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def interval_of(text: str) -> tuple[float, float]:
    """Steps and seconds between two checkpoints; inf where it is not counted.

    Raises:
        ValueError: neither a number of steps nor of minutes.

    Example:
        >>> interval_of("500"), interval_of("2.5m")
        ((500, inf), (inf, 150.0))
    """
    if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?m(?:in)?", text, re.ASCII):
        steps, seconds = math.inf, 60 * float(match[1])
    elif re.fullmatch(r"\d+", text, re.ASCII):
        steps, seconds = int(text), math.inf
    else:
        raise ValueError(text)
    if not min(steps, seconds) > 0:
        raise ValueError(text)
    return steps, seconds


def _run_problems(config: RunConfig) -> list[str]:
    problems: list[str] = []
    try:
        interval_of(config.checkpoint_every)
    except ValueError:
        problems.append(
            f"checkpoint_every={config.checkpoint_every!r}: give steps, such as 500, or minutes, "
            "such as 10m"
        )
    if config.keep < 0:
        problems.append(f"keep={config.keep}: give how many checkpoints stay, 0 for none")
    if config.max_nan_steps < 1:
        problems.append(f"max_nan_steps={config.max_nan_steps}: give at least 1")
    if config.on_corrupt not in ON_CORRUPT:
        problems.append(f"on_corrupt={config.on_corrupt!r}: choose {' or '.join(ON_CORRUPT)}")
    if config.threads is not None and config.threads > MAX_THREADS:
        problems.append(f"threads={config.threads}: give at most {MAX_THREADS}")
    return problems


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
    if not 1 <= config.image_size <= MAX_IMAGE_SIZE:
        problems.append(
            f"image_size={config.image_size}: give a number of pixels up to {MAX_IMAGE_SIZE}, such "
            "as 32"
        )
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
            for name in (*GOALS, "cost", "latency_table", *WISHES)
            if (value := getattr(config, name)) not in (None, ())
        ]
    problems = _cost_problems(config)
    if config.targets:
        problems += _family_problems(config)
    elif sum(goal is not None for goal in (config.nu, config.target, config.target_ms)) != 1:
        also = "" if config.target_ms is None else f" and target_ms={config.target_ms}"
        problems.append(
            f"nu={config.nu} and target={config.target}{also}: give one of them, target for a "
            "known size or nu for a known price of accuracy"
        )
    for name in ("nu", "target", "estimator"):
        value = getattr(config, name)
        if value is not None and (problem := problem_of(name, value)):
            problems.append(problem)
    for name in ("alpha", "beta"):
        value = getattr(config, name)
        if not 0 <= value <= 1:
            problems.append(f"{name}={value}: give a number from 0 to 1")
    if config.round_to is not None and config.round_to < 1:
        problems.append(
            f"round_to={config.round_to}: widths are multiples of it, give at least 1 (any width)"
        )
    return problems


def _family_problems(config: RunConfig) -> list[str]:
    given = ",".join(f"{target:g}" for target in config.targets)
    problems = [
        f"targets={given} and {name}={value}: give one of them, targets for several sizes"
        for name in ("nu", "target", "target_ms")
        if (value := getattr(config, name)) is not None
    ]
    if problem := problem_of_targets(config.targets):
        problems.append(problem)
    if not config.keep:
        problems.append(
            f"targets={given} and keep=0: the members of a family begin at checkpoints, keep at "
            "least 1"
        )
    return problems


def _cost_problems(config: RunConfig) -> list[str]:
    weights: dict[str, float] = {}
    problems: list[str] = []
    try:
        weights = weights_of(config.cost) if config.cost is not None else {}
    except MisconfiguredError as error:
        return [str(error)]
    if weights and config.alpha != 1.0:
        problems.append(
            f"alpha={config.alpha} and cost={config.cost!r} both say what complexity means: give "
            "one of them"
        )
    if (weights.get("latency", 0) > 0) != (config.latency_table is not None):
        problems.append(
            f"cost={config.cost!r} and latency_table={config.latency_table!r}: give both, "
            "cost=latency and a file of `guyot profile`, or neither"
        )
    if config.target_ms is not None and {n for n, w in weights.items() if w} != {"latency"}:
        problems.append(
            f"target_ms={config.target_ms} is for cost=latency alone and cost is {config.cost!r}: "
            "give target, the share of the complexity to keep"
        )
    return problems
