"""The trade-off curve: many runs, one after the other or side by side, and which of them win.

A *trial* is a `RunConfig`; its name is a hash of that, and its folder under `trials/` is the run
folder of a normal run. What was asked for and what came out is an Optuna study in a database, by
default SQLite in the sweep's folder; with the database of a server several machines share a sweep.
A finished trial is never repeated. A trial whose sweep died is queued again, as Optuna's heartbeat
tells, and continues from its latest checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from guyot.app.settings import AT_LEAST_1
from guyot.app.sweep.crew import Crew
from guyot.app.sweep.plan import Sweep, objective, trial_name
from guyot.app.sweep.study import enqueue, experimental, open_study, outcome
from guyot.core.condition import require

__all__ = ["Sweep", "objective", "outcome", "run", "trial_name"]


def run(
    sweep: Sweep,
    out: str | Path,
    *,
    workers: int = 1,
    storage: str | None = None,
    told: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Run what is left of a sweep, and wait for what other machines run of it.

    Ctrl-C stops all trials after their step; they continue when the sweep is called again.

    Args:
        sweep: what to try.
        out: folder of the sweep, new or of this very sweep.
        workers: trials at a time, each in a process of its own.
        storage: an Optuna storage URL, for several machines; None: SQLite in `out`.
        told: gets a line for every trial that begins or ends; called by several threads.

    Returns:
        Plain data: objectives, trials, and which of them no other beats, see `outcome`.

    Raises:
        MisconfiguredError: Optuna is missing, the folder is of another sweep, or `workers` below 1.
        KeyboardInterrupt: Ctrl-C, once all trials have stopped.
    """
    require("workers", workers, AT_LEAST_1)
    folder = Path(out)
    study = open_study(sweep, folder, storage)
    if sweep.grid:
        enqueue(study, sweep)
    crew = Crew(sweep, study, folder, told)
    with experimental(), ThreadPoolExecutor(workers) as pool:
        try:
            for worker in as_completed([pool.submit(crew.work) for _ in range(workers)]):
                worker.result()
        except BaseException:
            crew.stop()
            raise
    return outcome(study, sweep, folder)
