"""`Recorder`: the report of the command line for a loop of one's own."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from guyot.app.recording.environment import environment
from guyot.app.recording.lines import Extent, Lines
from guyot.core.condition import Condition, is_number, require
from guyot.core.errors import SequenceError, StorageError
from guyot.core.storage import replaced
from guyot.core.trees import finite
from guyot.costs.complexity import Cost
from guyot.discovery.discovery import Discovery
from guyot.report.describe import widths
from guyot.report.history import History
from guyot.report.outcome import Network, Outcome, to_dict
from guyot.report.page.build import render

_DISCOVERY = Condition(
    lambda discovery: isinstance(discovery, Discovery), "give the Discovery that trains"
)
_EPOCH = Condition(
    lambda steps: is_number(steps) and steps >= 1,
    "give the number of optimiser steps of an epoch, or nothing",
)
_LOSS = Condition(
    lambda loss: isinstance(loss, Real) or (isinstance(loss, Tensor) and loss.numel() == 1),
    "give the mean loss of the batch, one number",
)
_SHARE = Condition(
    lambda share: is_number(share) and 0 <= share <= 1, "give a share from 0 to 1, not percent"
)


class Recorder:
    """Record a discovery in a loop of your own, for the page of `guyot report`.

    Two lines are enough. Make it before the loop; it is told of every `discovery.step()`:

        recorder = guyot.Recorder(discovery)
        ...  # the loop
        recorder.report("page.html")

    The page has curves of losses and accuracies if `note` is given them. The recorder keeps some
    hundreds of lines in memory. Give it to a `Checkpointer` as a part, and a run that is resumed
    has its whole course in the report.

    Args:
        discovery: that trains, before its first step.
        model: name of the network; None: that of its class.
        data: name of the data; None: it is not named.
        steps_per_epoch: None: curves run over steps instead of epochs.

    Raises:
        SequenceError: the discovery has ended.
        MisconfiguredError: `steps_per_epoch` is no number of steps.
    """

    def __init__(
        self,
        discovery: Discovery,
        *,
        model: str | None = None,
        data: str | None = None,
        steps_per_epoch: int | None = None,
    ) -> None:
        require("discovery", discovery, _DISCOVERY)
        if discovery.finished:
            raise SequenceError(
                "Recorder(discovery) after finish(): make it before the loop, right after the "
                "Discovery"
            )
        if steps_per_epoch is not None:
            require("steps_per_epoch", steps_per_epoch, _EPOCH)
        self._discovery, self._per_epoch = discovery, steps_per_epoch
        self._config = self._settings(model or type(discovery.model).__name__, data)
        self._environment = environment()
        self._lines: list[dict[str, Any]] = []
        size, total = (discovery.full_macs, discovery.full_params), discovery.phases.total_steps
        self._recorded = Lines(self._write, discovery, Extent(total, size, size))
        self._recorded.began(steps_per_epoch)
        self._before, self._started = 0.0, time.perf_counter()
        discovery.listen(self._stepped)

    def _settings(self, model: str, data: str | None) -> dict[str, Any]:
        """Return what the page says of the settings, with the names of a run's `config.json`."""
        discovery, dials = self._discovery, self._discovery.dials
        total, rounded = discovery.phases.total_steps, discovery.config.round_to
        own = isinstance(dials.alpha, Cost)
        epochs = None if self._per_epoch is None else math.ceil(total / self._per_epoch)
        return {
            "model": model,
            "data": data,
            "discovery": True,
            "nu": dials.nu,
            "target": dials.target,
            "target_ms": None,
            "alpha": None if own else dials.alpha,
            "cost": "the given cost" if own else None,
            "beta": dials.beta,
            "epochs": epochs,
            "seed": discovery.config.seed,
            "round_to": rounded if isinstance(rounded, int) else None,
            "device": next(discovery.model.parameters()).device.type,
            "threads": torch.get_num_threads(),
            "bf16": None,
        }

    def _write(self, event: str, values: Mapping[str, Any]) -> None:
        self._lines.append(finite({"event": event, **values}))

    def _stepped(self) -> None:
        self._recorded.stepped(self._discovery.steps_done)

    def note(
        self,
        *,
        loss: float | Tensor | None = None,
        accuracy: float | None = None,
        validation_accuracy: float | None = None,
    ) -> None:
        """Take figures that the discovery does not know; all are optional.

        Args:
            loss: of this step's batch, nats; give it before `discovery.step()`. The page shows
                means over some steps. A tensor is not read at once, so a GPU need not wait.
            accuracy: on training batches, in [0, 1].
            validation_accuracy: of the most probable network, in [0, 1].

        Raises:
            MisconfiguredError: an accuracy is not in [0, 1], such as one in percent.
        """
        if loss is not None:
            require("loss", loss, _LOSS)
            self._recorded.loss(loss.detach() if isinstance(loss, Tensor) else loss)
        _check_share("accuracy", accuracy)
        _check_share("validation_accuracy", validation_accuracy)
        if accuracy is not None or validation_accuracy is not None:
            step, discovery = self._discovery.steps_done, self._discovery
            figures = {
                "epoch": None if self._per_epoch is None else step // self._per_epoch,
                "step": step,
                "loss": None,
                "score": accuracy,
                "validation_score": validation_accuracy,
                "macs": discovery.macs,
                "params": discovery.params,
                "undecided": discovery.undecided,
                "expected_complexity": discovery.expected_complexity,
                "phase": discovery.phase.value,
                "lr": None,
                "seconds": None,
            }
            self._recorded.epoch(figures)

    def report(
        self, path: str | Path, *, test_accuracy: float | None = None, test_samples: int = 0
    ) -> Path:
        """Write the page; during the run it shows how far the run is.

        Args:
            path: of the HTML file; what is there is replaced.
            test_accuracy: of the network that came out, in [0, 1].
            test_samples: how many it counts, for its interval.

        Returns:
            The path.

        Raises:
            MisconfiguredError: a package of the extra `report` is missing, or a figure is wrong.
            StorageError: the file cannot be written.
        """
        _check_share("test_accuracy", test_accuracy)
        page, file = render([self._history(test_accuracy, test_samples)]), Path(path)
        if not file.parent.is_dir():
            raise StorageError(f"path={str(path)!r}: there is no folder {str(file.parent)!r}")
        replaced(file, page)
        return file

    def _history(self, test_accuracy: float | None, test_samples: int) -> History:
        self._recorded.ended(self._discovery.steps_done)
        result = self._result(test_accuracy, test_samples) if self._discovery.finished else None
        name = self._config["model"]
        network, lines = self._lines[0], tuple(self._lines)
        return History(name, self._config, network, lines, result, environment=self._environment)

    def _result(self, test_accuracy: float | None, test_samples: int) -> dict[str, Any]:
        discovery, structure = self._discovery, self._discovery.structure
        known = [line["validation_accuracy"] for line in self._lines if line["event"] == "epoch"]
        outcome = Outcome(
            model=self._config["model"],
            data=self._config["data"] or "",
            image_shape=(),
            before=Network(discovery.full_macs, discovery.full_params),
            after=Network(discovery.macs, discovery.params, test_score=test_accuracy),
            validation_score=next((v for v in reversed(known) if v is not None), None),
            layers=tuple(layer.name for layer in discovery.original.layers),
            removed_layers=tuple(structure["removed_layers"]),
            widths=widths(discovery.original, structure),
            epochs=discovery.steps_done // (self._per_epoch or discovery.phases.total_steps),
            seconds=self._seconds,
            device=self._config["device"],
            threads=self._config["threads"],
            test_images=test_samples,
        )
        return to_dict(outcome)

    @property
    def _seconds(self) -> float:
        return self._before + time.perf_counter() - self._started

    def state_dict(self) -> dict[str, Any]:
        """Return what was recorded: plain values for a checkpoint."""
        recorded = self._recorded.state_dict()
        return {"lines": list(self._lines), "recorded": recorded, "seconds": self._seconds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue a record after the lines that were there when `state_dict` was called."""
        self._lines[:] = state["lines"]
        self._recorded.load_state_dict(state["recorded"])
        self._before, self._started = float(state["seconds"]), time.perf_counter()


def _check_share(name: str, value: float | None) -> None:
    if value is not None:
        require(name, value, _SHARE)
