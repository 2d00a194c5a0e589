"""Checkpoints of a run: folders of safetensors and JSON from which it resumes bit for bit.

The folder `step-000000120` of a checkpoint holds

- manifest.json: format, version, step, and the versions of what wrote it
- structure.json: what is left of the network, for `guyot.rebuild`
- model.safetensors: weights and buffers under their own names
- state.json and state.safetensors: everything else, see `guyot.core.storage`
- SHA256SUMS: checksums of the files above
"""

from guyot.discovery.checkpoint.checkpointer import FORMAT, VERSION, Checkpointer, checkpoints_in
from guyot.discovery.checkpoint.parts import Stateful

__all__ = ["FORMAT", "VERSION", "Checkpointer", "Stateful", "checkpoints_in"]
