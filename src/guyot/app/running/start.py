"""Runs that begin or continue, in one process or in several that a launcher started."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

import torch

from guyot.app.config import TIMEOUT, RunConfig
from guyot.app.launch import local_device, processes
from guyot.app.recording import environment
from guyot.app.running.course import Course
from guyot.app.running.folder import recorded_config
from guyot.app.running.job import Job
from guyot.app.running.setup import load_data
from guyot.app.running.together import open_folder, resolve_together, resuming
from guyot.app.running.watcher import Silent, Watcher
from guyot.core.errors import MisconfiguredError
from guyot.discovery.family import Family
from guyot.report import Outcome


def train(
    config: RunConfig,
    out: str | Path,
    watcher: Watcher | None = None,
    stop: Callable[[], bool] = lambda: False,
    *,
    tensorboard: bool = False,
    timeout: float = TIMEOUT,
    family: Family | None = None,
) -> Outcome:
    """Train as configured and write the run folder.

    Args:
        config: what to do.
        out: the folder; does not exist or is empty.
        watcher: told how it goes.
        stop: asked after every optimiser step; True ends training there. What is undecided then
            is not settled: the network keeps the sizes it has, weights are 0 where the most
            probable network has none, and neither test accuracy nor latency is measured. A
            checkpoint from before that is left, so the run can be resumed.
        tensorboard: write an event file for TensorBoard, too, in the folder's `tensorboard`.
        timeout: seconds for which several processes wait for one another.
        family: keeps the beginnings of its other members; this is the run with the smallest target.

    Raises:
        GuyotError: what the user can put right.
    """
    if config.targets:
        raise MisconfiguredError(
            f"targets={','.join(f'{target:g}' for target in config.targets)} are those of several "
            "runs: FamilyRuns trains them"
        )
    path, then = Path(out), resuming(out)
    device = local_device(config.device)
    with _settings_restored(), processes(device, timeout, then) as ranks:
        with ranks.together():
            folder = open_folder(ranks, path, tensorboard)
        config = resolve_together(config, ranks)
        with ranks.together():
            dataset = load_data(config)
        job = Job(config, dataset, ranks)
        with folder.locked(), contextlib.closing(folder):
            folder.begin(config, environment())
            return job.run(folder, watcher or Silent(), stop, family=family)


def resume(
    folder: str | Path,
    watcher: Watcher | None = None,
    stop: Callable[[], bool] = lambda: False,
    *,
    timeout: float = TIMEOUT,
    family: Family | None = None,
    trust: bool = False,
) -> Outcome:
    """Continue a run from its latest checkpoint, or from its start if there is none yet.

    On the same machine, with as many threads and the same versions, the end is that of the run that
    was never stopped, bit for bit.

    Args:
        folder: of the run, or one of its checkpoints.
        watcher: told how it goes.
        stop: as for `train`.
        timeout: as for `train`; the number of processes need not be what it was,
            but must divide `batch_size`.
        family: as for `train`.
        trust: call a function that `config.json` names as the model.

    Raises:
        GuyotError: what the user can put right.
    """
    path, checkpoint = _run_of(Path(folder))
    then = resuming(path)
    tensorboard = (path / "tensorboard").is_dir()
    device = local_device("auto")
    with _settings_restored(), processes(device, timeout, then) as ranks:
        with ranks.together():
            run = open_folder(ranks, path, tensorboard, resumed=True)
            config = recorded_config(path, trust)
        with run.locked(), contextlib.closing(run):
            if not config.keep:
                raise MisconfiguredError(
                    f"{path} was made with keep=0, so there are no checkpoints to resume: start "
                    "a new run with its config.json"
                )
            config = resolve_together(config, ranks)
            job = Job(config, load_data(config), ranks)

            def begin(course: Course) -> None:
                with ranks.together():
                    course.resume(checkpoint)

            return job.run(run, watcher or Silent(), stop, begin, family)


def _run_of(path: Path) -> tuple[Path, Path | None]:
    """The run folder, and the checkpoint if one of them was given."""
    if (path / "manifest.json").is_file() and path.parent.name == "checkpoints":
        return path.parent.parent, path
    return path, None


@contextlib.contextmanager
def _settings_restored() -> Generator[None]:
    """Global settings are as before, whatever a run needs."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        with warnings.catch_warnings():
            # of DistributedDataParallel, about dims of one entry in the channels_last layout
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
