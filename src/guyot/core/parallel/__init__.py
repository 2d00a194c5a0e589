"""Several processes that train one model: what they tell each other, and their model's reducer.

A *rank* is one process of a group. Every rank trains on its own share of the samples with its own
sampled gates. What the ranks tell each other is the same on all of them afterwards, so all decide
the same: gradients of the parameters by `DistributedDataParallel` or `fully_shard`, those of the
gates by `Ranks`.
"""

from guyot.core.parallel.ranks import Ranks
from guyot.core.parallel.reducer import check_wrapper, resized
from guyot.core.parallel.sharding import (
    ORDER,
    check_sharding,
    get_ready,
    group_of_shards,
    reshaped,
    reshard,
    sharded_modules,
    whole,
)
from guyot.core.parallel.shards import (
    Share,
    from_rows,
    gathered,
    is_sharded,
    overwrite,
    own_rows,
    rows_here,
    share_of,
    spread_like,
)

__all__ = [
    "ORDER",
    "Ranks",
    "Share",
    "check_sharding",
    "check_wrapper",
    "from_rows",
    "gathered",
    "get_ready",
    "group_of_shards",
    "is_sharded",
    "overwrite",
    "own_rows",
    "reshaped",
    "reshard",
    "resized",
    "rows_here",
    "sharded_modules",
    "share_of",
    "spread_like",
    "whole",
]
