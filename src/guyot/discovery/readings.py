"""What a `Discovery` tells: figures of the network as it is now, and of every structure in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from guyot.core.types import Structures
from guyot.gates.gates import Gates
from guyot.planning.controller import Controller
from guyot.planning.dynamics import Phase, Phases
from guyot.surgery.record import Record, Removal


class Readings:
    """Read-only figures of a run; `guyot.discovery.session.Discovery` is what moves them."""

    _controller: Controller
    _record: Record
    _gates: Gates | None
    _step: int
    _settled: bool
    _finished: bool

    @property
    def finished(self) -> bool:
        """Whether `finish` or `abandon` was called, if need be before a checkpoint."""
        return self._finished

    @property
    def _phases(self) -> Phases:
        return self._controller.phases

    @property
    def phase(self) -> Phase:
        """Warm-up, discovery or fine-tuning."""
        return Phase.FINE_TUNE if self._settled else self._phases.at(self._step)

    @property
    def removals(self) -> list[Removal]:
        """What went, and when."""
        return self._record.removals

    @property
    def structures(self) -> Structures:
        """What is left of the network's structures."""
        return self._controller.structures

    @property
    def full_macs(self) -> int:
        """MACs of one sample of the full network."""
        return round(self._controller.full.macs)

    @property
    def full_params(self) -> int:
        """Parameters of the full network."""
        return round(self._controller.full.params)

    @property
    def macs(self) -> int:
        """MACs of one sample at the present physical widths."""
        return self._controller.macs

    @property
    def params(self) -> int:
        """Parameters at the present physical widths."""
        return round(float(self._controller.complexity.params(torch.ones_like(self._theta))))

    @property
    def logical_macs(self) -> int:
        """MACs of one sample if every unit that was given up were sliced away."""
        alive = self._alive.to(self._theta)
        return round(float(self._controller.complexity.macs(alive)))

    @property
    def expected_complexity(self) -> float:
        """E[C], the expected share of the full network's complexity."""
        if self._gates is None:
            ones = torch.ones_like(self._theta)
            return float(self._controller.complexity.expected(ones))
        return self._controller.expected

    def passed(self, target: float) -> bool:
        """Whether the most probable network has come down to a share of the complexity.

        True as well once gates commit, since it will hardly get smaller then; False without gates.
        """
        if self._gates is None:
            return False
        if self._phases.commitment(self._step) > 0:
            return True
        likely = self._gates.probable.to(self._theta)
        return float(self._controller.complexity.expected(likely)) <= target

    @property
    def nu(self) -> float:
        """The multiplier in force, in nats: the one given, or the one the target needs now."""
        return self._controller.nu

    @property
    def keep_probs(self) -> dict[str, Tensor]:
        """Keep probabilities: group name -> shape (units,), "layer NAME" -> scalar."""
        return self._by_name(self._theta)

    @property
    def prices(self) -> dict[str, Tensor]:
        """What keeping each structure costs at present, in nats; keys as in `keep_probs`."""
        return self._by_name(self._controller.nu * self._controller.state.prices)

    @property
    def benefits(self) -> dict[str, Tensor]:
        """What each structure is estimated to earn, in nats; keys as in `keep_probs`."""
        return self._by_name(self._controller.gates.benefit)

    @property
    def undecided(self) -> int:
        """Gates that are neither 0 nor 1."""
        return 0 if self._gates is None else self._controller.undecided

    @property
    def structure(self) -> dict[str, Any]:
        """What is left, as plain data for JSON; `guyot.rebuild` cuts a fresh model down to it.

        `{"units": {group: kept indices of the original network}, "removed_layers": [names]}`;
        groups that are whole are not listed.
        """
        return self._record.structure

    @property
    def _theta(self) -> Tensor:
        return self._controller.state.theta

    @property
    def _alive(self) -> Tensor:
        return self._controller.state.alive

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        structures, index = self.structures, self.structures.index
        result = {g.name: flat[index.units(n)].clone() for n, g in enumerate(structures.groups)}
        for number, layer in enumerate(structures.layers):
            result[f"layer {layer.name}"] = flat[index.layer(number)].clone()
        return result
