"""How a run looks: a row per epoch, and on a terminal a bar below them."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from guyot.app.config import RunConfig
from guyot.core.metric import ACCURACY

if TYPE_CHECKING:
    from guyot.app.running import Progress as Epoch
    from guyot.surgery.record import Removal

_HEAD = "  epoch    loss   train   valid    MACs  params   open  phase       left"
_NARROW_HEAD = "  epoch    loss   train   valid    MACs  phase       left"


class Display:
    """A `guyot.app.running.Watcher` that prints.

    Rows are plain text, so that they read the same in a file. `train` is the score on training
    batches, `valid` that of the most probable network on held-out images, MACs and parameters are
    shares of the full network, `open` counts the structures that are still undecided.

    Args:
        console: where to.
        began: called when training begins.
        quiet: print nothing during the run.
        narrow: leave out parameters and what is open.
    """

    def __init__(
        self,
        console: Console,
        began: Callable[[], None],
        *,
        quiet: bool,
        narrow: bool = False,
    ) -> None:
        self._console, self._began, self._quiet = console, began, quiet
        self._narrow = narrow
        self._full = (1, 1)
        self._epochs = 0
        self._metric = ACCURACY
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> Display:
        if self._console.is_terminal and not self._quiet:
            self._bar = Progress(
                BarColumn(30),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=True,
            )
            self._task = self._bar.add_task("preparing", total=None)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, text: str) -> None:
        """A line of its own."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False)

    def started(self, config: RunConfig, steps: int, macs: int, params: int) -> None:
        """Title and head of the table."""
        self._began()
        self._full, self._epochs = (macs, params), config.epochs
        self._metric = config.metric
        if self._bar is not None:
            total = steps * config.epochs
            self._bar.update(self._task, total=total, completed=0, description="")
        self.say(
            f"model {config.model}, data {config.data}: {macs / 1e6:.4g} M MACs, "
            f"{params / 1e6:.4g} M parameters"
        )
        head = _NARROW_HEAD if self._narrow else _HEAD
        self.say(f"{_goal(config)}\ntrain and valid: {self._metric.name}\n\n{head}")

    def resumed(self, step: int) -> None:
        """The bar jumps."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        self.say(f"         continuing after step {step}")

    def stepped(self, step: int, loss: float) -> None:
        """The bar moves."""
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"loss {loss:.3f}")

    def removed(self, removal: Removal) -> None:
        """Says which layers went; units show in the columns."""
        for layer in removal.layers:
            self.say(f"         the layer {layer} is gone")

    def branched(self, target: float) -> None:
        """Says which member begins here."""
        self.say(f"         down to {target:.4g}: that member will continue from here")

    def epoch_ended(self, progress: Epoch) -> None:
        """One row."""
        left = progress.seconds * (self._epochs - progress.epoch)
        scores = [
            self._metric.text(value, 3) for value in (progress.score, progress.validation_score)
        ]
        more = f" {progress.params / self._full[1]:>7.1%} {progress.undecided:>6}"
        self.say(
            f"{progress.epoch:>3}/{self._epochs:<3} {progress.loss:>7.4f} {scores[0]:>7}"
            f" {scores[1]:>7} {progress.macs / self._full[0]:>7.1%}"
            f"{'' if self._narrow else more}"
            f"  {progress.phase:<10} {_clock(left):>5}"
        )

    def measuring(self) -> None:
        """The bar waits for tests and latency."""
        if self._bar is not None:
            self._bar.update(self._task, total=None, description="testing and timing")


def _goal(config: RunConfig) -> str:
    from guyot.report import machine_text  # with it comes torch

    precision = "bf16" if config.bf16 else "float32"
    place = f"{machine_text(config.device, config.threads)}, {precision}"
    if config.slim is not None:
        return f"uniformly slimmer network, no discovery; {config.epochs} epochs on {place}"
    if not config.discovery:
        return f"full network, no discovery; {config.epochs} epochs on {place}"
    goal = f"nu {config.nu}" if config.target is None else f"target {config.target:.0%}"
    counted = config.cost or {1.0: "MACs", 0.0: "parameters"}.get(
        config.alpha, f"{config.alpha:g} MACs + {1 - config.alpha:g} parameters"
    )
    if config.target is not None:
        goal += f" of the {counted}"
    return f"{goal}; {config.epochs} epochs on {place}"


def _clock(seconds: float) -> str:
    """Minutes and seconds, or hours and minutes.

    Example:
        >>> _clock(75), _clock(7500)
        ('1:15', '2h05')
    """
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600}h{whole % 3600 // 60:02}"
    return f"{whole // 60}:{whole % 60:02}"
