"""A program that trains, or goes on with a run, and kills itself at a moment that is asked for.

    python killed.py FOLDER MOMENT NUMBER [RANK ...]

SIGKILL comes before the NUMBERth event of a kind: `step` (in the middle of one: the gradients are
there, the optimiser has not moved), `slice` (of a tensor, in the middle of a removal), `write` (a
change of the disk by a checkpoint: a file, a sync, a rename), `validation` (statistics of a batch,
or accuracy), `end` (a file of the finished run). `never` lets it end. With several processes it
comes to those of these ranks.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guyot import report
from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.launch import launched
from guyot.app.models import resnet
from guyot.app.running import RunFolder
from guyot.core.errors import GuyotWarning, ParallelError
from guyot.core.storage import files, folders
from guyot.costs import timing
from guyot.gates import calibration

MOMENTS = ("step", "slice", "write", "validation", "end")


class Sometimes(nn.Module):
    """A branch that some steps skip: its parameters are unused then, on some ranks or on all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and random.random() < 0.5:
            return x
        return x + self.linear(x)


def tiny(classes: int = 10) -> nn.Module:
    """Draws from the generators of torch and Python in every step."""
    body = resnet(8, classes, widths=(6, 8, 10), in_channels=1)
    return nn.Sequential(nn.Dropout(0.1), body, Sometimes(classes))


def config(**choices: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "model": "killed:tiny",
        "epochs": 4,
        "batch_size": 32,
        "threads": 1,
        "bf16": False,
        "round_to": 1,
        "checkpoint_every": "9",
        "deterministic": True,
    }
    if choices.get("discovery", True):
        settings["target"] = 0.4
    return RunConfig.of("digits", **(settings | choices))


def dying(call: Callable[..., Any], left: list[int]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **options)

    return wrapped


def arm(moment: str, number: int) -> None:
    left = [number]
    names = ("surgery.operate", "app.running.job", "discovery.checkpoint.checkpointer")
    surgery, job, checkpointer = (sys.modules[f"guyot.{name}"] for name in names)
    places: dict[str, list[tuple[Any, str]]] = {
        "step": [(torch.optim.SGD, "step")],
        "slice": [(surgery, "select"), (surgery, "replace_module")],
        "write": [
            (checkpointer, "write_json"),
            (files, "save_file"),
            (files, "sync"),
            (folders, "sync"),
            (os, "rename"),
            (os, "rmdir"),
        ],
        "validation": [(job, "score"), (calibration, "_call")],
        "end": [(RunFolder, "network"), (RunFolder, "result")],
        "never": [],
    }
    for owner, name in places[moment]:
        setattr(owner, name, dying(getattr(owner, name), left))


def main() -> None:
    folder, moment, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    ranks = [int(rank) for rank in sys.argv[4:]] or [0]
    timing.measure = partial(report.measure, seconds=0.0)
    warnings.simplefilter("ignore", GuyotWarning)
    if launched()[0] in ranks:
        arm(moment, number)
    try:
        if (folder / "config.json").exists():
            running.resume(folder, timeout=60, trust=True)
        else:
            several = launched()[1] == 3  # 32 cannot be split
            running.train(config(batch_size=36 if several else 32), folder, timeout=60)
    except ParallelError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
