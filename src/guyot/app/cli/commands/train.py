"""`guyot train`."""

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from guyot import report
from guyot.app import running
from guyot.app.cli.app import INTERRUPTED, Json, Quiet, app, option, print_json
from guyot.app.cli.display import Display
from guyot.app.cli.interrupt import Interruption
from guyot.app.config import DATA, DECAYS, GOALS, ON_CORRUPT, RunConfig
from guyot.app.launch import TIMEOUT, launched
from guyot.app.models import MODELS
from guyot.core.errors import MisconfiguredError
from guyot.core.storage import read_json
from guyot.planning.config import ESTIMATORS
from guyot.report import Outcome

_WHAT, _HOW, _FIND, _RUN = "What to train", "Training", "Discovery", "The run"
_SAVE = "Checkpoints"

Data = Annotated[
    str | None, option(_WHAT, f"One of {', '.join(DATA)} ({RunConfig.data}).", choices=DATA)
]
Model = Annotated[
    str | None,
    option(
        _WHAT,
        "resnet20 (or 32, 44, 56, 110), digits, a name of torchvision or timm, or your own "
        "package.module:factory.",
        choices=tuple(MODELS),
    ),
]
DataDir = Annotated[str | None, option(_WHAT, "Folder with CIFAR's parquet files (download).")]
ImageSize = Annotated[
    int | None, option(_WHAT, f"Pixels, for imagefolder ({RunConfig.image_size}).")
]
Validation = Annotated[
    float | None,
    option(_WHAT, f"Share of training images held out ({RunConfig.validation})."),
]
Epochs = Annotated[
    int | None, option(_HOW, f"Passes over the training images ({RunConfig.epochs}).")
]
BatchSize = Annotated[
    int | None, option(_HOW, f"Images per step ({RunConfig.batch_size}, digits 64).")
]
Lr = Annotated[float | None, option(_HOW, f"Peak learning rate of SGD ({RunConfig.lr}).")]
WeightDecay = Annotated[float | None, option(_HOW, f"L2 coefficient ({RunConfig.weight_decay}).")]
WarmupEpochs = Annotated[
    float | None,
    option(_HOW, f"Epochs of growing learning rate ({RunConfig.warmup_epochs})."),
]
Decay = Annotated[
    str | None,
    option(_HOW, f"{' or '.join(DECAYS)}, to 0 at the end ({RunConfig.decay}).", choices=DECAYS),
]
LabelSmoothing = Annotated[
    float | None, option(_HOW, f"From 0 to below 1 ({RunConfig.label_smoothing}).")
]
Target = Annotated[float | None, option(_FIND, "Share of the complexity to keep (0.5); or:")]
Targets = Annotated[
    str | None, option(_FIND, "Several sizes from one run, such as 0.7,0.5,0.35,0.25; or:")
]
TargetMs = Annotated[
    float | None, option(_FIND, "The same in milliseconds, with --cost latency; or:")
]
Nu = Annotated[float | None, option(_FIND, "Nats of loss worth paying to remove it all.")]
Alpha = Annotated[
    float | None,
    option(_FIND, f"1: complexity is MACs ... 0: parameters ({RunConfig.alpha})."),
]
Cost = Annotated[
    str | None, option(_FIND, "Instead of alpha: latency, or macs=1,latency=3 and so on.")
]
LatencyTable = Annotated[
    str | None, option(_FIND, "File of guyot profile, for a cost with latency.")
]
Beta = Annotated[
    float | None,
    option(_FIND, f"0: charge all ... 1: charge whole layers only ({RunConfig.beta})."),
]
Estimator = Annotated[
    str | None,
    option(_FIND, f"{', '.join(ESTIMATORS)} ({RunConfig.estimator}).", choices=ESTIMATORS),
]
RoundTo = Annotated[int | None, option(_FIND, "Widths are multiples of it (measured).")]
Ignore = Annotated[
    list[str] | None, option(_FIND, "Leave modules alone, such as 'head*'; may be repeated.")
]
Freeze = Annotated[
    list[str] | None, option(_FIND, "Keep groups and layers whole; see guyot inspect.")
]
Tie = Annotated[
    list[str] | None, option(_FIND, "Groups that lose the same units: 'a,b' or 'blocks.*.fc1'.")
]
NoDiscovery = Annotated[bool, option(_FIND, "Train the full network.", "--no-discovery")]
Out = Annotated[Path | None, option(_RUN, "New folder for everything (runs/NAME-TIME).")]
Seed = Annotated[int | None, option(_RUN, f"Decides all that is random ({RunConfig.seed}).")]
Device = Annotated[str | None, option(_RUN, "cpu, cuda, cuda:1, ... (a GPU if there is one).")]
Threads = Annotated[int | None, option(_RUN, "Of the CPU (all cores, digits 1).")]
Bf16 = Annotated[
    bool | None,
    option(_RUN, "Autocast to bfloat16 (where it is faster).", "--bf16/--no-bf16"),
]
Deterministic = Annotated[
    bool | None,
    option(_RUN, "Bit-identical on a GPU, too; slower.", "--deterministic/--no-deterministic"),
]
OnCorrupt = Annotated[
    str | None,
    option(
        _WHAT,
        f"{' or '.join(ON_CORRUPT)}, at unreadable images ({RunConfig.on_corrupt}).",
        choices=ON_CORRUPT,
    ),
]
MaxNanSteps = Annotated[
    int | None,
    option(_HOW, f"Stop after so many NaN losses in a row ({RunConfig.max_nan_steps})."),
]
CheckpointEvery = Annotated[
    str | None,
    option(
        _SAVE,
        f"Steps, or minutes as 10m; epochs are saved anyway ({RunConfig.checkpoint_every}).",
    ),
]
Keep = Annotated[int | None, option(_SAVE, f"Checkpoints that stay; 0: none ({RunConfig.keep}).")]
Resume = Annotated[
    Path | None,
    option(_SAVE, "Go on with the run in this folder, or from this checkpoint."),
]
Config = Annotated[
    Path | None, option(_RUN, "Settings from this file, as FOLDER/config.json of a run.")
]
Timeout = Annotated[
    float | None,
    option(_RUN, f"Seconds that several processes wait for one another ({TIMEOUT:g})."),
]
TensorBoard = Annotated[
    bool, option(_RUN, "Write an event file, too, in FOLDER/tensorboard.", "--tensorboard")
]


