"""Trees and folders on disk: safetensors and JSON, written whole or not at all, read with mistrust.

A tree (see `guyot.core.trees`) becomes two files: `NAME.safetensors` holds its tensors, `NAME.json`
the other values, as `guyot.core.storage.coding` says.
"""

from guyot.core.storage.files import (
    JSON_LIMIT,
    packed,
    read_json,
    read_tensors,
    read_tree,
    regular,
    replaced,
    unpacked,
    write_json,
    write_tensors,
    write_tree,
)
from guyot.core.storage.folders import SUMS, published, remove_leftovers, removed, verify

__all__ = [
    "JSON_LIMIT",
    "SUMS",
    "packed",
    "published",
    "read_json",
    "read_tensors",
    "read_tree",
    "regular",
    "remove_leftovers",
    "removed",
    "replaced",
    "unpacked",
    "verify",
    "write_json",
    "write_tensors",
    "write_tree",
]
