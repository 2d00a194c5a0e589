"""From a `KeepPlan` to smaller modules and smaller optimiser state."""

from guyot.surgery.edits import SHAPING
from guyot.surgery.layers import check_edit
from guyot.surgery.operate import operate
from guyot.surgery.plan import Shrunk, above, masks_of, present, shrink_structures
from guyot.surgery.source import author_function

__all__ = [
    "SHAPING",
    "Shrunk",
    "above",
    "author_function",
    "check_edit",
    "masks_of",
    "operate",
    "present",
    "shrink_structures",
]
