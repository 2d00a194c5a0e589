"""Two processes that save a sharded run, killed one event later each time, then resumed.

    python sharded_killed.py FOLDER RANK [RANK ...]

SIGKILL comes to these ranks before the first change of the disk in a save, in the next save before
the second, and so on until a save ends. After each, two others resume and save again. Every save
gets a line of JSON: how the processes ended, where the others resumed, and whether their tensors
are those that were saved.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from killed import arm
from sharded import Started, build, data, shard, share

from guyot.core.errors import ParallelError
from guyot.core.storage import verify

FIRST, SECOND = 26, 28
"""Steps of the two checkpoints; gates are on and units went."""


def in_both(store: Path, call: Callable[[], None]) -> list[int]:
    """Call in two forked processes of a group; return how they ended."""
    processes = []
    for rank in range(2):
        if not (process := os.fork()):
            code = 1
            try:
                dist.init_process_group(
                    "gloo",
                    init_method=f"file://{store}",
                    rank=rank,
                    world_size=2,
                    timeout=timedelta(seconds=30),
                )
                call()
                code = 0
            except ParallelError:
                code = 3
            finally:
                os._exit(code)
        processes.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes]


def started(folder: Path) -> Started:
    return Started(folder, shard(build()), shard(build()))


def saving(folder: Path, number: int, ranks: list[int]) -> None:
    """Save at both steps; the tensors of each are written beside the checkpoints."""
    run, batches = started(folder / "run"), [*data(SECOND)]
    for begin, end in ((0, FIRST), (FIRST, SECOND)):
        run.train(batches[begin:end], share())
        tensors = run.states()
        if dist.get_rank() == 0:
            torch.save(tensors, folder / f"{end}.pt")
        if end == SECOND and dist.get_rank() in ranks:
            arm("write", number)
        run.checkpoints.save(end, {"step": end})


def resuming(folder: Path) -> None:
    """Resume, compare and save once more."""
    run = started(folder / "run")
    position = run.checkpoints.resume()
    assert position is not None
    step, found = position["step"], run.states()
    saved = torch.load(folder / f"{step}.pt", weights_only=True)
    equal = found.keys() == saved.keys() and all(
        torch.equal(value, saved[name]) for name, value in found.items()
    )
    path = run.checkpoints.save(step + 1, {"step": step + 1})
    dist.barrier()
    if dist.get_rank() == 0:
        verify(path, [file.name for file in path.iterdir() if file.name != "SHA256SUMS"])
        left = sorted(file.name for file in (folder / "run").iterdir())
        result = {"step": step, "equal": equal, "left": left}
        (folder / "resumed.json").write_text(json.dumps(result))


def killed_at(folder: Path, number: int, ranks: list[int]) -> bool:
    """Save until SIGKILL comes to these ranks, resume, write a line; True if none was killed."""
    folder.mkdir()
    saved = in_both(folder / "one", lambda: saving(folder, number, ranks))
    resumed = in_both(folder / "two", lambda: resuming(folder))
    found = json.loads((folder / "resumed.json").read_text())
    sys.stdout.write(json.dumps({"saved": saved, "resumed": resumed} | found) + "\n")
    return saved == [0, 0]


def main() -> None:
    folder, ranks = Path(sys.argv[1]), [int(rank) for rank in sys.argv[2:]]
    assert any(killed_at(folder / str(number), number, ranks) for number in range(1, 100))


if __name__ == "__main__":
    main()
