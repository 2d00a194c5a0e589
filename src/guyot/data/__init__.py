"""Images as uint8 arrays, and batches made from them: digits, CIFAR, image folders."""

from guyot.data.arrays import Dataset, Split
from guyot.data.batches import Batches
from guyot.data.sources import cache_root, load

__all__ = ["Batches", "Dataset", "Split", "cache_root", "load"]
