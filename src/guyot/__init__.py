"""guyot makes a PyTorch network smaller, units and layers, while it trains."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guyot.app.recording import Recorder
    from guyot.core.errors import (
        GuyotError,
        GuyotWarning,
        MisconfiguredError,
        SequenceError,
        UnsupportedError,
    )
    from guyot.costs.complexity import Cost
    from guyot.discovery.checkpoint import Checkpointer
    from guyot.discovery.discovery import Discovery
    from guyot.discovery.distillation import Distillation
    from guyot.discovery.family import Family
    from guyot.discovery.shrink import shrink
    from guyot.planning.config import DiscoveryConfig
    from guyot.results import export as export
    from guyot.results.rebuild import rebuild
    from guyot.results.saved import load, save
    from guyot.structures import find_structures
    from guyot.surgery.record import Removal

__all__ = [
    "Checkpointer",
    "Cost",
    "Discovery",
    "DiscoveryConfig",
    "Distillation",
    "Family",
    "GuyotError",
    "GuyotWarning",
    "MisconfiguredError",
    "Recorder",
    "Removal",
    "SequenceError",
    "UnsupportedError",
    "find_structures",
    "load",
    "rebuild",
    "save",
    "shrink",
]

_HOMES = {
    "Checkpointer": "guyot.discovery.checkpoint",
    "Cost": "guyot.costs.complexity",
    "Discovery": "guyot.discovery.discovery",
    "DiscoveryConfig": "guyot.planning.config",
    "Distillation": "guyot.discovery.distillation",
    "Family": "guyot.discovery.family",
    "GuyotError": "guyot.core.errors",
    "GuyotWarning": "guyot.core.errors",
    "MisconfiguredError": "guyot.core.errors",
    "Recorder": "guyot.app.recording",
    "Removal": "guyot.surgery.record",
    "SequenceError": "guyot.core.errors",
    "UnsupportedError": "guyot.core.errors",
    "find_structures": "guyot.structures",
    "load": "guyot.results.saved",
    "rebuild": "guyot.results.rebuild",
    "save": "guyot.results.saved",
    "shrink": "guyot.discovery.shrink",
}
"""Public name -> the module that defines it. Importing guyot does not import torch."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name == "export":
        return import_module("guyot.results.export")
    if name == "__version__":
        from importlib.metadata import version  # with it comes a parser of e-mails

        return version("guyot")
    if name not in _HOMES:
        raise AttributeError(f"module 'guyot' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
