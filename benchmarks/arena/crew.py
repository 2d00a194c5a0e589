"""Many runs in one or several processes, until all are done or the time is over."""

import json
import os
import shlex
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch

from arena.job import Json, Run
from arena.methods import methods
from arena.task import Task
from arena.training import dense_weights, train


@dataclass(frozen=True)
class Orders:
    """What all runs of a call share; after ``minutes`` no run continues."""

    results: Path
    weights: Path
    device: str = "cpu"
    threads: int = 1
    minutes: float | None = None
    processes: int = 1
    guyot: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    data_dir: str | None = None
    cache_dir: str | None = None


def path_of(run: Run, results: Path) -> Path:
    """Where the result of a run is."""
    return results / f"{run.name}.json"


def one(run: Run, task_of: Callable[[str, Orders], Task], orders: Orders) -> float:
    """Train one run and write its result; how many seconds it took."""
    torch.set_num_threads(orders.threads)
    started = time.perf_counter()
    task = task_of(run.task, orders)
    result = train(task, run, orders.results, orders.weights, orders.device, orders.guyot)
    result["command"] = command(run)
    write(result, path_of(run, orders.results))
    return time.perf_counter() - started


def command(run: Run) -> str:
    """The command line that trains a run."""
    widths = "rounded" if run.rounded else "exact"
    options = f"--tasks {run.task} --starts {run.start} --methods {run.method} --seeds {run.seed}"
    return shlex.join(["python", "benchmarks/arena.py", *options.split(), "--widths", widths])


def write(result: Json, path: Path) -> None:
    """A result file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(result) + "\n")
    part.replace(path)


def ready(run: Run, task: Task, orders: Orders) -> bool:
    """Whether the runs that a run builds on are done."""
    if run.start != "scratch" and not dense_weights(task, run, orders.weights).exists():
        return False
    if run.method.endswith("-rebuilt"):
        source = run.method.removesuffix("-rebuilt")
        other = Run(run.task, run.start, source, run.target, run.rounded, run.seed)
        return path_of(other, orders.results).exists()
    return True


class Crew:
    """Keeps ``orders.processes`` runs going.

    A run that fails is named and left out; the others continue. On SIGTERM and Ctrl-C the running
    ones are lost and nothing else.
    """

    def __init__(self, orders: Orders, task_of: Callable[[str, Orders], Task]) -> None:
        self.orders, self.task_of = orders, task_of
        self.failed: list[str] = []
        self.times: dict[tuple[str, str], list[float]] = defaultdict(list)
        self.done = 0
        self.started = time.monotonic()

    @property
    def left(self) -> float:
        """Seconds until the time is over."""
        if self.orders.minutes is None:
            return float("inf")
        return 60 * self.orders.minutes - (time.monotonic() - self.started)

    def carry_out(self, runs: Sequence[Run]) -> None:
        """Train the runs that have no result, in their order where what they need is there."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
        queue = [run for run in runs if not self._done(run)]
        print(f"{len(runs)} runs, {len(runs) - len(queue)} have a result", flush=True)
        pool = ProcessPoolExecutor(self.orders.processes, mp_context=get_context("spawn"))
        going: dict[Future[float], Run] = {}
        try:
            while queue or going:
                while len(going) < self.orders.processes and (run := self._next(queue)):
                    going[pool.submit(one, run, self.task_of, self.orders)] = run
                if not going:
                    break
                patience = None if self.left == float("inf") else max(self.left, 0)
                over, _ = wait(going, timeout=patience, return_when=FIRST_COMPLETED)
                if not over:
                    print(f"time is over; given up: {[r.name for r in going.values()]}", flush=True)
                    break
                for future in over:
                    self._note(going.pop(future), future, len(queue) + len(going))
        finally:
            for process in list((pool._processes or {}).values()):
                process.kill()  # a run that is not over leaves nothing behind
            pool.shutdown(wait=False, cancel_futures=True)
        for run in queue:
            if not path_of(run, self.orders.results).exists():
                print(f"open: {run.name}", flush=True)

    def _done(self, run: Run) -> bool:
        """Whether there is a result, and of this recipe."""
        path = path_of(run, self.orders.results)
        if not path.exists():
            return False
        found = json.loads(path.read_text())
        task = self.task_of(run.task, self.orders)
        method = methods(task, run.start, self.orders.guyot)[run.method]
        for name, present in (
            ("recipe", asdict(task.recipe)),
            ("settings", getattr(method, "settings", None)),
        ):
            if found[name] != json.loads(json.dumps(present)):
                sys.exit(
                    f"{path} has the {name} {found[name]}, but it would be {present} now: move the "
                    "file away, or give another folder with --results"
                )
        return True

    def _next(self, queue: list[Run]) -> Run | None:
        """Take the first run that can begin and, as far as is known, end in time."""
        for run in list(queue):
            if path_of(run, self.orders.results).exists():
                queue.remove(run)  # another call has done it meanwhile
                continue
            known = self.times.get((run.task, run.start), [])
            if self.left < (median(known) if known else 0):
                continue
            if ready(run, self.task_of(run.task, self.orders), self.orders):
                queue.remove(run)
                return run
        return None

    def _note(self, run: Run, future: Future[float], left: int) -> None:
        """Say what came of a run."""
        try:
            seconds = future.result()
        except BrokenProcessPool:
            raise
        except Exception as error:  # noqa: BLE001  (whatever a rival's library raises)
            self.failed.append(run.name)
            print(f"FAILED {run.name}: {type(error).__name__}: {error}", flush=True)
            return
        self.times[run.task, run.start].append(seconds)
        self.done += 1
        found = json.loads(path_of(run, self.orders.results).read_text())
        passed = (time.monotonic() - self.started) / 60
        print(
            f"[{passed:.1f} min, {self.done} done, {left} left] {run.name}: "
            f"MACs {found['share']:.3f}, validation loss {found['validation']['loss']:.4f}, "
            f"{seconds:.0f} s",
            flush=True,
        )
