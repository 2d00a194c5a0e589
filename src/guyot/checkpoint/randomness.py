"""The global sources of random numbers: Python's, NumPy's and torch's."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guyot.checkpoint.parts import UNFIT
from guyot.errors import GuyotWarning, MisconfiguredError


def random_state() -> dict[str, Any]:
    """Of Python, NumPy's global generator, and torch."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - other libraries draw from it
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Any, file: Path) -> None:
    """Restore what `random_state` gave."""
    try:
        random.setstate(state["python"])
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
        torch.set_rng_state(state["torch"])
        if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(state["cuda"])
        elif len(state["cuda"]) != torch.cuda.device_count():
            warnings.warn(
                f"{file}: it holds the random states of {len(state['cuda'])} GPUs and "
                f"{torch.cuda.device_count()} are here; theirs start anew",
                GuyotWarning,
                stacklevel=3,
            )
    except (*UNFIT, RuntimeError) as error:
        raise MisconfiguredError(f"{file}: random does not fit: {error}") from error


def diverge(rank: int) -> None:
    """Give a rank that has the random state of rank 0 one of its own; rank 0 keeps its."""
    if rank:
        seed = int(torch.randint(2**62, (1,))) + rank
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
