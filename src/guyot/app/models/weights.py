"""Trained weights in a network whose head may be another one."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from guyot.core.errors import MisconfiguredError
from guyot.core.warning import warn

_NAMED = 4


def load_fitting(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights; those of another size, such as the head for other classes, stay random.

    Args:
        model: gets them.
        state: weights and buffers by name.
        source: where they come from, for messages.

    Warns:
        GuyotWarning: names what has another size.

    Raises:
        MisconfiguredError: names are missing, or nothing fits.
    """
    own = model.state_dict()
    if missing := [name for name in own if name not in state]:
        raise MisconfiguredError(
            f"{source} do not fit the network: {_named(missing)} missing; give weights of the same "
            f"network, whose names are like {next(iter(own))!r}, not {next(iter(state), '')!r}"
        )
    other = [name for name, tensor in own.items() if tensor.shape != state[name].shape]
    fitting = {name: state[name] for name in own if name not in other}
    if len(other) > max(2, len(own) // 4):
        raise MisconfiguredError(
            f"{source} do not fit the network: {_named(other)} of another size; give weights of "
            "the same network"
        )
    model.load_state_dict(fitting, strict=False)
    if other:
        warn(
            f"{source}: {_named(other)} of another size and start at random",
        )


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more} {'are' if len(names) > 1 else 'is'}"
