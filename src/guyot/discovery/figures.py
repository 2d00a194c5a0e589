"""What a discovery tells of itself: where it is, and what every structure is worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guyot.core.types import Structures
from guyot.discovery.plot import plot_widths
from guyot.discovery.snapshot import DiscoveryState
from guyot.discovery.standing import BlockTable, Standing, by_block
from guyot.gates.bank import Gates
from guyot.planning.config import Dials, DiscoveryConfig
from guyot.planning.controller import Controller
from guyot.planning.dynamics import Phase, Phases
from guyot.surgery.record import Record, Removal

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Figures:
    """The figures of a `Discovery`."""

    original: Structures
    _controller: Controller
    _gates: Gates | None
    _record: Record
    _state: DiscoveryState

    @property
    def standing(self) -> Standing:
        """Return where the run is."""
        step, steps = self.steps_done, self.phases.total_steps
        sizes = (self.macs, self.full_macs, self.params, self.full_params)
        gates = (self.expected_complexity, self.undecided, self.nu, self.skipped)
        return Standing(self.phase, step, steps, *sizes, *gates)

    def __repr__(self) -> str:
        return f"<Discovery: {self.standing}>"

    def _repr_html_(self) -> str:
        return self.summary().html

    def summary(self) -> BlockTable:
        """Return a table of what is left of every block, to be printed."""
        return by_block(self.standing, self.original, self.structures)

    def log(self) -> dict[str, float]:
        """Return MACs, parameters, phase, undecided gates and nu as numbers for a logger."""
        return self.standing.log()

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draw the units of every group: before, expected by the keep probabilities, and left.

        Args:
            axes: of matplotlib, to draw on; None: new ones, which a notebook shows.

        Raises:
            MisconfiguredError: matplotlib is not installed.
        """
        expected = {name: float(theta.sum()) for name, theta in self.keep_probs.items()}
        left = {group.name: group.size for group in self.structures.groups}
        return plot_widths(str(self.standing), self.original, expected, left, axes)

    @property
    def dials(self) -> Dials:
        """Return nu or target, alpha and beta, as given."""
        return self._controller.dials

    @property
    def config(self) -> DiscoveryConfig:
        """Return everything else that was given."""
        return self._controller.config

    @property
    def phases(self) -> Phases:
        """Return at which steps discovery begins and has to end."""
        return self._controller.phases

    @property
    def steps_done(self) -> int:
        """Return how many optimiser steps are over."""
        return self._state.step

    @property
    def finished(self) -> bool:
        """Say whether `finish` or `abandon` was called, maybe before a checkpoint."""
        return self._state.finished

    @property
    def phase(self) -> Phase:
        """Return whether this is warm-up, discovery or fine-tuning."""
        state = self._state
        return Phase.FINE_TUNE if state.settled else self._controller.phases.at(state.step)

    @property
    def attained(self) -> float | None:
        """Return the share of the complexity that `settle` kept; None before."""
        return self._state.attained

    @property
    def polarised(self) -> float | None:
        """Return the share of the gates above 0 at 0.95 or more just before `settle` rounded."""
        return self._state.polarised

    @property
    def skipped(self) -> int:
        """Return how many steps had gradients that were NaN, inf or missing."""
        return self._state.skipped

    @property
    def removals(self) -> list[Removal]:
        """Return what went, and when."""
        return self._record.removals

    @property
    def structures(self) -> Structures:
        """Return what is left of the network's structures."""
        return self._controller.structures

    @property
    def full_macs(self) -> int:
        """Return the MACs of one sample of the full network."""
        return round(self._controller.full.macs)

    @property
    def full_params(self) -> int:
        """Return the number of parameters of the full network."""
        return round(self._controller.full.params)

    @property
    def macs(self) -> int:
        """Return the MACs of one sample at the present physical widths."""
        return self._controller.macs

    @property
    def params(self) -> int:
        """Return the number of parameters at the present physical widths."""
        ones = torch.ones_like(self._controller.state.theta)
        return round(float(self._controller.complexity.params(ones)))

    @property
    def logical_macs(self) -> int:
        """Return the MACs of one sample if all that is removed for good were sliced away."""
        alive = self._controller.state.alive.float()
        return round(float(self._controller.complexity.macs(alive)))

    @property
    def expected_complexity(self) -> float:
        """Return E[C], the expected share of the full network's complexity."""
        if self._gates is None:
            ones = torch.ones_like(self._controller.state.theta)
            return float(self._controller.complexity.expected(ones))
        return self._controller.expected

    def passed(self, target: float) -> bool:
        """Say whether the most probable network has come down to a share of the complexity.

        It is True as well once gates commit, since the network hardly gets smaller then. It is
        False without gates.
        """
        if self._gates is None:
            return False
        if self._controller.phases.commitment(self._state.step) > 0:
            return True
        likely = self._gates.probable.cpu()
        return float(self._controller.complexity.expected(likely)) <= target

    @property
    def nu(self) -> float:
        """Return the multiplier in force, in nats: as given, or what the target needs now."""
        return self._controller.nu

    @property
    def keep_probs(self) -> dict[str, Tensor]:
        """Return keep probabilities: group name -> shape (units,), "layer NAME" -> scalar."""
        return self._by_name(self._controller.state.theta)

    @property
    def prices(self) -> dict[str, Tensor]:
        """Return what each structure costs at present, in nats; keys as in `keep_probs`."""
        return self._by_name(self._controller.nu * self._controller.state.prices)

    @property
    def benefits(self) -> dict[str, Tensor]:
        """Return what each structure is estimated to earn, in nats; keys as in `keep_probs`."""
        return self._by_name(self._controller.gate_values.benefit)

    @property
    def undecided(self) -> int:
        """Return how many gates are neither 0 nor 1."""
        return 0 if self._gates is None else self._controller.undecided

    @property
    def structure(self) -> dict[str, Any]:
        """Return what is left, as plain data for JSON; `guyot.rebuild` cuts a fresh model to it.

        `{"units": {group: kept indices of the original network}, "removed_layers": [names]}`;
        groups that are whole are not listed.
        """
        return self._record.structure

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        structures, index = self.structures, self.structures.index
        result = {g.name: flat[index.units(n)].clone() for n, g in enumerate(structures.groups)}
        for number, layer in enumerate(structures.layers):
            result[f"layer {layer.name}"] = flat[index.layer(number)].clone()
        return result
