"""The job of `guyot train`: the reference loop around a `Discovery`, and what it writes."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from math import ceil
from typing import Any

import torch
from torch import Tensor

from guyot.app.config import RunConfig
from guyot.app.data import Batches, Dataset
from guyot.app.models import count_macs, count_params
from guyot.app.recording import Extent
from guyot.app.running.average import adopt, averaged
from guyot.app.running.course import Course
from guyot.app.running.folder import RunFolder
from guyot.app.running.journal import Journal
from guyot.app.running.setup import (
    check_forward,
    cost_of,
    example,
    network_of,
    optimizer_of,
    recipe_of,
    slimmed,
)
from guyot.app.running.together import (
    SharedStep,
    average_buffers,
    distributed,
    share_buffers,
)
from guyot.app.running.watcher import Progress, Watcher
from guyot.app.training import (
    EpochResult,
    Score,
    Tally,
    make_scheduler,
    score,
    train_epoch,
)
from guyot.core.errors import MisconfiguredError, TooFewStepsError
from guyot.core.parallel import Ranks
from guyot.core.randomness import diverge, seed_all
from guyot.discovery.checkpoint import Checkpointer
from guyot.discovery.discovery import Discovery
from guyot.discovery.distillation import Distillation
from guyot.discovery.family import Family
from guyot.planning.config import DiscoveryConfig
from guyot.report import Network, Outcome, measure_batches, to_dict, widths

_EVALUATION_BATCH = 500
_CALIBRATION_IMAGES = 512


class Job:
    """Everything of a run that exists before its first step."""

    def __init__(self, config: RunConfig, dataset: Dataset, ranks: Ranks) -> None:
        assert dataset.validation is not None
        self.config, self.dataset, self.ranks = config, dataset, ranks
        share: dict[str, Any] = {"share": (ranks.rank, ranks.size), "device": config.device}
        self.recipe = recipe_of(config, dataset.task)
        self.task = self.recipe.task
        self.batches = Batches(
            dataset, dataset.train, config.batch_size, augment=True, seed=config.seed, **share
        )
        self.validation, self.test = (
            Batches(dataset, split, _EVALUATION_BATCH, augment=False, **share)
            for split in (dataset.validation, dataset.test)
        )
        images = example(dataset)
        seed_all(config.seed)  # here, since reading data draws the first time and never again
        model = network_of(config, dataset.outputs, dataset.image_shape)
        check_forward(model, images, config, dataset)
        self.model = model.to(config.device).to(memory_format=torch.channels_last)
        self.full = copy.deepcopy(self.model)
        if config.distill:
            teacher = Distillation(self.model, weight=config.distill)
            self.recipe = dataclasses.replace(self.recipe, teacher=teacher)
        self.example = images.to(config.device)
        self.before = Network(count_macs(self.full, self.example), count_params(self.full))
        self.slim = None
        if config.slim is not None:
            self.slim = slimmed(self.model, self.example, config, config.slim * self.before.macs)
        self.size = (count_macs(self.model, self.example), count_params(self.model))
        self.optimizer = optimizer_of(config, self.model, self.recipe)
        self.scheduler = make_scheduler(self.optimizer, self.recipe, len(self.batches))
        self.trained = distributed(self.model, ranks)
        self.discovery = self._discovery() if config.discovery else None
        self.average = None
        if config.ema is not None:
            self.average = averaged(self.model, config.ema, self.discovery)

    def _discovery(self) -> Discovery:
        config = self.config
        assert config.round_to is not None
        settings = DiscoveryConfig(
            trained=config.weights is not None or config.pretrained,
            estimator=config.estimator,
            seed=config.seed,
            round_to=config.round_to,
            ignore=config.ignore,
            freeze=config.freeze,
            tie=[patterns.split(",") for patterns in config.tie],
        )
        steps = len(self.batches)
        try:
            return Discovery(
                self.trained,
                (self.example,),
                self.optimizer,
                total_steps=config.epochs * steps,
                nu=config.nu,
                target=config.target,
                alpha=cost_of(config),
                beta=config.beta,
                config=settings,
            )
        except TooFewStepsError as error:
            epochs = ceil(error.enough / steps)
            raise MisconfiguredError(
                f"{error} Here an epoch is {steps} steps: give epochs={epochs} or more, or a "
                "smaller batch_size"
            ) from error

    def run(
        self,
        folder: RunFolder,
        watcher: Watcher,
        stop: Callable[[], bool],
        begin: Callable[[Course], None] | None = None,
        family: Family | None = None,
    ) -> Outcome:
        """All epochs, then the figures; or what there is when it is stopped.

        Args:
            folder: to write to.
            watcher: told how it goes.
            stop: whether to stop here.
            begin: takes the course to a checkpoint; None: a new run.
            family: to keep branches for; None: for none.
        """
        size, steps = (self.before.macs, self.before.params), len(self.batches)
        total = self.config.epochs * steps
        extent = Extent(total, size, self.size, self.task.metric)
        journal = Journal(folder, watcher, self.discovery, extent)
        course = self._course(folder, journal, family)
        if begin is not None:
            begin(course)
        agreed = SharedStep(self.ranks, stop)
        watcher.started(self.config, steps, *size)
        if course.step == 0:
            diverge(self.ranks.rank)
            journal.began(steps)
        else:
            watcher.resumed(course.step)
        while course.epoch < self.config.epochs and not agreed():
            result = self._epoch(course, journal, agreed)
            if result.steps < steps:
                break
            number = course.epoch + 1
            journal.progressed(self._progress(number, result, self._validate(number), course.tally))
            course.next_epoch()
        interrupted = None
        if course.epoch < self.config.epochs:
            course.save()
            interrupted = self._phase
        score = self._end(interrupted is not None, course.epoch)
        journal.ended(course.epoch * steps)
        structure = {
            "model": self.config.model,
            "classes": self.dataset.outputs,
            "class_names": list(self.dataset.classes),
            "target": self.dataset.target,
            "mean": self.dataset.mean,
            "std": self.dataset.std,
            **self._structure,
        }
        folder.network(self.model, (self.example,), structure)
        outcome = self._outcome(interrupted, score, course)
        if interrupted is None:
            outcome = self._measured(outcome, watcher, stop)
        folder.result(to_dict(outcome))
        return outcome

    def _course(self, folder: RunFolder, journal: Journal, family: Family | None) -> Course:
        more = {} if self.average is None else {"average": self.average}
        checkpoints = Checkpointer(
            folder.checkpoints,
            self.trained,
            self.discovery,
            keep=max(1, self.config.keep),
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            **more,
        )
        return Course(
            self.config,
            self.batches,
            checkpoints,
            self.model,
            folder,
            journal,
            self.ranks,
            family,
        )

    def _epoch(self, course: Course, journal: Journal, agreed: SharedStep) -> EpochResult:
        def stepped(_: int, loss: Tensor) -> None:
            if self.average is not None:
                self.average.update_parameters(self.model)
            loss, overdue = agreed.step(loss, course.overdue)
            journal.loss(loss)
            journal.stepped(course.step)
            course.stepped(loss, overdue)

        journal.pause()
        result = train_epoch(
            self.trained,
            _until(self.batches.epoch(course.epoch, start=course.tally.steps), agreed),
            self.optimizer,
            self.scheduler,
            self.recipe,
            discovery=self.discovery,
            on_step=stepped,
            tally=course.tally,
        )
        course.settle()
        return result

    @property
    def _phase(self) -> str:
        return "dense" if self.discovery is None else self.discovery.phase.value

    @property
    def _structure(self) -> Mapping[str, Any]:
        if self.discovery is not None:
            return self.discovery.structure
        return {"units": {}, "removed_layers": []} if self.slim is None else self.slim.structure

    @contextlib.contextmanager
    def _evaluation(self, epoch: int) -> Generator[None]:
        """The most probable network, with statistics from batches of training images."""
        share_buffers(self.model, self.ranks)
        if self.discovery is None:
            yield
            return
        with self._autocast(), self.discovery.evaluation(self._calibration(epoch)):
            yield

    def _calibration(self, epoch: int) -> Iterator[Tensor]:
        """Batches of training images for the statistics of BatchNorm."""
        count = -(-_CALIBRATION_IMAGES // self.config.batch_size)
        for images, _ in self.batches.epoch(epoch, stop=count):
            yield images.to(self.config.device)

    def _autocast(self) -> torch.autocast:
        device = torch.device(self.config.device).type
        return torch.autocast(device, torch.bfloat16, enabled=self.recipe.bf16)

    def _validate(self, epoch: int) -> float:
        with self._evaluation(epoch):
            return self._score(self.validation).value

    def _score(self, data: Batches) -> Score:
        """On validation or test data, of which every rank takes its share."""
        bf16, total = self.recipe.bf16, self.ranks.sum
        return score(self.model, data.epoch(0), bf16=bf16, task=self.task, total=total)

    def _progress(self, epoch: int, result: EpochResult, score: float, tally: Tally) -> Progress:
        discovery = self.discovery
        return Progress(
            epoch=epoch,
            step=epoch * len(self.batches),
            loss=result.loss,
            score=result.score,
            validation_score=score,
            macs=self.size[0] if discovery is None else discovery.macs,
            params=self.size[1] if discovery is None else discovery.params,
            undecided=0 if discovery is None else discovery.undecided,
            expected_complexity=1.0 if discovery is None else discovery.expected_complexity,
            phase=self._phase,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            seconds=tally.seconds,
        )

    def _end(self, interrupted: bool, epoch: int) -> float:
        """Make the network a plain one; its score on validation data."""
        if self.discovery is not None and interrupted:
            with self._evaluation(epoch):
                found = self._score(self.validation).value
                statistics = {name: buffer.clone() for name, buffer in self.model.named_buffers()}
            self.model = self.discovery.abandon()
            self.model.load_state_dict(statistics, strict=False)
            return found
        if self.discovery is not None:
            self.model = self.discovery.finish()
        if self.average is not None and not interrupted:
            with self._autocast():
                adopt(self.model, self.average, self._calibration(epoch))
            average_buffers(self.model, self.ranks)
        share_buffers(self.model, self.ranks)
        return self._score(self.validation).value

    def _outcome(self, interrupted: str | None, score: float, course: Course) -> Outcome:
        cut = self.slim if self.discovery is None else self.discovery
        found = () if self.discovery is None else self.discovery.original.layers
        kept = () if cut is None else widths(cut.original, self._structure)
        return Outcome(
            model=self.config.model,
            data=self.config.data,
            image_shape=self.dataset.image_shape,
            before=self.before,
            after=Network(count_macs(self.model, self.example), count_params(self.model)),
            validation_score=score,
            layers=tuple(layer.name for layer in found),
            removed_layers=tuple(self._structure["removed_layers"]),
            widths=kept,
            epochs=course.epoch,
            seconds=course.seconds,
            device=self.config.device,
            threads=self.config.threads or torch.get_num_threads(),
            interrupted=interrupted,
            metric=self.task.metric,
        )

    def _measured(self, outcome: Outcome, watcher: Watcher, stop: Callable[[], bool]) -> Outcome:
        """With the score on test data and, unless somebody wants to stop, latency, on rank 0."""
        if self.ranks.rank == 0:
            watcher.measuring()
        test = self._score(self.test)
        if self.ranks.rank:
            return outcome
        models = {"before": self.full, "after": self.model}
        times = measure_batches(models, self.example, stop=stop)
        before = dataclasses.replace(
            outcome.before,
            latency=times["before"],
            test_score=test.value if self.discovery is None and self.slim is None else None,
        )
        after = dataclasses.replace(outcome.after, latency=times["after"], test_score=test.value)
        return dataclasses.replace(outcome, before=before, after=after, test_images=test.count)


def _until(
    batches: Iterable[tuple[Tensor, Tensor]], stop: Callable[[], bool]
) -> Iterator[tuple[Tensor, Tensor]]:
    """At least one batch; no more once it is time to stop."""
    for batch in batches:
        yield batch
        if stop():
            return
