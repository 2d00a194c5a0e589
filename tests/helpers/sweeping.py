"""One machine of a sweep whose trials take a moment and train nothing.

    python sweeping.py FOLDER STORAGE TARGET,TARGET,...

A trial writes into FOLDER/log when it begins and ends, which machine it was on, and what a finished
run leaves. Signs of life come every second, and three seconds without one are death.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from guyot.app.config import RunConfig
from guyot.app.sweep import Sweep, run

crew: Any = sys.modules["guyot.app.sweep.crew"]
study: Any = sys.modules["guyot.app.sweep.study"]

SECONDS = 2.0


class Thread(threading.Thread):
    """As a process, which would spend its time on importing torch; it dies with the machine."""

    exitcode = 0

    def __init__(self, target: Callable[..., None], args: Any) -> None:
        super().__init__(target=target, args=args, daemon=True)


def note(folder: Path, *words: object) -> None:
    with (folder.parent.parent / "log").open("a") as log:
        log.write(f"{' '.join(map(str, words))}\n")


def trial(settings: dict[str, Any], place: str, parent: int) -> None:
    folder = Path(place)
    note(folder, "begins", folder.name, os.getpid())
    time.sleep(SECONDS)
    note(folder, "ends", folder.name, os.getpid())


def main() -> None:
    folder, storage, targets = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
    study.HEARTBEAT, study.GRACE = 1, 3
    crew.multiprocessing = SimpleNamespace(get_context=lambda _: SimpleNamespace(Process=Thread))
    crew.run_trial = trial
    crew.finished_result = lambda place: {"accuracy": len(place.name), "macs": 1}
    crew.objective = lambda result, name: float(result[name])
    base = RunConfig.of("digits", epochs=5)
    sweep = Sweep(base, {"target": [float(t) for t in targets]}, objectives=("accuracy", "macs"))
    found = run(sweep, folder, storage=storage)
    sys.stdout.write(f"{len(found['trials'])} {len(found['failed'])}\n")


if __name__ == "__main__":
    main()
