"""Images as uint8 arrays, and batches made from them: digits, CIFAR, image folders."""

from guyot.app.data.arrays import Dataset, Split
from guyot.app.data.batches import Batches
from guyot.app.data.sources import cache_root, load_dataset

__all__ = ["Batches", "Dataset", "Split", "cache_root", "load_dataset"]
