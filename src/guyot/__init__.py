"""guyot: neural networks that find their own structure while they train."""

from guyot.checkpoint import Checkpointer
from guyot.complexity import Cost
from guyot.controller import DiscoveryConfig
from guyot.errors import (
    GuyotError,
    GuyotWarning,
    MisconfiguredError,
    SequenceError,
    UnsupportedError,
)
from guyot.family import Family
from guyot.rebuild import rebuild
from guyot.record import Removal
from guyot.saved import load, save
from guyot.session import Discovery
from guyot.structure import find_structures

__all__ = [
    "Checkpointer",
    "Cost",
    "Discovery",
    "DiscoveryConfig",
    "Family",
    "GuyotError",
    "GuyotWarning",
    "MisconfiguredError",
    "Removal",
    "SequenceError",
    "UnsupportedError",
    "find_structures",
    "load",
    "rebuild",
    "save",
]
