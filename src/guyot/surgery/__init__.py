"""From a `KeepPlan` to smaller modules and smaller optimiser state."""

from guyot.surgery.layers import check_rewritable, without_branches
from guyot.surgery.locate import (
    first_names,
    named_tensors,
    owner_of,
    raw_parameter,
    tensor_at,
    unwrap,
    wrapper_of,
    wrappings,
)
from guyot.surgery.operate import operate
from guyot.surgery.plan import Shrunk, above, masks_of, present, shrink

__all__ = [
    "Shrunk",
    "above",
    "check_rewritable",
    "first_names",
    "masks_of",
    "named_tensors",
    "operate",
    "owner_of",
    "present",
    "raw_parameter",
    "shrink",
    "tensor_at",
    "unwrap",
    "without_branches",
    "wrapper_of",
    "wrappings",
]
