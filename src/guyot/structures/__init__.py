"""From an `nn.Module` and example inputs to its `Structures`."""

from guyot.structures.discover import find_structures

__all__ = ["find_structures"]
