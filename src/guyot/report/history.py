"""A run folder as it was written: settings, what happened, and what came out.

The run is finished, was stopped, was killed, or is still under way.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from guyot.core.errors import MisconfiguredError
from guyot.core.metric import ACCURACY, METRICS, Metric
from guyot.core.storage import read_json, regular
from guyot.planning.config import BASELINES, DIALS
from guyot.report.outcome import Network
from guyot.report.table import sample_word

Line = Mapping[str, Any]

TRIALS = "trials"
"""Folder of a sweep that holds the folders of its runs."""


@dataclass(frozen=True)
class History:
    """What a run folder tells; the lines are those of `metrics.jsonl`, see `docs/runs.md`.

    Attributes:
        name: tells the run from the others it is shown with.
        config: settings.
        network: the full network.
        lines: all lines in order.
        result: the figures before and after; None while there are none.
        full: `result` of the full network that was trained in the same way; None: there is none.
        environment: what the last start of the run noted of its machine; None: nothing.
        family: folder of the family whose member this is; None: it is none.
    """

    name: str
    config: Line
    network: Line
    lines: Sequence[Line]
    result: Line | None
    full: Line | None = None
    environment: Line | None = None
    family: str | None = None

    def of(self, event: str) -> list[Line]:
        """Return the lines of an event."""
        return [line for line in self.lines if line["event"] == event]

    @cached_property
    def removals(self) -> list[Line]:
        """Return what went, in order."""
        return self.of("removal")

    @cached_property
    def snapshots(self) -> list[Line]:
        """Keep probabilities, benefits and prices over time; empty without discovery."""
        return self.of("gates")

    @property
    def metric(self) -> Metric:
        """What its scores are."""
        return METRICS[self.network.get("metric", ACCURACY.key)]

    @property
    def sample(self) -> str:
        """What a sample of its data is called."""
        return sample_word(() if self.result is None else self.result["image_shape"])

    @property
    def status(self) -> str:
        """One of finished, interrupted, failed, and unfinished.

        An unfinished run is under way or was killed; the last losses of a failed one were not
        finite.
        """
        if self.result is not None:
            return str(self.result["status"])
        figures = self.of("steps")
        failed = bool(figures) and figures[-1].get("loss", 0.0) is None
        return "failed" if failed else "unfinished"

    @property
    def full_network(self) -> bool:
        """Say whether the full network was trained, and nothing went."""
        return not self.config["discovery"] and self.config.get("slim") is None

    @property
    def groups(self) -> Sequence[Line]:
        """Unit groups of the full network; empty without discovery."""
        return self.network.get("groups", ())

    @property
    def layers(self) -> Sequence[str]:
        """Residual branches of the full network that could go."""
        return self.network.get("layers", ())

    @property
    def removed_layers(self) -> list[str]:
        """Those that went."""
        return [name for removal in self.removals for name in removal["layers"]]

    @cached_property
    def before(self) -> Network:
        """The full network; its latency and accuracy are known when the run ended."""
        if self.result is not None:
            before = Network.from_dict(self.result["before"], self.metric)
            if self.full is None:
                return before
            score = self.full["after"][f"test_{self.metric.key}"]
            return dataclasses.replace(before, test_score=score)
        return Network(self.network["macs"], self.network["params"])

    @cached_property
    def after(self) -> Network:
        """The network that is left."""
        if self.result is not None:
            return Network.from_dict(self.result["after"], self.metric)
        last = next((line for line in reversed(self.lines) if "macs" in line), self.network)
        return Network(last["macs"], last["params"])

    @property
    def macs(self) -> int:
        """MACs of one image that are left."""
        return self.after.macs

    @property
    def params(self) -> int:
        """Parameters that are left."""
        return self.after.params

    @property
    def test_score(self) -> float | None:
        """By the metric; None unless the run is finished."""
        return self.after.test_score

    @property
    def validation_score(self) -> float | None:
        """By the metric, of the last epoch or the network that is left; None before an epoch."""
        key = f"validation_{self.metric.key}"
        if self.result is not None:
            return self.result[key]
        epochs = self.of("epoch")
        return epochs[-1][key] if epochs else None

    def width(self, group: Line) -> int:
        """Count the units of a group that are left; 0 when it went with its layer."""
        if not self.removals:
            return group["size"]
        return self.removals[-1]["widths"].get(group["name"], 0)

    @cached_property
    def gone(self) -> dict[str, dict[int, int]]:
        """Group -> unit -> step at which it went."""
        result: dict[str, dict[int, int]] = {group["name"]: {} for group in self.groups}
        sizes = {group["name"]: group["size"] for group in self.groups}
        for removal in self.removals:
            for name, steps in result.items():
                whole = range(sizes[name]) if name not in removal["widths"] else ()
                for unit in (*removal["units"].get(name, ()), *whole):
                    steps.setdefault(unit, removal["step"])
        return result

    @cached_property
    def gone_layers(self) -> dict[str, int]:
        """Layer -> step at which it went."""
        return {name: removal["step"] for removal in self.removals for name in removal["layers"]}


def read_runs(folders: Iterable[str | Path]) -> list[History]:
    """Read run folders, the trials in the folders of sweeps, and the members of families.

    Trials are named by the dials in which they differ; one that has not begun training is left out.

    Raises:
        MisconfiguredError: one is not a run folder, or is given twice; all problems at once.
    """
    given = [Path(folder) for folder in folders]
    found_names = dict(zip(given, _names(given), strict=True))
    named = [pair for path in given for pair in _expanded(path, found_names[path], len(given) > 1)]
    paths, names = [path for path, _ in named], [name for _, name in named]
    problems: list[str] = []
    found: list[History] = []
    for path, name in zip(paths, names, strict=True):
        try:
            found.append(_read(path, name))
        except (OSError, ValueError) as error:
            reason = error if path.is_dir() else "there is no such folder"
            problems.append(
                f"run={str(path)!r} is not a folder that `guyot train` wrote ({reason})"
            )
    if len({path.resolve() for path in paths}) < len(paths):
        problems.append("a run is given twice: give every run once")
    if problems:
        raise MisconfiguredError("; ".join(problems))
    if len(metrics := list(dict.fromkeys(run.metric.name for run in found))) > 1:
        raise MisconfiguredError(
            f"the runs have different scores, {' and '.join(metrics)}: give those of one task"
        )
    return found


def _expanded(path: Path, name: str, several: bool) -> list[tuple[Path, str]]:
    """Return the run, or those of a family or sweep that have begun, ordered by their dials."""
    prefix = f"{name}: " if several else ""
    if seeds := sorted(path.glob("seed-*/metrics.jsonl"), key=lambda file: len(file.parts[-2])):
        return [
            pair
            for file in seeds
            for pair in _with_baselines(file.parent, f"{prefix}{file.parts[-2].replace('-', ' ')}")
        ]
    if any((path / kind / "metrics.jsonl").exists() for kind in BASELINES):
        return _with_baselines(path, name if several else "")
    if members := _members(path):
        return [(run, f"{prefix}target {run.name}") for run in members]
    trials = [run.parent for run in sorted(path.glob(f"{TRIALS}/*/metrics.jsonl"))]
    if not trials:
        return [(path, name)]
    configs = [read_json(run / "config.json", links=True) for run in trials]
    dials = [dial for dial in DIALS if len({config[dial] for config in configs}) > 1] or DIALS[:1]
    values = [[config[dial] for dial in dials] for config in configs]
    names = [
        ", ".join(f"{d} {v:.4g}" for d, v in zip(dials, found, strict=True) if v is not None)
        for found in values
    ]
    if len(set(names)) < len(names):
        names = [run.name for run in trials]
    order = sorted(range(len(trials)), key=lambda n: [(v is None, v) for v in values[n]])
    return [(trials[n], prefix + names[n]) for n in order]


def _with_baselines(path: Path, name: str) -> list[tuple[Path, str]]:
    """Return a run and the networks that it is compared with, as far as they have begun."""
    begun = [kind for kind in BASELINES if (path / kind / "metrics.jsonl").exists()]
    prefix = f"{name}: " if name else ""
    return [(path, f"{prefix}found"), *((path / kind, f"{prefix}{kind}") for kind in begun)]


def _members(path: Path) -> list[Path]:
    """Return the run folders of a family that have begun; none if it is no family."""
    try:
        config = read_json(path / "config.json", links=True)
    except MisconfiguredError:
        return []  # refused where it is read
    targets = config.get("targets") if isinstance(config, dict) else None
    members = [path / f"{target:g}" for target in targets or ()]
    return [run for run in members if (run / "metrics.jsonl").exists()]


def _read(folder: Path, name: str) -> History:
    config = read_json(folder / "config.json", links=True)
    lines_file = (folder / "metrics.jsonl").resolve()
    regular(lines_file)
    text = lines_file.read_text(encoding="utf-8")
    whole = text.split("\n")[:-1]  # the last line is being written, or was when the run was killed
    lines = [_line(number, line) for number, line in enumerate(whole, start=1)]
    network = next((line for line in lines if line["event"] == "network"), None)
    if network is None:
        raise ValueError("metrics.jsonl does not describe the network: train it again")
    if network.get("metric", ACCURACY.key) not in METRICS:
        raise ValueError(
            f"metrics.jsonl has the score {network['metric']!r}, which this version does not know"
        )
    full = _result(folder / BASELINES[0])
    if full is not None and full["status"] != "finished":
        full = None
    return History(
        name,
        config,
        network,
        lines,
        _result(folder),
        full,
        environment=_environment(folder),
        family=str(folder.resolve().parent) if folder in _members(folder.parent) else None,
    )


def _line(number: int, text: str) -> Line:
    """Read a line of `metrics.jsonl`, counted from 1."""
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not isinstance(found.get("event"), str):
        raise ValueError(
            f"line {number} of metrics.jsonl is wrong, {text[:40]!r}: restore the file, or remove "
            "the line"
        )
    return found


def _environment(folder: Path) -> Line | None:
    """Return what the last start noted; None where it noted nothing that can be read."""
    try:
        found = read_json(folder / "environment.json", links=True)
        return dict(found["starts"][-1])
    except (ValueError, LookupError, TypeError):
        return None


def _result(folder: Path) -> Line | None:
    path = folder / "result.json"
    return read_json(path, links=True) if path.exists() else None


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell them apart.

    Example:
        >>> _names([Path("a/run"), Path("b/run")])
        ['a/run', 'b/run']
    """
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return ["/".join(part[-1:]) for part in parts]
