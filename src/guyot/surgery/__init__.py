"""From a `KeepPlan` to smaller modules and smaller optimiser state."""

from guyot.surgery.layers import check_rewritable, without_branches
from guyot.surgery.operate import operate
from guyot.surgery.plan import Shrunk, above, masks_of, present, shrink

__all__ = [
    "Shrunk",
    "above",
    "check_rewritable",
    "masks_of",
    "operate",
    "present",
    "shrink",
    "without_branches",
]
