"""`guyot train`."""

import dataclasses
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from guyot import report, running
from guyot.cli.app import INTERRUPTED, Json, Quiet, app, option, print_json
from guyot.cli.display import Display
from guyot.cli.interrupt import Interruption
from guyot.config import DATA, DECAYS, ESTIMATORS, RunConfig

_WHAT, _HOW, _FIND, _RUN = "What to train", "Training", "Discovery", "The run"

Data = Annotated[str, option(_WHAT, f"One of {', '.join(DATA)} ({RunConfig.data}).")]
Model = Annotated[
    str | None,
    option(
        _WHAT,
        "resnet20 (or 32, 44, 56, 110), digits, a name of torchvision or timm, or your own "
        "package.module:factory.",
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
    str | None, option(_HOW, f"{' or '.join(DECAYS)}, to 0 at the end ({RunConfig.decay}).")
]
LabelSmoothing = Annotated[
    float | None, option(_HOW, f"From 0 to below 1 ({RunConfig.label_smoothing}).")
]
Target = Annotated[float | None, option(_FIND, "Share of the complexity to keep (0.5); or:")]
Nu = Annotated[float | None, option(_FIND, "Nats of loss worth paying to remove it all.")]
Alpha = Annotated[
    float | None,
    option(_FIND, f"1: complexity is MACs ... 0: parameters ({RunConfig.alpha})."),
]
Beta = Annotated[
    float | None,
    option(_FIND, f"0: charge all ... 1: charge whole layers only ({RunConfig.beta})."),
]
Estimator = Annotated[
    str | None, option(_FIND, f"{', '.join(ESTIMATORS)} ({RunConfig.estimator}).")
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
TensorBoard = Annotated[
    bool, option(_RUN, "Write an event file, too, in FOLDER/tensorboard.", "--tensorboard")
]


@app.command()
def train(  # noqa: PLR0913 - one parameter per option
    data: Data = RunConfig.data,
    model: Model = None,
    data_dir: DataDir = None,
    image_size: ImageSize = None,
    validation: Validation = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    weight_decay: WeightDecay = None,
    warmup_epochs: WarmupEpochs = None,
    decay: Decay = None,
    label_smoothing: LabelSmoothing = None,
    target: Target = None,
    nu: Nu = None,
    alpha: Alpha = None,
    beta: Beta = None,
    estimator: Estimator = None,
    round_to: RoundTo = None,
    ignore: Ignore = None,
    freeze: Freeze = None,
    tie: Tie = None,
    no_discovery: NoDiscovery = False,
    out: Out = None,
    seed: Seed = None,
    device: Device = None,
    threads: Threads = None,
    bf16: Bf16 = None,
    tensorboard: TensorBoard = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a network, let it find its structure, and write a run folder.

    The folder holds the configuration, a line per epoch, the smaller network,
    its structure, and the figures before and after. Ctrl-C ends the run
    cleanly and keeps what there is. Defaults are in brackets.

    Try: guyot train --data digits
    """
    given = locals()
    settings = [field.name for field in dataclasses.fields(RunConfig) if field.name in given]
    choices = {name: given[name] for name in settings}
    config = RunConfig.of(**choices, discovery=not no_discovery)
    _train(config, out or _default_folder(config), quiet, json, tensorboard)


def _train(config: RunConfig, out: Path, quiet: bool, json: bool, tensorboard: bool) -> None:
    """Run, print the table, and leave with the right exit code."""
    console = Console(stderr=json)

    def asked() -> None:
        display.say("stopping after this step; Ctrl-C again to abort")

    stop = Interruption(asked)
    display = Display(console, lambda: setattr(stop, "armed", True), quiet=quiet)
    try:
        with stop, display:
            outcome = running.train(config, out, display, stop, tensorboard=tensorboard)
    except KeyboardInterrupt:
        left = f"{out} is incomplete" if stop.armed else "nothing was written"
        typer.echo(f"aborted: {left}", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if json:
        print_json({"folder": str(out), **report.to_dict(outcome)})
    else:
        typer.echo("\n".join(["", *report.lines(outcome), "", f"Everything is in {out}"]))
    if outcome.interrupted is not None:
        raise typer.Exit(INTERRUPTED)


def _default_folder(config: RunConfig) -> Path:
    """A folder that does not exist yet."""
    stem = f"{config.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = [stem, *(f"{stem}-{number}" for number in range(2, 100))]
    folders = [Path("runs") / name for name in names]
    return next((folder for folder in folders if not folder.exists()), folders[-1])
