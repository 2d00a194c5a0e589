"""The processes that train one model together, and what they tell each other."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Generator

import torch
import torch.distributed as dist
from torch import Tensor

from guyot.core.errors import GuyotError, ParallelError

_GOLDEN = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: multiples of it are spread evenly."""

_LOST = ("gloo", "nccl", "connection", "socket", "broken pipe", "timed out")
"""Words in the errors of a collective whose other side is gone."""


class Ranks:
    """The ranks of a process group. Without a group there is one, and nothing is ever sent.

    All methods but `stream` are collective: every rank must call them in the same order.

    Args:
        group: of `torch.distributed`; None: this process alone.
        device: on which the group communicates.

    Attributes:
        rank: number of this process, from 0.
        size: how many there are.
        device: on which they communicate.
    """

    def __init__(
        self, group: dist.ProcessGroup | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self._group, self.device = group, device
        self.rank = 0 if group is None else group.rank()
        self.size = 1 if group is None else group.size()

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over the ranks: same shape, and the same bits on every rank."""
        return values if self.size == 1 else self.sum(values).div_(self.size)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the ranks: same shape, and the same bits on every rank."""
        if self.size == 1:
            return values
        total = values.contiguous().clone()
        with self._talking():
            dist.all_reduce(total, group=self._group)
        return total

    def first(self, values: Tensor) -> Tensor:
        """Return what the tensor is on rank 0."""
        if self.size == 1:
            return values
        copy = values.contiguous().clone()
        with self._talking():
            dist.broadcast(copy, group=self._group, group_src=0)
        return copy

    def any(self, flag: bool) -> bool:
        """Return whether a flag is set on any rank."""
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)))

    def told(self, flag: bool) -> bool:
        """Return whether a flag is set on rank 0."""
        return bool(self.first(torch.tensor([float(flag)], device=self.device)))

    def gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of every rank, on rank 0; nothing on the others."""
        if self.size == 1:
            return [data]
        lengths = self._all(torch.tensor([len(data)], device=self.device))
        mine = torch.zeros(max(lengths), dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        mine = mine.to(self.device)
        found = None if self.rank else [torch.empty_like(mine) for _ in range(self.size)]
        with self._talking():
            dist.gather(mine, found, group=self._group, group_dst=0)
        pairs = zip(found or [], lengths, strict=False)
        return [padded[:length].cpu().numpy().tobytes() for padded, length in pairs]

    def _all(self, number: Tensor) -> list[int]:
        """Return an integer of every rank, on every rank."""
        found = [torch.empty_like(number) for _ in range(self.size)]
        with self._talking():
            dist.all_gather(found, number, group=self._group)
        return [int(value) for value in found]

    @contextlib.contextmanager
    def together(self, otherwise: GuyotError | None = None) -> Generator[None]:
        """Let what follows the body happen on all ranks or on none.

        Args:
            otherwise: what is raised here when the body raised a `GuyotError` on another rank;
                None: a `ParallelError`.

        Raises:
            GuyotError: `otherwise`.
        """
        error: GuyotError | None = None
        try:
            yield
        except GuyotError as found:
            error = found
        failed = self.any(error is not None)
        if error is not None:
            raise error
        if failed:
            raise otherwise or ParallelError(
                f"rank {self.rank} of {self.size} ends because another one could not begin: the "
                "error of that one says why"
            )

    def stream(self, generator: torch.Generator) -> torch.Generator:
        """Return this rank's own source of random numbers for one use.

        It comes from a generator that is in the same state on all ranks, and stays so: a
        checkpoint of rank 0 holds what all of them need, and another number of ranks can continue
        from it.
        """
        if self.size == 1:
            return generator
        device = generator.device
        common = int(torch.randint(2**62, (1,), generator=generator, device=device))
        own = torch.Generator(device=device)
        return own.manual_seed((common + self.rank * _GOLDEN) % 2**63)

    def agree(self, what: str, *parts: Tensor | str) -> None:
        """Check that something is the same on all ranks, by a hash of 64 bits.

        Args:
            what: it is, for the error.
            parts: tensors and texts it consists of.

        Raises:
            ParallelError: on every rank; names those that differ from the others.
        """
        if self.size == 1:
            return
        digest = hashlib.blake2b(digest_size=8)
        for part in parts:
            if isinstance(part, Tensor):
                digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
                flat = part.detach().cpu().flatten()
                digest.update(flat.view(torch.uint8).numpy().tobytes())
            else:
                digest.update(part.encode() + b"\0")
        number = int.from_bytes(digest.digest(), "big", signed=True)
        mine = torch.tensor([number], device=self.device)
        hashes = self._all(mine)
        common, _ = Counter(hashes).most_common(1)[0]  # of equally many, that of the lowest rank
        others = [rank for rank, value in enumerate(hashes) if value != common]
        if others:
            raise ParallelError(
                f"{named(others)} of {self.size} {'differs' if len(others) == 1 else 'differ'} "
                f"from rank {hashes.index(common)} in {what}: all processes must run the same "
                "program with the same settings and versions on devices of one kind, and make the "
                "same calls; nothing was removed since they differ"
            )

    @contextlib.contextmanager
    def _talking(self) -> Generator[None]:
        try:
            yield
        except RuntimeError as error:
            if not lost(error):
                raise
            raise ParallelError(
                f"rank {self.rank} of {self.size} lost contact with the others: "
                f"{first_sentence(error)}"
            ) from error


def lost(error: BaseException) -> bool:
    """Return whether an error says that another process did not answer.

    Example:
        >>> lost(RuntimeError("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer"))
        True
        >>> lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
        False
    """
    if isinstance(error, dist.DistError | TimeoutError | ConnectionError):
        return True
    text = str(error).lower()
    ours = isinstance(error, GuyotError) or not isinstance(error, RuntimeError)
    return not ours and any(word in text for word in _LOST)


def first_sentence(error: BaseException) -> str:
    """The first sentence of an error, without the place in the sources that gloo begins with.

    Example:
        >>> first_sentence(RuntimeError("[/gloo/pair.cc:534] Connection closed by peer. This is"))
        'Connection closed by peer'
    """
    line = re.sub(r"^\[[^\]]*\] *", "", str(error).strip()).partition("\n")[0]
    return line.partition(". ")[0][:300] or type(error).__name__


def named(ranks: list[int]) -> str:
    """Return the rank numbers in words, shortened when there are many."""
    shown = ", ".join(str(rank) for rank in ranks[:8]) + (", ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"{len(ranks)} ranks ({shown})"