@app.command()
def train(  # noqa: PLR0913 - one parameter per option
    ctx: typer.Context,
    data: Data = None,
    model: Model = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    validation: Validation = None,
    on_corrupt: OnCorrupt = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    weight_decay: WeightDecay = None,
    warmup_epochs: WarmupEpochs = None,
    decay: Decay = None,
    label_smoothing: LabelSmoothing = None,
    max_nan_steps: MaxNanSteps = None,
    target: Target = None,
    targets: Targets = None,
    target_ms: TargetMs = None,
    nu: Nu = None,
    alpha: Alpha = None,
    cost: Cost = None,
    latency_table: LatencyTable = None,
    beta: Beta = None,
    estimator: Estimator = None,
    round_to: RoundTo = None,
    ignore: Ignore = None,
    freeze: Freeze = None,
    tie: Tie = None,
    no_discovery: NoDiscovery = False,
    config: Config = None,
    out: Out = None,
    seed: Seed = None,
    device: Device = None,
    threads: Threads = None,
    bf16: Bf16 = None,
    deterministic: Deterministic = None,
    resume: Resume = None,
    checkpoint_every: CheckpointEvery = None,
    keep: Keep = None,
    timeout: Timeout = None,
    tensorboard: TensorBoard = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a network, let it find its structure, and write a run folder.

    The folder holds the configuration, a line per epoch, checkpoints, the
    smaller network, its structure, and the figures before and after. Ctrl-C
    ends the run cleanly and keeps what there is; --resume goes on with it, and
    with a run that was killed. Defaults are in brackets.

    Try: guyot train --data digits
    """
    given = locals()
    patience = TIMEOUT if timeout is None else timeout
    if resume is not None:
        _check_alone(ctx)
        go_on = running.resume_family if running.is_family(resume) else running.resume
        _run(resume, partial(go_on, resume, timeout=patience), quiet, json)
        return
    settings = [field.name for field in dataclasses.fields(RunConfig) if field.name in given]
    choices = {name: given[name] for name in settings if given[name] is not None}
    wanted = _configured(config, choices, no_discovery)
    folder = out or _default_folder(wanted)
    start = running.train_family if wanted.targets else running.train
    start = partial(start, wanted, folder, tensorboard=tensorboard, timeout=patience)
    _run(folder, start, quiet, json)


def _numbers(targets: str) -> tuple[float, ...]:
    try:
        return tuple(float(target) for target in targets.split(","))
    except ValueError as error:
        raise MisconfiguredError(
            f"targets={targets!r}: give shares of the complexity to keep with commas between "
            "them, such as 0.7,0.5,0.35,0.25"
        ) from error


def _configured(file: Path | None, choices: dict[str, Any], no_discovery: bool) -> RunConfig:
    """The settings of a file if there is one, overruled by the options."""
    if no_discovery:
        choices["discovery"] = False
    if "targets" in choices:
        choices["targets"] = _numbers(choices["targets"])
    if file is None:
        return RunConfig.of(**{"data": RunConfig.data, **choices})
    settings = RunConfig.from_dict(read_json(file)).to_dict()
    if set(GOALS) & choices.keys() or no_discovery:
        settings |= dict.fromkeys(GOALS) | {"targets": ()}
    return RunConfig.from_dict(settings | choices)


def _check_alone(ctx: typer.Context) -> None:
    """Refuse settings beside --resume: they are those of the run."""
    sources = {name: ctx.get_parameter_source(name) for name in ctx.params}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    run = ctx.params["resume"]
    if extra := sorted(set(given) - {"resume", "timeout", "quiet", "json"}):
        raise MisconfiguredError(
            f"{extra[0]}={ctx.params[extra[0]]} has no effect with resume={run}, since a run goes "
            f"on with its own settings: leave it out, or start anew with config={run}/config.json"
        )


def _run(
    folder: Path, start: Callable[..., Outcome | running.Summary], quiet: bool, json: bool
) -> None:
    """Run, print what came out, and leave with the right exit code."""
    first = launched()[0] == 0
    console, quiet = Console(stderr=json), quiet or not first

    def asked() -> None:
        display.say("stopping after this step; Ctrl-C again to abort")

    stop = Interruption(asked)
    display = Display(console, lambda: setattr(stop, "armed", True), quiet=quiet)
    more = f"guyot train --resume {folder} goes on"
    try:
        with stop, display:
            outcome = start(watcher=display, stop=stop)
    except KeyboardInterrupt:
        left = f"{folder} is incomplete; {more}" if stop.armed else "nothing was written"
        typer.echo(f"aborted: {left}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if isinstance(outcome, Outcome):
        interrupted, values = outcome.interrupted is not None, report.to_dict(outcome)
        lines = report.lines(outcome)
    else:
        interrupted, values = outcome["status"] != "finished", outcome
        lines = report.member_lines(outcome["members"])
    if json and first:
        print_json({"folder": str(folder), **values})
    elif first:
        typer.echo("\n".join(["", *lines, "", f"Everything is in {folder}"]))
        if interrupted:
            typer.echo(more)
    if interrupted:
        raise typer.Exit(INTERRUPTED)


def _default_folder(config: RunConfig) -> Path:
    """A folder that does not exist yet."""
    stem = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    folders = [Path("runs") / name for name in names]
    return next((folder for folder in folders if not folder.exists()), folders[-1])
