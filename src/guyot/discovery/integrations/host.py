"""What the callbacks of Lightning and the Trainer share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from guyot.core.errors import MisconfiguredError
from guyot.core.inputs import Inputs, changed
from guyot.core.locate import Part
from guyot.discovery.discovery import Discovery
from guyot.discovery.layer_benefits import Loss
from guyot.planning.config import DIALS

_ARGUMENTS = (*DIALS, "config")

STATE_FILE = "guyot"
"""Name of the files that hold a discovery's state in a checkpoint of another program."""


class HostedDiscovery:
    """Run a discovery in the loop of another program, whose callback calls these methods.

    Args:
        dials: `nu` or `target`, `alpha`, `beta` and `config` of `guyot.Discovery`.

    Attributes:
        discovery: of the present or last training; None before.

    Raises:
        MisconfiguredError: a name that is no dial.
    """

    discovery: Discovery | None = None

    def __init__(self, dials: Mapping[str, Any]) -> None:
        if unknown := sorted(set(dials) - set(_ARGUMENTS)):
            name = unknown[0]
            raise MisconfiguredError(
                f"{name}={dials[name]!r} is no dial of a discovery: give {', '.join(_ARGUMENTS)}"
            )
        self._dials = dict(dials)
        self._scale: float | None = None
        self._withheld: dict[int, Withheld] = {}

    def _withhold(self, *models: nn.Module) -> None:
        """Keep weights of another size from full models until `_resume`."""
        for model in models:
            if id(model) not in self._withheld:
                self._withheld[id(model)] = Withheld(model)

    def _begin(
        self,
        model: nn.Module,
        inputs: Inputs,
        optimizer: Optimizer | Iterable[Optimizer],
        steps: int,
        wrapper: DistributedDataParallel | None,
    ) -> Discovery:
        """Make the discovery when training begins.

        Args:
            model: the network.
            inputs: of its `forward`.
            optimizer: one, or several.
            steps: of the optimisers in all.
            wrapper: around the network or a module that holds it; None: there is one process.
        """
        device = next(model.parameters()).device
        inputs = changed(inputs, lambda tensor: tensor.to(device))
        outer = model if wrapper is None else Part(model, wrapper)
        self.discovery = Discovery(outer, inputs, optimizer, total_steps=steps, **self._dials)
        self._scale = None
        return self.discovery

    def _resume(self, state: Mapping[str, Any] | None) -> None:
        """Cut the model as the state of a checkpoint says, then load the withheld weights.

        Raises:
            MisconfiguredError: there are weights of another size and no state.
        """
        assert self.discovery is not None
        if state is not None:
            self.discovery.load_state_dict(state)
        elif any(withheld.waiting for withheld in self._withheld.values()):
            raise MisconfiguredError(
                "the checkpoint holds weights of another size and no discovery: give one that was "
                f"written with a {type(self).__name__}, or one of the full network"
            )
        for withheld in self._withheld.values():
            withheld.release()

    def _stop_withholding(self) -> None:
        for withheld in self._withheld.values():
            withheld.stop()
        self._withheld.clear()

    def _scaled(self, scaler: Any) -> None:
        """Note by what a `GradScaler` multiplied the loss, before that changes."""
        self._scale = None if scaler is None else float(scaler.get_scale())

    def _step(self, loss: Loss | None = None) -> None:
        """Move the gates: the optimiser made a step.

        Args:
            loss: as for `Discovery.step`.
        """
        if self.discovery is not None and not self.discovery.finished:
            self.discovery.step(grad_scale=self._scale, loss=loss)

    def _finish(self) -> None:
        """Make the network plain: training is over."""
        if self.discovery is not None and not self.discovery.finished:
            self.discovery.finish()


class Withheld:
    """Keep weights of another size from a model until it has been cut to that size.

    A program that resumes from a checkpoint reads the weights of the smaller network first. It
    makes the optimiser afterwards, of the full network, which can be cut only then. Weights that
    fit are loaded at once.

    Args:
        model: the full model, whose `load_state_dict` is watched.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._weights: dict[str, Tensor] | None = None
        self._hook = model.register_load_state_dict_pre_hook(self._take)

    def _take(self, model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        own = model.state_dict()
        if _shapes(own) != _shapes(state):
            self._weights = dict(state)
            state.clear()
            state.update(own)

    def release(self) -> None:
        """Load what was kept, now that the model has its size, and watch no longer."""
        self.stop()
        if self._weights is not None:
            self._model.load_state_dict(self._weights, strict=False)
            self._weights = None

    def stop(self) -> None:
        """Watch no longer."""
        self._hook.remove()

    @property
    def waiting(self) -> bool:
        """Say whether weights of another size came."""
        return self._weights is not None


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "shape", None) for name, value in state.items()}
