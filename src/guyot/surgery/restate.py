"""Let a module's `forward` state other lengths where it states lengths that are about to change.

`x.reshape(B, N, C)` after an attention takes the heads for as wide as the input, and
`C // self.num_heads` their size for what is left when some are gone. Every such length gets a
number or an attribute that follows. PyTorch's own `nn.MultiheadAttention`, whose arithmetic is not
in its `forward`, is written out, and so is torchvision's attention in windows.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from guyot.core.errors import UnsupportedError
from guyot.core.torch_private import leave_fast_path
from guyot.core.types import Restated
from guyot.surgery import heads, windows
from guyot.surgery.derive import replace_methods
from guyot.surgery.edits import State


def written_out(module: nn.Module) -> Callable[[], None] | None:
    """Return what gives a module guyot's own `forward`; None for kinds that have none.

    Raises:
        UnsupportedError: it is of a kind that has one, which does not serve it.
    """
    if isinstance(module, nn.MultiheadAttention):
        heads.check(module)

        def attention() -> None:
            replace_methods(module, {"forward": heads.attend})
            leave_fast_path(module)

        return attention
    if windows.in_windows(module):
        return lambda: windows.write_out(module)
    return None


def states_of(spec: Restated) -> list[State]:
    """The edits that a module needs.

    Raises:
        UnsupportedError: it cannot follow the lengths of a group that loses units.
    """
    if spec.stuck:
        raise UnsupportedError(f"the forward of {spec.module} cannot follow: {spec.stuck[0][1]}")
    return [State(place, sizes) for place, sizes in spec.sizes]


def make_room(module: nn.Module, spec: Restated) -> None:
    """Give a module the attributes that will hold lengths."""
    for _, sizes in spec.sizes:
        for name in sizes:
            if isinstance(name, str) and not hasattr(module, name):
                setattr(module, name, 0)
