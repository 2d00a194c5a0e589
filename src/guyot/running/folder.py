"""The run folder: what it holds, how it is written, and the network made from it again.

config.json         the `RunConfig`, with device, threads and precision as they were
metrics.jsonl       what happened, a line each: `docs/runs.md` is the reference
model.safetensors   the state dict of the network that is left
structure.json      the model's name and what it kept, for `guyot.rebuild`
result.json         figures before and after
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from guyot.config import RunConfig
from guyot.errors import MisconfiguredError
from guyot.models import build
from guyot.rebuild import rebuild
from guyot.running.tensorboard import Board


class RunFolder:
    """Writes a run folder; nothing is ever overwritten.

    Args:
        path: does not exist or is empty.
        board: is told every line of `metrics.jsonl` too.

    Raises:
        MisconfiguredError: it is neither.
    """

    def __init__(self, path: Path, board: Board | None = None) -> None:
        self.path, self._board = path, board
        if path.is_dir() and not any(path.iterdir()):
            return
        if path.exists():
            raise MisconfiguredError(
                f"out={str(path)!r} {'is not empty' if path.is_dir() else 'is a file'}: give a "
                "new folder, what is there is not overwritten"
            )

    def begin(self, config: RunConfig) -> None:
        """Make the folder with `config.json` and an empty `metrics.jsonl`.

        Raises:
            MisconfiguredError: it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "metrics.jsonl").touch()
        except OSError as error:
            raise MisconfiguredError(
                f"out={str(self.path)!r} cannot be made ({error.strerror}): give another folder"
            ) from error
        self._write("config.json", config.to_dict())

    def metric(self, event: str, values: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`; `docs/runs.md` says what it may hold."""
        line = json.dumps(finite({"event": event, **values}), allow_nan=False)
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._board is not None:
            self._board.metric(event, values)

    def network(self, model: nn.Module, structure: Mapping[str, Any]) -> None:
        """Write `model.safetensors` and `structure.json`."""
        state = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, tensor in model.state_dict().items()
        }
        save_file(state, self.path / "model.safetensors", metadata={"format": "pt"})
        self._write("structure.json", structure)

    def result(self, values: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        self._write("result.json", values)

    def close(self) -> None:
        """No more lines."""
        if self._board is not None:
            self._board.close()

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        text = json.dumps(finite(values), indent=1, allow_nan=False)
        text = re.sub(r"\[[\s\d,]+\]", lambda found: " ".join(found[0].split()), text)
        (self.path / name).write_text(text + "\n", encoding="utf-8")


def finite(value: Any) -> Any:
    """NaN and inf as None: JSON has neither."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def load_run(folder: str | Path) -> nn.Module:
    """The network of a run folder, in evaluation mode.

    Raises:
        MisconfiguredError: the folder is not one, or is incomplete.
    """
    folder = Path(folder)
    try:
        structure = json.loads((folder / "structure.json").read_text(encoding="utf-8"))
        state = load_file(folder / "model.safetensors")
    except (OSError, ValueError) as error:
        raise MisconfiguredError(
            f"folder={str(folder)!r} is not a complete run folder ({error}): give one that "
            "`guyot train` wrote"
        ) from error
    image_shape = structure["image_shape"]
    model = build(structure["model"], structure["classes"], image_shape)
    rebuild(model, (torch.zeros(2, *image_shape),), structure)
    model.load_state_dict(state)
    return model.eval()
