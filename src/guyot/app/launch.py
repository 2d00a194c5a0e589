"""Processes that a launcher (torchrun, `accelerate launch`) started to train one model together.

A launcher says in environment variables which rank a process has and where the others are. Beside
the collectives of `torch.distributed` every process counts its heartbeats in the launcher's store,
so that those left over when a collective fails can say who does not live any more.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Generator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from guyot.app.config import TIMEOUT
from guyot.core.errors import MisconfiguredError, ParallelError
from guyot.core.parallel.ranks import Ranks, first_sentence, lost, named

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launched() -> tuple[int, int]:
    """Rank and number of processes as the launcher set them; (0, 1) without one."""
    rank, size = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    try:
        return int(rank), int(size)
    except ValueError as error:
        raise MisconfiguredError(
            f"RANK={rank!r} and WORLD_SIZE={size!r} in the environment are no numbers: start "
            "processes by torchrun or accelerate launch"
        ) from error


def local_device(name: str) -> str:
    """The device of this process among those of its machine: "cuda" is "cuda:LOCAL_RANK".

    Args:
        name: "cpu", "cuda", "cuda:1", ...; "auto": a GPU if there is one.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and launched()[1] > 1:
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    return name


@contextlib.contextmanager
def processes(device: str, timeout: float = TIMEOUT, then: str = "") -> Generator[Ranks]:
    """The ranks that were launched together; this process alone if there was no launcher.

    An existing default process group is used as it is and stays.

    Args:
        device: this process's; "cpu" communicates by gloo, "cuda:N" by nccl.
        timeout: seconds to wait for the others in one collective.
        then: what to do after another process was lost, for the error.

    Raises:
        ParallelError: another process ended, hangs, or never began; says which where it can.
    """
    rank, size = launched()
    if size == 1:
        yield Ranks()
        return
    if dist.is_initialized():
        yield Ranks(dist.group.WORLD, device)
        return
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise MisconfiguredError(
            f"WORLD_SIZE={size} in the environment, but {missing[0]} is missing: start processes "
            "by torchrun or accelerate launch"
        )
    watch = _joined(rank, size, device, timeout)
    with _told_to_end(watch):
        try:
            yield Ranks(dist.group.WORLD, device)
        except (_Told, RuntimeError) as error:
            cause = error.__cause__ if isinstance(error, ParallelError) else error
            if cause is None or not (isinstance(cause, _Told) or lost(cause)):
                raise
            why = f"rank {rank} of {size} ends: {watch.silent()} ({first_sentence(cause)})"
            raise ParallelError(f"{why}; {then}" if then else why) from error
        finally:
            watch.stop()
    dist.destroy_process_group()


class _Told(BaseException):
    """SIGTERM came."""


def _joined(rank: int, size: int, device: str, timeout: float) -> _Watch:
    """Join the process group."""
    backend = "nccl" if device.startswith("cuda") else "gloo"
    limit = timedelta(seconds=timeout)
    try:
        if backend == "nccl":
            torch.cuda.set_device(device)
        store, *_ = next(rendezvous("env://", rank, size, timeout=limit))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    except (RuntimeError, ValueError) as error:
        raise ParallelError(
            f"rank {rank} of {size} found no others within {timeout:g} s: {first_sentence(error)}; "
            "look whether all processes were started, with the same MASTER_ADDR and MASTER_PORT"
        ) from error
    watch = _Watch(PrefixStore("guyot", store), rank, size)
    dist.barrier()
    return watch


class _Watch:
    """Counts this process's heartbeats in the store, and reads those of the others.

    Args:
        store: that all processes reach.
        rank: this process.
        size: how many there are.

    Attributes:
        calling: whether the others are being counted.
    """

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self._store, self._rank, self._size = store, rank, size
        self.period = max(0.5, size / 200)  # 200 beats a second for the store
        self.calling = False
        self._ended = threading.Event()
        self._beat(0)
        threading.Thread(target=self._run, name="guyot-heartbeat", daemon=True).start()

    def _beat(self, count: int) -> None:
        self._store.set(str(self._rank), str(count))

    def _run(self) -> None:
        count = 0
        with contextlib.suppress(RuntimeError):  # the store is gone
            while not self._ended.wait(self.period):
                count += 1
                self._beat(count)

    def stop(self) -> None:
        """No more beats."""
        self._ended.set()

    def _counts(self) -> list[bytes]:
        return [self._store.get(str(rank)) for rank in range(self._size)]

    def silent(self) -> str:
        """Say which processes do not live any more; it takes some periods."""
        self.calling = True
        try:
            before = self._counts()
            time.sleep(4 * self.period)
            after = self._counts()
        except RuntimeError:
            return "the process that holds the store does not live any more"
        pairs = zip(before, after, strict=True)
        still = [rank for rank, (old, new) in enumerate(pairs) if old == new]
        if not still:
            return "all processes live, but one did not answer"
        return f"{named(still)} {'does' if len(still) == 1 else 'do'} not live any more"


@contextlib.contextmanager
def _told_to_end(watch: _Watch) -> Generator[None]:
    """A launcher sends SIGTERM to those that are left when a process ends; say so."""
    handled = callable(signal.getsignal(signal.SIGTERM))  # by a program that saves before it ends
    if handled or threading.current_thread() is not threading.main_thread():
        yield
        return

    def tell(*_: object) -> None:
        if not watch.calling:
            raise _Told("SIGTERM, which launchers send when another process has ended")

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
