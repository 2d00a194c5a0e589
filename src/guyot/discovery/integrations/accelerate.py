"""The state of a discovery in the checkpoints of Hugging Face's Accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from guyot.core.packages import needed
from guyot.core.storage import read_tree, write_tree
from guyot.discovery.discovery import Discovery
from guyot.discovery.integrations.host import STATE_FILE

with needed("guyot.discovery.integrations.accelerate needs", "accelerate"):
    from accelerate import Accelerator


def register_discovery(accelerator: Accelerator, discovery: Discovery) -> None:
    """Have `accelerator.save_state` and `load_state` save and restore a discovery.

    The checkpoint gets two files, `guyot.json` and `guyot.safetensors`. They are read before the
    weights and the optimiser's state, which fit only when the model has been cut;
    `accelerator.register_for_checkpointing` would restore a discovery after them.

    Args:
        accelerator: prepared the discovery's model and optimiser.
        discovery: of this run. Make everything as for the first start before `load_state`.
    """

    def save(_models: list[nn.Module], _weights: list[Any], output_dir: str) -> None:
        state = discovery.state_dict()
        if accelerator.is_main_process:
            Path(output_dir).mkdir(parents=True, exist_ok=True)
            write_tree(Path(output_dir), STATE_FILE, state)

    def load(_models: list[nn.Module], input_dir: str) -> None:
        discovery.load_state_dict(read_tree(Path(input_dir), STATE_FILE))

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)
