"""What layers earn, measured exactly: forward passes with and without each of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from guyot.core.randomness import random_state, set_random_state
from guyot.gates.bank import Gates

Loss = Callable[[], Tensor | float]
"""Run the model on one batch and return the mean loss, nats."""


@torch.no_grad()
def layer_benefits(gates: Gates, where: Tensor, loss: Loss, *, in_turn: bool = False) -> Tensor:
    """Measure C(0) - C(1) of some layers in the network that the gates make now.

    All passes see the same batch and draw the same random numbers, so that the differences are
    those that the layers make. The gates are as before afterwards.

    Args:
        gates: on the model.
        where: gates of the layers, int64, shape (n,).
        loss: the model is in training mode.
        in_turn: what each layer earns when those before it are switched already; else alone.

    Returns:
        nats, float32, shape (n,), on the CPU.
    """
    if not len(where):
        return torch.zeros(0)
    state = random_state()
    numbers = where.tolist()
    on = (gates.sampled[where.to(gates.sampled.device)] > 0).tolist()

    def measured() -> Tensor:
        set_random_state(state)
        return torch.as_tensor(loss(), dtype=torch.float32, device=gates.sampled.device)

    present, rises = measured(), list[Tensor]()
    for gate, active in zip(numbers, on, strict=True):
        gates.sampled[gate] = not active
        switched = measured()
        rises.append(switched - present if active else present - switched)
        if in_turn:
            present = switched
        else:
            gates.sampled[gate] = active
    gates.sampled[numbers] = gates.sampled.new_tensor(on)
    return torch.stack(rises).cpu()


@contextlib.contextmanager
def untouched(model: nn.Module) -> Generator[None]:
    """Leave a model's buffers and the sources of random numbers as they were.

    Args:
        model: a forward pass in training mode changes its buffers, as BatchNorm's statistics.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])


class OwnLoss:
    """Repeat the last training call of a model that returns its loss, as those of transformers do.

    Args:
        model: watched until `stop`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._call: tuple[nn.Module, Any, Any] | None = None
        hook: Any = self  # an object, so that copies of the model get one of their own
        self._hook = model.register_forward_hook(hook, with_kwargs=True)

    @torch.compiler.disable
    def __call__(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Note a call."""
        if model.training and torch.is_grad_enabled():
            self._call = None if _loss_in(output) is None else (model, args, kwargs)

    @property
    def again(self) -> Loss | None:
        """Return what computes the loss of the last call once more; None if it returned none."""
        if self._call is None:
            return None
        model, args, kwargs = self._call

        def loss() -> Tensor:
            found = _loss_in(model(*args, **kwargs))
            assert found is not None
            return found

        return loss

    def stop(self) -> None:
        """Watch no longer."""
        self._hook.remove()
        self._call = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        """Return what watches nothing, for copies of the model."""
        return _ignore


def _ignore(*_: Any) -> None:
    pass


def _loss_in(output: Any) -> Tensor | None:
    """Return the loss that an output holds by name."""
    found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    return found if isinstance(found, Tensor) and found.dim() == 0 else None
