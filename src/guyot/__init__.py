"""guyot: neural networks that find their own structure while they train."""

from guyot.errors import GuyotError, GuyotWarning, MisconfiguredError, SequenceError, UnsupportedError
from guyot.session import Discovery, DiscoveryConfig, Removal
from guyot.structure import find_structures

__all__ = [
    "Discovery",
    "DiscoveryConfig",
    "GuyotError",
    "GuyotWarning",
    "MisconfiguredError",
    "Removal",
    "SequenceError",
    "UnsupportedError",
    "find_structures",
]
