"""`RunConfig`: everything that decides a training run, one field per setting.

The fields are the only definition of the settings: `guyot.app.settings` says how the options of the
command line, the files of `--config` and the checks are made from them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guyot.app.settings import (
    AT_LEAST_1,
    BELOW_1,
    NOT_NEGATIVE,
    POSITIVE_RATE,
    SHARE,
    check_named,
    problems_of,
    setting,
    settings_of,
)
from guyot.app.user_code import is_function
from guyot.core.condition import Condition, did_you_mean
from guyot.core.errors import MisconfiguredError
from guyot.core.metric import ACCURACY, BITS, R2, Metric
from guyot.planning.config import BASELINES, CONDITIONS, ESTIMATORS, problem_of_targets

DATA = ("digits", "cifar10", "cifar100", "imagefolder:DIR", "table:FILE.csv", "text:FILE.txt")
AUGMENT = ("none", "flip", "crop", "flip+crop", "resized-crop", "flip+resized-crop")
OPTIMIZERS = ("sgd", "adamw")
MODEL_NAMES = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "digits")
"""Guyot's own networks."""
PATTERNS = ("ignore", "freeze", "tie")
GOALS = ("nu", "target", "targets", "target_ms")
MAX_THREADS = 1024
MAX_WORKERS = 256
MAX_IMAGE_SIZE = 4096
TIMEOUT = 300.0
"""Seconds for which a process waits for the others."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "digits": {"model": "digits", "epochs": 60, "batch_size": 64, "threads": 1},
    "cifar10": {},
    "cifar100": {},
    "imagefolder": {},
    "table": {"model": "mlp", "batch_size": 64, "lr": 0.05, "threads": 1},
    "text": {"model": "transformer", "batch_size": 32, "epochs": 10, "optimizer": "adamw"},
}
"""What differs between data sets; everything else is the default of the field. A step on digits is
too short to be shared between threads: when another program holds a core, they mostly wait."""

_ENDINGS = {".csv": "table", ".parquet": "table", ".pq": "table", ".txt": "text"}
"""What a file of data most likely is."""

_WHAT, _HOW, _FIND, _RUN = "What to train", "Training", "Discovery", "The run"
_SAVE = "Checkpoints"
_PIXELS = Condition(
    lambda value: 1 <= value <= MAX_IMAGE_SIZE,
    f"give a number of pixels up to {MAX_IMAGE_SIZE}, such as 32",
)
_HELD_OUT = Condition(
    lambda value: 0 < value < 1,
    "give the share of the training images to hold out, such as 0.1",
)
_SEEDS = Condition(lambda value: value >= 0, "give an integer from 0 to 2147483647")
_THREADS = Condition(
    lambda value: 1 <= value <= MAX_THREADS, f"give at least 1 and at most {MAX_THREADS}"
)
_WORKERS = Condition(
    lambda value: 1 <= value <= MAX_WORKERS, f"give at least 1 and at most {MAX_WORKERS}"
)
_SLIM = Condition(lambda value: 0 < value <= 1, "give the share of the MACs to keep, such as 0.5")
_DECAY = Condition(lambda value: 0 < value < 1, "give the decay per step, such as 0.999")
_KEPT = Condition(lambda value: value >= 0, "give how many checkpoints stay, 0 for none")


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


def _is_interval(text: str) -> bool:
    try:
        interval_of(text)
    except ValueError:
        return False
    return True


_INTERVAL = Condition(_is_interval, "give steps, such as 500, or minutes, such as 10m")


@dataclass(frozen=True)
class RunConfig:
    """One training run. `RunConfig.of` fills in the defaults of a data set.

    `guyot train --help` lists the settings and what they mean.

    Raises:
        MisconfiguredError: names everything that is wrong.

    Example:
        >>> config = RunConfig.of("digits", epochs=5)
        >>> config.model, config.epochs, config.target
        ('digits', 5, 0.5)
        >>> RunConfig.from_dict(config.to_dict()) == config
        True
    """

    data: str = setting(
        "digits", _WHAT, f"{', '.join(DATA)}, or your own FILE.py:NAME", offered=DATA
    )
    model: str = setting(
        "resnet20",
        _WHAT,
        "resnet20 (or 32, 44, 56, 110), digits, mlp, transformer, a name of torchvision or timm, "
        "or your own package.module:factory",
        shown="",
        offered=MODEL_NAMES,
    )
    data_dir: str | None = setting(
        None, _WHAT, "Folder with CIFAR's parquet files", shown="download"
    )
    weights: str | None = setting(None, _WHAT, "Begin with the weights in this file (safetensors)")
    pretrained: bool = setting(
        False, _WHAT, "Begin with the weights that torchvision or timm download"
    )
    task: str = setting(
        "classification",
        _WHAT,
        "classification or regression, of a table or your own data",
        choices=("classification", "regression"),
    )
    label: str | None = setting(
        None, _WHAT, "Column of a table to predict", shown="label, or the last one"
    )
    context: int = setting(64, _WHAT, "Characters of a text that the network sees", rule=AT_LEAST_1)
    augment: str | None = setting(
        None,
        _WHAT,
        f"Of training images: {', '.join(AUGMENT[:4])}; (flip+)resized-crop needs data_workers",
        shown="flip+crop, digits crop",
        choices=AUGMENT,
    )
    test_share: float | None = setting(
        None, _WHAT, "Share of imagefolder's DIR/CLASS that becomes test data", rule=_HELD_OUT
    )
    image_size: int = setting(32, _WHAT, "Pixels, for imagefolder", rule=_PIXELS)
    data_workers: int | None = setting(
        None,
        _WHAT,
        "So many processes decode imagefolder's images for each batch",
        shown="images are held in memory",
        rule=_WORKERS,
    )
    validation: float = setting(0.1, _WHAT, "Share of training data held out", rule=_HELD_OUT)
    on_corrupt: str = setting(
        "stop", _WHAT, "stop or skip, at unreadable images", choices=("stop", "skip")
    )
    epochs: int = setting(
        60, _HOW, "Passes over the training data", shown="60, texts 10", rule=AT_LEAST_1
    )
    batch_size: int = setting(
        128, _HOW, "Samples per step", shown="128, digits 64", rule=AT_LEAST_1
    )
    optimizer: str = setting(
        "sgd",
        _HOW,
        "sgd, adamw, or your own FILE.py:NAME of (parameters, lr)",
        shown="sgd; adamw for regression and texts",
        offered=OPTIMIZERS,
    )
    loss: str | None = setting(
        None,
        _HOW,
        "Your own FILE.py:NAME of (outputs, labels)",
        shown="cross entropy; squared error for regression",
    )
    distill: float = setting(
        0.0,
        _HOW,
        "Share of the loss that the full network teaches; needs weights or pretrained",
        rule=SHARE,
    )
    lr: float = setting(
        0.1, _HOW, "Peak learning rate", shown="0.1, adamw 0.001", rule=POSITIVE_RATE
    )
    weight_decay: float = setting(5e-4, _HOW, "L2 coefficient", rule=NOT_NEGATIVE)
    warmup_epochs: float = setting(1.0, _HOW, "Epochs of growing learning rate", rule=NOT_NEGATIVE)
    decay: str = setting(
        "cosine", _HOW, "cosine or linear, to 0 at the end", choices=("cosine", "linear")
    )
    ema: float | None = setting(
        None,
        _HOW,
        "Average the weights with this decay, such as 0.999; the average comes out",
        rule=_DECAY,
    )
    label_smoothing: float = setting(0.0, _HOW, "From 0 to below 1", rule=BELOW_1)
    max_nan_steps: int = setting(
        20, _HOW, "Stop after so many losses of NaN or infinity in a row", rule=AT_LEAST_1
    )
    target: float | None = setting(
        None, _FIND, "Share of the complexity to keep (0.5); or:", rule=CONDITIONS["target"]
    )
    targets: tuple[float, ...] = setting(
        (), _FIND, "Several sizes from one run, such as 0.7,0.5,0.35,0.25; or:"
    )
    target_ms: float | None = setting(
        None, _FIND, "The same in milliseconds, with --cost latency; or:"
    )
    nu: float | None = setting(
        None, _FIND, "Nats of loss worth paying to remove everything", rule=CONDITIONS["nu"]
    )
    alpha: float = setting(
        1.0, _FIND, "1: complexity is MACs ... 0: parameters", rule=CONDITIONS["alpha"]
    )
    cost: str | None = setting(
        None, _FIND, "Instead of alpha: latency, or macs=1,latency=3 and so on"
    )
    latency_table: str | None = setting(
        None, _FIND, "File of guyot profile, for a cost with latency"
    )
    beta: float = setting(
        0.0, _FIND, "0: charge all ... 1: charge whole layers only", rule=CONDITIONS["beta"]
    )
    estimator: str = setting(
        "fisher", _FIND, ", ".join(ESTIMATORS), offered=ESTIMATORS, rule=CONDITIONS["estimator"]
    )
    round_to: int | None = setting(
        None, _FIND, "Widths are multiples of this number", shown="measured", rule=AT_LEAST_1
    )
    ignore: tuple[str, ...] = setting(
        (), _FIND, "Leave modules alone, such as 'head*'; may be repeated"
    )
    freeze: tuple[str, ...] = setting((), _FIND, "Keep groups and layers whole; see guyot inspect")
    tie: tuple[str, ...] = setting(
        (), _FIND, "Groups that lose the same units: 'a,b' or 'blocks.*.fc1'"
    )
    discovery: bool = setting(True, _FIND, "Train the full network")
    slim: float | None = setting(
        None,
        _FIND,
        "With --no-discovery: the same share of every width, and at least this share of the MACs",
        rule=_SLIM,
    )
    baseline: str | None = setting(
        None,
        _RUN,
        "Then train to compare: full, the full network, or slim, a uniformly slimmer one, too",
        choices=BASELINES,
    )
    seeds: int = setting(1, _RUN, "Repeat everything with so many seeds", rule=AT_LEAST_1)
    seed: int = setting(0, _RUN, "Decides everything that is random", rule=_SEEDS)
    device: str = setting("auto", _RUN, "cpu, cuda, cuda:1, ...", shown="a GPU if there is one")
    threads: int | None = setting(
        None, _RUN, "Of the CPU", shown="all cores, digits 1", rule=_THREADS
    )
    bf16: bool | None = setting(None, _RUN, "Autocast to bfloat16", shown="where it is faster")
    deterministic: bool = setting(False, _RUN, "Bit-identical on a GPU, too; slower")
    checkpoint_every: str = setting(
        "10m",
        _SAVE,
        "Steps, or minutes as 10m; epochs are saved in any case",
        rule=_INTERVAL,
    )
    keep: int = setting(2, _SAVE, "Checkpoints that stay; 0: none", rule=_KEPT)

    def __post_init__(self) -> None:
        problems = problems_of(self)
        known = settings_of(RunConfig)
        if not any(known[name].wrong_kind(getattr(self, name)) for name in known):
            for name in (*PATTERNS, "targets"):  # JSON has lists
                object.__setattr__(self, name, tuple(getattr(self, name)))
            problems += _data_problems(self)
            problems += _discovery_problems(self) if self.discovery else _without_discovery(self)
            problems += _comparison_problems(self)
        if problems:
            raise MisconfiguredError(*problems)

    @classmethod
    def of(cls, data: str, **choices: Any) -> RunConfig:
        """The defaults of a data set, overruled by the choices that are not None."""
        given = {name: value for name, value in choices.items() if value is not None}
        return cls.with_defaults({"data": data, **given})

    @classmethod
    def with_defaults(cls, values: Mapping[str, Any]) -> RunConfig:
        """Fill in what settings by name leave out.

        It has the default of the data set; without any goal half of the complexity is kept.

        Raises:
            MisconfiguredError: a name that is no setting of a run, or a wrong value.
        """
        data = str(values.get("data", cls.data)).partition(":")[0]
        usual = _DEFAULTS.get(data, {})
        if values.get("task") == "regression":
            usual = usual | {"optimizer": "adamw", "lr": 0.01}
        optimizer = values.get("optimizer", usual.get("optimizer"))
        adamw = {"lr": 1e-3} if optimizer == "adamw" else {}
        settings = usual | adamw | dict(values)
        given = [goal for goal in GOALS if settings.get(goal) not in (None, (), [])]
        if settings.get("discovery", True) is True and not given:
            settings["target"] = 0.5
        return cls.from_dict(settings)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RunConfig:
        """The inverse of `to_dict`.

        Raises:
            MisconfiguredError: a name that is no setting of a run, or a wrong value.
        """
        check_named(values)
        known = settings_of(cls)
        if unknown := [name for name in values if name not in known]:
            raise MisconfiguredError(
                *(
                    f"{name!r} is no setting of a run{did_you_mean(name, known)}: known are "
                    f"{', '.join(sorted(known))}"
                    for name in unknown
                )
            )
        return cls(**values)

    def baseline_of(self, kind: str, share: float) -> RunConfig:
        """The same recipe for a network that is compared with the one of this run.

        Args:
            kind: one of `BASELINES`.
            share: of the full network's MACs that the run kept.
        """
        without: dict[str, Any] = dict.fromkeys((*GOALS, "cost", "latency_table", "baseline"))
        without |= {"targets": (), "discovery": False}
        if kind == "full":
            without |= dict.fromkeys(PATTERNS, ())
        slim = share if kind == "slim" else None
        return dataclasses.replace(self, **without, slim=slim)

    @property
    def cuts(self) -> bool:
        """Say whether widths change."""
        return self.discovery or self.slim is not None

    @property
    def metric(self) -> Metric:
        """Return what scores of the run are."""
        if self.data.startswith("text:"):
            return BITS
        return R2 if self.task == "regression" else ACCURACY

    @property
    def name(self) -> str:
        """Return what the run is about, fit for the name of a folder."""
        data = re.sub(r"[^\w.-]+", "-", self.data.partition(":")[0]).strip("-.")
        model = re.sub(r"[^\w.-]+", "-", self.model).strip("-.")
        return data if model == data else f"{data}-{model}"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


_OF_ONE_KIND = {
    "test_share": ("imagefolder", "imagefolder:DIR"),
    "data_workers": ("imagefolder", "imagefolder:DIR"),
    "label": ("table", "table:FILE"),
    "context": ("text", "text:FILE"),
}
"""Settings of one kind of data, and how it is given."""


def _data_problems(config: RunConfig) -> list[str]:
    problems: list[str] = []
    kind, _, folder = config.data.partition(":")
    known = kind in _DEFAULTS and (kind in ("imagefolder", "table", "text")) == bool(folder)
    if not known and not is_function(config.data):
        problems.append(
            f"data={config.data!r} is unknown: choose {', '.join(DATA)}, or your own "
            f"FILE.py:NAME{_meant(config.data)}"
        )
    problems += _task_problems(config, kind)
    if config.data_dir is not None and not kind.startswith("cifar"):
        problems.append(
            f"data_dir={config.data_dir!r} is for CIFAR only and data is {config.data!r}: leave "
            "it out (a folder of images is given as imagefolder:DIR)"
        )
    for name, (own, shown) in _OF_ONE_KIND.items():
        value = getattr(config, name)
        if kind != own and value != settings_of(RunConfig)[name].default:
            problems.append(
                f"{name}={value!r} is for data={shown} and data is {config.data!r}: leave it out"
            )
    if "resized" in (config.augment or "") and config.data_workers is None:
        problems.append(
            f"augment={config.augment!r} needs whole images, and in memory they are scaled: let "
            "processes decode imagefolder's images for each batch (data_workers=8), or give "
            "flip+crop"
        )
    if config.distill and config.weights is None and not config.pretrained:
        problems.append(
            f"distill={config.distill:g} lets the full network teach, and it is not trained: give "
            "its weights=FILE.safetensors, or pretrained"
        )
    if config.weights is not None and config.pretrained:
        problems.append(
            f"weights={config.weights!r} and pretrained=True both say where the weights come from: "
            "give one of them"
        )
    if config.optimizer not in OPTIMIZERS and not is_function(config.optimizer):
        problems.append(
            f"optimizer={config.optimizer!r}: choose {' or '.join(OPTIMIZERS)}, or your own as "
            f"FILE.py:NAME{did_you_mean(config.optimizer, OPTIMIZERS)}"
        )
    if config.loss is not None and not is_function(config.loss):
        problems.append(f"loss={config.loss!r}: give a function of your own as FILE.py:NAME")
    return problems


def _meant(data: str) -> str:
    """Name what somebody meant who named other data, ready to follow a sentence."""
    ending = Path(data).suffix.lower()
    if ":" not in data and ending in _ENDINGS:
        return f", did you mean {_ENDINGS[ending]}:{data}?"
    if Path(data).is_dir():
        return f", did you mean imagefolder:{data}?"
    kind = data.partition(":")[0]
    return "" if kind in _DEFAULTS else did_you_mean(kind, _DEFAULTS)


def _task_problems(config: RunConfig, kind: str) -> list[str]:
    problems: list[str] = []
    regression = config.task == "regression"
    if regression and kind != "table" and not is_function(config.data):
        problems.append(
            f"task={config.task!r} is for a table or your own data and data is {config.data!r}: "
            "leave it out"
        )
    if regression and (config.label_smoothing or config.distill):
        name = "label_smoothing" if config.label_smoothing else "distill"
        problems.append(
            f"{name}={getattr(config, name):g} is for classes and task is 'regression': leave one "
            "of them out"
        )
    return problems


def _comparison_problems(config: RunConfig) -> list[str]:
    problems: list[str] = []
    if config.slim is not None and config.discovery:
        problems.append(
            f"slim={config.slim} is for a network that keeps its structure: give target, or "
            "discovery=False as well"
        )
    for name, value in (("baseline", config.baseline), ("seeds", config.seeds)):
        if config.targets and value not in (None, 1):
            problems.append(
                f"{name}={value} is for one size, and targets names several: leave one of them out"
            )
    return problems


def _without_discovery(config: RunConfig) -> list[str]:
    useless = (*GOALS, "cost", "latency_table", "baseline")
    return [
        f"{name}={value} has no effect without discovery: leave it out"
        for name in (useless if config.slim is not None else (*useless, *PATTERNS))
        if (value := getattr(config, name)) not in (None, ())
    ]


def _discovery_problems(config: RunConfig) -> list[str]:
    problems = _cost_problems(config)
    if config.targets:
        problems += _family_problems(config)
    elif sum(goal is not None for goal in (config.nu, config.target, config.target_ms)) != 1:
        also = "" if config.target_ms is None else f" and target_ms={config.target_ms}"
        problems.append(
            f"nu={config.nu} and target={config.target}{also}: give one of them, target for a "
            "known size or nu for a known price of accuracy"
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
    if config.cost is not None:
        from guyot.costs.complexity import weights_of  # with it comes torch

        try:
            weights = weights_of(config.cost)
        except MisconfiguredError as error:
            return list(error.args)
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
