"""Trees and folders on disk: safetensors and JSON, written whole or not at all, read with mistrust.

A tree (see `guyot.core.trees`) becomes two files: `NAME.safetensors` holds its tensors, `NAME.json`
the other values, as `guyot.core.storage.coding` says.
"""

from guyot.core.storage.files import (
    JSON_LIMIT,
    read_json,
    read_tensors,
    regular,
    replaced,
    write_json,
    write_tensors,
)
from guyot.core.storage.folders import (
    SUMS,
    checksums,
    published,
    remove_leftovers,
    removed,
    unfinished,
    verify,
)
from guyot.core.storage.stored import Stored, loaded, note_in, shard_name, shards_in, stored
from guyot.core.storage.tree_files import (
    packed,
    put_together,
    read_tree,
    taken_apart,
    unpacked,
    write_tree,
)

__all__ = [
    "JSON_LIMIT",
    "SUMS",
    "Stored",
    "checksums",
    "loaded",
    "note_in",
    "packed",
    "published",
    "put_together",
    "read_json",
    "read_tensors",
    "read_tree",
    "regular",
    "remove_leftovers",
    "removed",
    "replaced",
    "shard_name",
    "shards_in",
    "stored",
    "taken_apart",
    "unfinished",
    "unpacked",
    "verify",
    "write_json",
    "write_tensors",
    "write_tree",
]
