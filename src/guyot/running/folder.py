"""The run folder: what it holds, how it is written, and the network made from it again.

config.json         the `RunConfig`, with device, threads and precision as they were
metrics.jsonl       what happened, a line each: `docs/runs.md` is the reference
model.safetensors   the state dict of the network that is left
structure.json      the model's name and what it kept, for `guyot.load`
result.json         figures before and after
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from guyot.config import RunConfig
from guyot.errors import MisconfiguredError
from guyot.models import build
from guyot.running.tensorboard import Board
from guyot.saved import load, read, save
from guyot.structure.inputs import Inputs
from guyot.trees import finite, json_text


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

    def network(
        self, model: nn.Module, example_inputs: Inputs, structure: Mapping[str, Any]
    ) -> None:
        """Write `model.safetensors` and `structure.json`."""
        save(self.path, model, example_inputs, structure)

    def result(self, values: Mapping[str, Any]) -> None:
        """Write `result.json`."""
        self._write("result.json", values)

    def close(self) -> None:
        """No more lines."""
        if self._board is not None:
            self._board.close()

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        (self.path / name).write_text(json_text(values), encoding="utf-8")


def load_run(folder: str | Path) -> nn.Module:
    """The network of a run folder, in evaluation mode.

    Raises:
        MisconfiguredError: the folder is not one, or is incomplete.
    """
    structure, _ = read(folder)
    name, classes = structure.get("model"), structure.get("classes")
    if not isinstance(name, str) or not isinstance(classes, int):
        raise MisconfiguredError(
            f"folder={str(folder)!r} was not written by `guyot train`: its network is read with "
            "guyot.load(folder, model_factory)"
        )
    image_shape = structure["inputs"][0]["tensor"][1:]
    return load(folder, lambda: build(name, classes, image_shape))
