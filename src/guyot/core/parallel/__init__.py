"""Several processes that train one model: what they tell each other, and their model's reducer.

A *rank* is one process of a group. Every rank trains on its own share of the samples with its own
sampled gates. What the ranks tell each other is the same on all of them afterwards, so all decide
the same: gradients of the parameters by `DistributedDataParallel`, those of the gates by `Ranks`.
"""

from guyot.core.parallel.ranks import Ranks
from guyot.core.parallel.reducer import check_wrapper, resized

__all__ = [
    "Ranks",
    "check_wrapper",
    "resized",
]
