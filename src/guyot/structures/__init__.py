"""From an `nn.Module` and example inputs to its `Structures`."""

from guyot.structures.discover import find_structures
from guyot.structures.trace import is_large

__all__ = ["find_structures", "is_large"]
