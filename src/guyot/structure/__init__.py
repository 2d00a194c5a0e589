"""From an `nn.Module` and example inputs to its `Structures`."""

from guyot.structure.discover import find_structures
from guyot.structure.inputs import Inputs, call

__all__ = ["Inputs", "call", "find_structures"]
