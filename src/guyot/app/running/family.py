"""The job of `guyot train --targets`: a run folder for every member of a family.

The folder of the family holds

config.json    the `RunConfig`, with `targets`
0.7/ 0.5/ ...  the members, each a run folder as `guyot train` writes it
result.json    the figures of all members, the largest first
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator
from pathlib import Path
from typing import Any

from guyot.app.config import RunConfig
from guyot.app.launch import local_device, processes
from guyot.app.running.folder import is_finished, recorded_config, result_of
from guyot.app.running.several import Several
from guyot.app.running.together import open_folder, resuming
from guyot.core.errors import GuyotError, MisconfiguredError
from guyot.core.parallel import Ranks
from guyot.core.storage import read_json, read_tree, replaced
from guyot.core.trees import json_text
from guyot.discovery.checkpoint import checkpoints_in
from guyot.discovery.family import Family
from guyot.report import Outcome

Summary = dict[str, Any]
"""`{"status": "finished" or "interrupted", "targets": [...], "members": [...]}`; a member is its
`result.json` with its `target` and `folder`."""


class FamilyRuns(Several):
    """Train networks of several sizes that share the beginning of their training.

    The member with the smallest target is trained first, see `guyot.Family`; then the others, the
    largest first, each from where the first one passed its size. One member is trained after the
    other, in one process or on every rank of several.
    """

    def train(self, config: RunConfig) -> Summary:
        """Begin in a new folder.

        Args:
            config: with `targets`.

        Raises:
            GuyotError: what the user can put right.
        """
        if not config.targets:
            raise MisconfiguredError("targets=(): give the sizes of the family, such as (0.7, 0.5)")
        return dataclasses.replace(self, trust=True).run(config)

    def resume(self) -> Summary:
        """Continue from the latest checkpoint; members that are finished stay.

        Like `guyot.app.running.resume` it ends as if it had never been stopped, bit for bit.

        Raises:
            GuyotError: what the user can put right.
        """
        return self.run()

    def run(self, config: RunConfig | None = None) -> Summary:
        """Train what is missing, in a new folder if there is a configuration."""
        then = resuming(self.path)
        device = local_device("auto" if config is None else config.device)
        with processes(device, self.timeout, then) as ranks:
            with ranks.together():
                whole = open_folder(ranks, self.path, False, resumed=config is None)
            with whole.locked(), contextlib.closing(whole), self._nothing_left_behind(ranks):
                with ranks.together():
                    config = self._settings(config, ranks)
                    family = Family(self.path, config.targets)
                    ended = {target for target in family if is_finished(self._folder(target))}
                status = "interrupted"
                for target in family:
                    if ranks.any(self.stop()):
                        break
                    if target not in ended:
                        outcome = self._member(family, config, target, ranks)
                        if outcome.interrupted is not None:
                            break
                else:
                    status = "finished"
                summary = self._summary(family, status)
                whole.result(summary)
                return summary

    def _settings(self, config: RunConfig | None, ranks: Ranks) -> RunConfig:
        """Those of the family: written when it is new, else read."""
        file = self.path / "config.json"
        if config is None:
            config = recorded_config(self.path, self.trust)
            if not ranks.rank:
                (self.path / "result.json").unlink(missing_ok=True)
        elif not ranks.rank:
            replaced(file, json_text(config.to_dict()))
        return config

    @contextlib.contextmanager
    def _nothing_left_behind(self, ranks: Ranks) -> Generator[None]:
        """No folder stays of a family whose first member could not begin."""
        try:
            yield
        except GuyotError:
            if not ranks.rank and [file.name for file in self.path.iterdir()] == ["config.json"]:
                (self.path / "config.json").unlink()
                self.path.rmdir()
            raise

    def _member(self, family: Family, config: RunConfig, target: float, ranks: Ranks) -> Outcome:
        """Train a member, or what is left of its training."""
        folder, first = self._folder(target), target == family.smallest
        begun = ranks.told((folder / "config.json").is_file())
        if first and not begun:
            own = dataclasses.replace(config, target=target, targets=())
            return self.begin_run(own, folder, family=family)
        with ranks.together():
            if not ranks.rank and not begun:
                self._begin(target, self._folder(family.smallest))
        return self.resume_run(folder, family=family if first else None)

    def _begin(self, target: float, first: Path) -> None:
        """Make the run folder of a member as it would be had it gone its way from the start.

        Raises:
            MisconfiguredError: the checkpoint in which it begins is gone.
        """
        folder = self._folder(target)
        there = checkpoints_in(folder / "checkpoints")
        if not there:
            raise MisconfiguredError(
                f"{folder} has no checkpoint, in which this member of the family would begin: "
                "restore it, or train a new family"
            )
        lines = int(read_tree(there[-1], "state")["position"]["lines"])
        text = (first / "metrics.jsonl").read_text(encoding="utf-8")
        replaced(folder / "metrics.jsonl", "".join(text.splitlines(keepends=True)[:lines]))
        if (first / "tensorboard").is_dir():
            (folder / "tensorboard").mkdir(exist_ok=True)
        settings = read_json(first / "config.json")
        replaced(folder / "config.json", json_text({**settings, "target": target}))

    def _folder(self, target: float) -> Path:
        return self.path / f"{target:g}"

    def _summary(self, family: Family, status: str) -> Summary:
        members = [
            {
                "target": target,
                "folder": f"{target:g}",
                **(result_of(self._folder(target)) or {"status": "open"}),
            }
            for target in family.targets
        ]
        return {"status": status, "targets": list(family.targets), "members": members}
