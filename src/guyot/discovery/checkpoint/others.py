"""What differs between ranks: random numbers, the place in the data, the state of the loader.

A checkpoint holds everything of rank 0, and of every other rank what differs from that.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from guyot.core.parallel import Ranks
from guyot.core.storage import packed, unpacked
from guyot.core.warning import warn


def collected(ranks: Ranks, known: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return on rank 0 what differs from it on rank 1, 2, ...; nothing on the others; collective.

    Only hashes go to all ranks, and only what differs goes to rank 0.

    Args:
        ranks: that write a checkpoint together.
        known: trees by name, the same names on all ranks.
    """
    if ranks.size == 1:
        return []
    ranks.agree("the parts of a checkpoint", *known)
    with ranks.together():
        numbers = [_digest(packed(*item)) for item in known.items()]
    digests = torch.tensor(numbers, device=ranks.device)
    same = (digests == ranks.first(digests)).tolist()
    differing = {name: known[name] for name, alike in zip(known, same, strict=True) if not alike}
    return [unpacked(data) for data in ranks.gather(packed("ranks", differing))[1:]]


def own(others: Sequence[Mapping[str, Any]], ranks: Ranks) -> Mapping[str, Any] | None:
    """Return what differed on this rank from rank 0; None if there were more or fewer ranks."""
    if len(others) + 1 != ranks.size:
        return None
    return others[ranks.rank - 1] if ranks.rank else {}


def misfit_of_ranks(others: Any, names: Sequence[str]) -> str | None:
    """Say in what the entry `ranks` of a checkpoint is not what `collected` gives; None if it is.

    Args:
        others: the entry.
        names: of what ranks may know.
    """
    if not isinstance(others, list):
        return f"ranks is a {type(others).__name__}, expected a list"
    for number, known in enumerate(others):
        if not isinstance(known, Mapping):
            return f"ranks[{number}] is a {type(known).__name__}, expected a mapping"
        for name, value in known.items():
            if name not in names:
                return f"ranks[{number}].{name} is unexpected"
            if not isinstance(value, Mapping) and not name.startswith("parts."):
                return f"ranks[{number}].{name} is a {type(value).__name__}, expected a mapping"
    return None


def warn_number(file: Path, wrote: int, here: int) -> None:
    """Warn that the number of ranks is another one."""
    warn(
        f"{file}: {wrote} process{'es' if wrote > 1 else ''} wrote it and {here} "
        f"{'resume' if here > 1 else 'resumes'}, but with other random numbers: not bit for bit as "
        f"{wrote} would",
    )


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big", signed=True)
