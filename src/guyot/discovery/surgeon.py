"""One removal on everything that has the network's shape: module, copies, optimiser, gates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from guyot.core.errors import MisconfiguredError
from guyot.core.parallel import resized
from guyot.core.types import KeepPlan, Structures
from guyot.planning.controller import Controller
from guyot.surgery import operate, shrink
from guyot.surgery.record import Record, Removal


class Surgeon:
    """Carries out plans and keeps the record.

    Args:
        model: the module, changed in place.
        optimizer: holds its parameters.
        controller: everything that is numbered by gates.
        wrapper: around the model in each of several processes; None: there is one process.

    Attributes:
        record: what went so far.
        followers: copies of the model that are cut as it is.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        controller: Controller,
        wrapper: DistributedDataParallel | None = None,
    ) -> None:
        self._model, self._optimizer, self._controller = model, optimizer, controller
        self._wrapper = wrapper
        self.record = Record(controller.structures)
        self.followers: list[nn.Module] = []

    def remove(self, step: int, plan: KeepPlan) -> None:
        """Cut everything down to a plan; the gates must be off.

        Raises:
            UnsupportedError: the model or the optimiser cannot be cut; nothing was changed then.
        """
        controller, before = self._controller, self._controller.structures
        with resized(self._wrapper):
            left = operate(self._model, before, plan, [self._optimizer])
        for follower in self.followers:
            operate(follower, before, plan)
        controller.select(left.structures, left.gates)
        self.record.add(step, before, plan, left, controller.macs)

    def rehearse(self, removals: Sequence[Removal]) -> Structures:
        """What would be left after the removals of a record; changes nothing.

        Raises:
            MisconfiguredError: they name what the network does not have.
        """
        record, structures = Record(self._controller.structures), self._controller.structures
        for removal in removals:
            plan = record.plan(structures, removal)
            left = shrink(structures, plan)
            record.add(removal.step, structures, plan, left, removal.macs)
            structures = left.structures
        return structures

    def repeat(self, removals: Sequence[Removal]) -> None:
        """Carry out the removals of a record, one by one as they were.

        So the tensors get the very strides, and the modules the very names, that they had.
        """
        for removal in removals:
            self.remove(removal.step, self.record.plan(self._controller.structures, removal))
            found = self.record.removals[-1]
            if found != removal:
                raise MisconfiguredError(
                    f"repeating the removal of step {removal.step} left {found.macs} MACs instead "
                    f"of {removal.macs}: build the model as it was built for the run"
                )
