"""One run, many sizes: networks of several targets that share the beginning of their training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from guyot.core.errors import MisconfiguredError, SequenceError
from guyot.discovery.checkpoint import Checkpointer, Stateful
from guyot.discovery.discovery import Discovery
from guyot.planning.config import problem_of_targets


class Family:
    """Train networks of several sizes for little more than the cost of one.

    The run with the smallest target goes all the way down. Where its most probable network passes a
    larger target, a checkpoint is kept. A run with that target starts from it: it settles at once
    and is fine-tuned to the end of the user's own schedule. So every member has the whole training,
    and the steps before the branch are paid for once [ours].

    A loop that trains one network becomes a function of the target, called for the targets in the
    order of the family; `member.start` is the step at which it begins, `member.step()` ends every
    iteration:

        >>> import tempfile, torch, guyot
        >>> def train(target, family, steps=200):
        ...     torch.manual_seed(0)
        ...     model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        ...     x = torch.randn(32, 8)
        ...     discovery = guyot.Discovery(
        ...         model, (x,), optimizer, total_steps=steps, target=target
        ...     )
        ...     member = family.member(target, model, discovery, optimizer=optimizer)
        ...     for _ in range(member.start, steps):
        ...         nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...         discovery.step()
        ...         member.step()
        ...     return discovery.finish(), member.start
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     family = guyot.Family(folder, targets=(0.75, 0.5, 0.25))
        ...     found = {target: train(target, family) for target in family}
        >>> [(target, model[0].out_features) for target, (model, _) in found.items()]
        [(0.25, 16), (0.75, 48), (0.5, 32)]
        >>> 0 == found[0.25][1] < found[0.75][1] < found[0.5][1]
        True

    All but the target must be the same for all members, and `Discovery` must be given a `target`,
    not `nu`. With several processes all of them make the same calls and see the same folder.

    Args:
        folder: holds a sub-folder with checkpoints for every member.
        targets: shares of the full network's complexity to keep, falling.

    Attributes:
        folder: the same.
        targets: the same.

    Raises:
        MisconfiguredError: fewer than two targets, out of range, out of order, or so close that
            both would be the same network.
    """

    def __init__(self, folder: str | Path, targets: Iterable[float]) -> None:
        if not isinstance(targets, Iterable):
            raise MisconfiguredError(
                f"targets={targets!r}: give the shares of several networks, such as (0.75, 0.5)"
            )
        self.folder, self.targets = Path(folder), tuple(targets)
        if problem := problem_of_targets(self.targets):
            raise MisconfiguredError(problem)
        self._kept: set[float] = set()

    def __iter__(self) -> Iterator[float]:
        """Yield the targets in the order of their training: the smallest, then the others."""
        return iter((self.smallest, *self.larger))

    @property
    def smallest(self) -> float:
        """Return the target of the run that passes all others."""
        return self.targets[-1]

    @property
    def larger(self) -> tuple[float, ...]:
        """Return the targets that it passes, falling."""
        return self.targets[:-1]

    def folder_of(self, target: float) -> Path:
        """Return where the checkpoints of a member are."""
        return self.folder / f"{target:g}" / "checkpoints"

    def resume(self, checkpoints: Checkpointer, step: int) -> None:
        """Start or resume the run with the smallest target after a step.

        Args:
            checkpoints: of that run.
            step: optimiser steps so far; branches of later ones are removed.
        """
        self._kept = {t for t in self.larger if checkpoints.remove_later(self.folder_of(t), step)}

    def keep(
        self,
        checkpoints: Checkpointer,
        step: int,
        position: Callable[[float], Mapping[str, Any]] = lambda _: {},
    ) -> list[float]:
        """Keep a branch for every larger target that was passed; call it between two steps.

        A target is passed where the most probable network has come down to it, at the latest where
        the gates of the smallest begin to commit; see `Discovery.passed`.

        Args:
            checkpoints: of the run with the smallest target.
            step: optimiser steps so far.
            position: what `Checkpointer.resume` gives the member of a target.

        Returns:
            The targets that were passed since the last call.

        Raises:
            StorageError: a branch cannot be written.
        """
        passed = self.passed(checkpoints)
        for target in passed:
            checkpoints.branch(self.folder_of(target), target, step, position(target))
            self._kept.add(target)
        return passed

    def passed(self, checkpoints: Checkpointer) -> list[float]:
        """Return the targets that were passed and have no branch yet."""
        discovery = checkpoints.discovery
        missing = [target for target in self.larger if target not in self._kept]
        return [target for target in missing if discovery and discovery.passed(target)]

    def member(
        self, target: float, model: nn.Module, discovery: Discovery, **parts: Stateful
    ) -> Member:
        """Start a member where the smallest one passed it, or resume it from its checkpoint.

        Args:
            target: one of the family's.
            model: as for the first step of a run.
            discovery: of the model, with that target.
            **parts: the optimiser, and everything else with `state_dict()`, see `Checkpointer`.

        Raises:
            SequenceError: the run with the smallest target has not passed this one.
            MisconfiguredError: another target, or a checkpoint that does not fit.
        """
        if target not in self.targets:
            known = ", ".join(f"{known:g}" for known in self.targets)
            raise MisconfiguredError(f"target={target:g} is not in the family: choose of {known}")
        checkpoints = Checkpointer(self.folder_of(target), model, discovery, keep=2, **parts)
        member = Member(self, target, checkpoints)
        if not member.start and target != self.smallest:
            raise SequenceError(
                f"target={target:g} has no beginning in {self.folder_of(target)}: train the member "
                f"with target={self.smallest:g} first, which passes it"
            )
        return member


class Member:
    """Run one size of a `Family`; `Family.member` makes it.

    Attributes:
        start: optimiser steps that are behind it.
        checkpoints: its own; `save` writes one.
    """

    def __init__(self, family: Family, target: float, checkpoints: Checkpointer) -> None:
        self._family = family
        self._first = target == family.smallest
        self.checkpoints = checkpoints
        position = checkpoints.resume()
        self.start = self._step = 0 if position is None else int(position["step"])
        if self._first:
            family.resume(checkpoints, self.start)

    def step(self) -> list[float]:
        """Count an iteration and keep branches; call it last, after the scheduler for instance.

        Returns:
            The targets that were passed by it.
        """
        self._step += 1
        if not self._first:
            return []
        return self._family.keep(self.checkpoints, self._step, lambda _: {"step": self._step})

    def save(self) -> Path:
        """Write a checkpoint; when the program is started again, the member resumes from it."""
        return self.checkpoints.save(self._step, {"step": self._step})
