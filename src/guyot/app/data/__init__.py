"""Samples as arrays, and batches made from them: digits, CIFAR, folders, tables, texts."""

from guyot.app.data.arrays import Dataset, Split
from guyot.app.data.batches import Batches
from guyot.app.data.sources import load_dataset

__all__ = ["Batches", "Dataset", "Split", "load_dataset"]
