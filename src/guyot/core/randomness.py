"""The global sources of random numbers: Python's, NumPy's global generator, and torch's."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed all sources."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - other libraries draw from it
    torch.manual_seed(seed)


def diverge(rank: int) -> None:
    """Give a rank that has the random state of rank 0 one of its own; rank 0 keeps its."""
    if rank:
        seed_all(int(torch.randint(2**62, (1,))) + rank)


def random_state() -> dict[str, Any]:
    """Return the state of all sources, in tensors and plain values."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Any) -> None:
    """Restore what `random_state` gave; the states of GPUs where there are as many."""
    random.setstate(state["python"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


@contextlib.contextmanager
def isolated() -> Generator[Callable[[], bool]]:
    """Draw on the CPU independently of what was drawn before, and leave no trace.

    Gives a function that says whether anything was drawn yet.

    Example:
        >>> torch.manual_seed(1).initial_seed()
        1
        >>> with isolated() as drawn:
        ...     print(drawn(), random.random(), drawn())
        False 0.8444218515250481 True
        >>> torch.initial_seed()
        1
    """

    def now() -> tuple[Any, ...]:
        kind, keys, *rest = np.random.get_state()  # noqa: NPY002
        numpys = (kind, np.asarray(keys).tobytes(), *rest)
        return random.getstate(), numpys, torch.get_rng_state().numpy().tobytes()

    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.default_generator.manual_seed(0)  # not those of GPUs, which are not put back
        begin = now()
        try:
            yield lambda: now() != begin
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
