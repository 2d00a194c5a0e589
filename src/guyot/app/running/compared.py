"""The job of `guyot train --baseline` and `--seeds`: runs that are to be compared, in one folder.

A run with a baseline has the networks it is compared with beside its own files:

full/      the full network, trained the same way from the same seed
slim/      one of the same share of every width, with at least the MACs that the run kept

With several seeds the folder holds

config.json              the `RunConfig`, with `seeds`
seed-0/ seed-1/ ...      a run each
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

from guyot.app.config import RunConfig
from guyot.app.launch import local_device, processes
from guyot.app.running.folder import is_finished, recorded_config, result_of
from guyot.app.running.several import Several
from guyot.app.running.together import open_folder, resuming
from guyot.core.errors import MisconfiguredError
from guyot.core.parallel import Ranks
from guyot.core.storage import replaced
from guyot.core.trees import json_text
from guyot.planning.config import BASELINES


class ComparedRuns(Several):
    """Train a network, and what it is to be compared with, for one or several seeds.

    One run is trained after the other, in one process or on every rank of several.
    """

    def train(self, config: RunConfig) -> bool:
        """Begin in a new folder.

        Args:
            config: with `baseline` or `seeds`.

        Returns:
            Whether everything is finished.

        Raises:
            GuyotError: what the user can put right.
        """
        return dataclasses.replace(self, trust=True).run(config)

    def resume(self) -> bool:
        """Continue from the latest checkpoint, as `train` does; runs that are finished stay."""
        return self.run()

    def run(self, config: RunConfig | None = None) -> bool:
        """Train what is missing, in a new folder if there is a configuration."""
        then = resuming(self.path)
        device = local_device("auto" if config is None else config.device)
        with processes(device, self.timeout, then) as ranks:
            with ranks.together():
                if config is None:
                    config = recorded_config(self.path, self.trust)
                    if self._finished(self.path, config.seeds, config.baseline):
                        raise MisconfiguredError(
                            f"resume={str(self.path)!r} is finished, there is nothing to "
                            f"continue: guyot compare {self.path} shows what came out"
                        )
            if config.seeds == 1:
                return self._run(config, self.path, ranks)
            return self._repeat(config, ranks)

    def _repeat(self, config: RunConfig, ranks: Ranks) -> bool:
        """Train the runs of all seeds."""
        with ranks.together():
            known = (self.path / "config.json").is_file()
            whole = open_folder(ranks, self.path, False, resumed=known)
        with whole.locked(), contextlib.closing(whole):
            if not ranks.rank and not known:
                replaced(self.path / "config.json", json_text(config.to_dict()))
            for seed in range(config.seed, config.seed + config.seeds):
                own = dataclasses.replace(config, seed=seed, seeds=1)
                if not self._run(own, self.path / f"seed-{seed}", ranks):
                    return False
        return True

    def _run(self, config: RunConfig, folder: Path, ranks: Ranks) -> bool:
        """Train a run and its baselines; whether they are finished."""
        if not self._trained(config, folder, ranks):
            return False
        with ranks.together():
            settled = recorded_config(folder, self.trust)
            result = result_of(folder)
            share = result["after"]["macs"] / result["before"]["macs"]
        for kind in _kinds(config.baseline):
            if not self._trained(settled.baseline_of(kind, share), folder / kind, ranks):
                return False
        return True

    def _trained(self, config: RunConfig, folder: Path, ranks: Ranks) -> bool:
        """Train one network, or what is left of its training; whether it is finished."""
        if ranks.told(is_finished(folder)):
            return True
        if ranks.any(self.stop()):
            return False
        begun = ranks.told((folder / "config.json").is_file())
        found = self.resume_run(folder) if begun else self.begin_run(config, folder)
        return found.interrupted is None

    def _finished(self, folder: Path, seeds: int, baseline: str | None) -> bool:
        """Say whether everything in a folder is there."""
        runs = [folder]
        if seeds > 1:
            runs = [path for path in folder.glob("seed-*") if path.is_dir()]
        kinds = _kinds(baseline)
        ended = [
            is_finished(run) and all(is_finished(run / kind) for kind in kinds) for run in runs
        ]
        return len(runs) == seeds and all(ended)


def _kinds(baseline: str | None) -> tuple[str, ...]:
    return () if baseline is None else BASELINES[: BASELINES.index(baseline) + 1]
