"""The runs in words and figures: title, sentence, tiles, table, notes."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from guyot.core.metric import Metric
from guyot.report.comparison import Compared, compare, difference_text
from guyot.report.history import History, Line
from guyot.report.page.curves import percent, score_text
from guyot.report.table import (
    UNKNOWN,
    Figure,
    count_text,
    figures,
    latency_notes,
    latency_text,
    machine_text,
)


def epoch_columns(metric: Metric) -> tuple[str, ...]:
    """Return the columns of `epochs`."""
    return (
        "epoch", "phase", "loss", f"training {metric.name}", f"validation {metric.name}", "MACs",
        "parameters", "undecided", "learning rate", "seconds",
    )  # fmt: skip


_STATUS = {
    "finished": "finished",
    "interrupted": "stopped",
    "failed": "failed: its last losses were not finite",
    "unfinished": "not finished",
}


@dataclass(frozen=True)
class Table:
    """Runs side by side: a row each."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def goal(run: History) -> str:
    """Say what the run was asked for.

    The share of a complexity, a price of accuracy, or nothing but training.
    """
    config = run.config
    if run.full_network:
        return "full network"
    if not config["discovery"]:
        return f"uniformly slimmer, {100 * config['slim']:.3g} % of the MACs"
    if config["target_ms"] is not None:
        return f"target {config['target_ms']:g} ms"
    if config["target"] is None:
        return f"nu {config['nu']:g}"
    if config["cost"] is not None:
        return f"target {100 * config['target']:g} % of {config['cost']}"
    alpha = config["alpha"]
    whole = {1.0: "MACs", 0.0: "parameters"}.get(alpha, f"complexity at alpha {alpha:g}")
    return f"target {100 * config['target']:g} % of the {whole}"


def title(runs: Sequence[History]) -> str:
    """Return model and data of all runs, or how many there are."""
    subjects = list(dict.fromkeys(_subject(run) for run in runs))
    if len(runs) == 1:
        return f"{subjects[0]}, {goal(runs[0])}"
    return f"{subjects[0] if len(subjects) == 1 else 'Different networks'}: {len(runs)} runs"


def _subject(run: History) -> str:
    model, data = run.config["model"], run.config["data"]
    return model if data is None else f"{model} on {data}"


def about(runs: Sequence[History]) -> list[str]:
    """Say where, how long and from which seed one run was made."""
    if len(runs) > 1:
        return []
    run = runs[0]
    config = run.config
    facts = [
        _length(run),
        f"seed {config['seed']}",
        f"beta {config['beta']:g}",
        _place(config),
    ]
    if config["round_to"] is not None:
        facts.insert(3, f"widths in multiples of {config['round_to']}")
    if run.result is not None:
        facts.append(_duration(run.result["seconds"]))
    return [f"{run.name}: {', '.join(facts)}"]


def _length(run: History) -> str:
    count = run.config["epochs"]
    if count is None:
        return f"{run.network['steps']} steps"
    return f"{count} epoch{'s' * (count != 1)}"


def _place(config: Line) -> str:
    bf16 = config["bf16"]
    return _machine(config) + ("" if bf16 is None else ", bf16" if bf16 else ", float32")


def _machine(config: Line) -> str:
    return machine_text(config["device"], config["threads"])


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes else f"{seconds:.0f} s"


def sentence(run: History) -> str:
    """Return the outcome of a run in a sentence or two."""
    macs, params = run.macs / run.before.macs, run.params / run.before.params
    state = {
        "finished": "The network ended at",
        "interrupted": "The run was stopped; the network had",
        "unfinished": "The run is not finished; the network has",
        "failed": "The run failed, its last losses were not finite; the network had",
    }[run.status]
    text = f"{state} {percent(macs)} of its MACs and {percent(params)} of its parameters."
    metric, written = run.metric, score_text(run.metric)
    if run.test_score is not None:
        text = f"{text} Its test {metric.name} is {written(run.test_score)}."
        if run.full is not None and run.before.test_score is not None:
            text += (
                f" The full network, trained in the same way, has "
                f"{written(run.before.test_score)}: a difference of "
                f"{metric.difference(run.test_score - run.before.test_score)}."
            )
        return text
    if run.validation_score is not None:
        return f"{text} Its validation {metric.name} is {written(run.validation_score)}."
    return text


def tiles(run: History) -> list[Figure]:
    """Return the figures of one run; scores that are not known are left out."""
    found = figures(
        (run.before, run.after),
        run.metric,
        run.sample,
        run.config["device"],
        run.validation_score,
        len(run.layers),
        len(run.removed_layers),
    )
    return [figure for figure in found if figure.after != UNKNOWN]


def table(runs: Sequence[History]) -> Table:
    """Return the figures of all runs."""
    batches = list(dict.fromkeys(batch for run in runs for batch in run.after.latency))
    columns = [
        "goal", "MACs", "parameters",
        *(f"latency, batch {batch}" for batch in batches),
        f"test {runs[0].metric.name}", "validation", "branches", "epochs", "time",
    ]  # fmt: skip
    pairs = zip(compare(runs), runs, strict=True)
    return Table(columns, [_row(one, run, batches) for one, run in pairs])


def _row(one: Compared, run: History, batches: Sequence[int]) -> list[str]:
    latency = run.after.latency
    layers, gone = len(run.layers), len(run.removed_layers)
    done = len(run.of("epoch"))
    family = ", of a family" if run.family else ""
    return [
        goal(run) + family,
        f"{count_text(run.macs)} ({percent(run.macs / run.before.macs)})",
        f"{count_text(run.params)} ({percent(run.params / run.before.params)})",
        *(latency_text(latency[b]).replace(" (", "\n(") if b in latency else "–" for b in batches),
        _tested(one, run),
        "–" if run.validation_score is None else score_text(run.metric)(run.validation_score),
        f"{layers - gone} of {layers}" if layers else "–",
        f"{done}" if run.status == "finished" else f"{done}, {_STATUS[run.status]}",
        "–" if run.result is None else _duration(run.result["seconds"]),
    ]


def _tested(one: Compared, run: History) -> str:
    """Write the score; an accuracy with the interval that so many test images give."""
    if run.test_score is None:
        return "–"
    written = score_text(run.metric)(run.test_score)
    if one.hits is None:
        return written
    low, high = (100 * bound for bound in one.hits.interval)
    return f"{written}\n({low:.1f}–{high:.1f})"


def notes(runs: Sequence[History]) -> list[str]:
    """Return what a reader must know to read the figures."""
    found: list[str] = []
    shapes = dict.fromkeys(
        "×".join(str(n) for n in run.result["image_shape"]) for run in runs if run.result
    )
    if any(shapes):
        found.append(f"MACs are those of one {runs[0].sample} of {' or '.join(shapes)}.")
    machines = dict.fromkeys(_machine(run.config) for run in runs if run.after.latency)
    latencies = [network.latency for run in runs for network in (run.before, run.after)]
    scores = compare(runs)
    if images := sorted({one.hits.images for one in scores if one.hits is not None}):
        counts = " or ".join(f"{count:,}" for count in images)
        low_high = _tested(scores[0], runs[0]).partition("\n")[2]
        where = f"95 % interval {low_high}" if len(runs) == 1 else "in brackets their 95 % interval"
        found.append(f"Test accuracies count {counts} images; {where}.")
    differences = [f"{one.name} {text}" for one in scores if (text := difference_text(one))]
    if differences and any(run.full_network for run in runs):
        found.append(f"Against the full network: {', '.join(differences)}.")
    found += latency_notes(latencies, "; ".join(machines))
    if any(run.before.test_score is None and run.test_score is not None for run in runs):
        found.append("The full networks were not trained alone (--baseline full does that).")
    if len({_subject(run) for run in runs}) > 1:
        found.append("These runs differ in model or data: compare their scores with care.")
    families = {run.family for run in runs if run.family}
    if any(sum(run.family == family for run in runs) > 1 for family in families):
        found.append(
            "Members of a family share the beginning of their training: their scores are not "
            "independent."
        )
    if worse := _worse(runs):
        found.append(f"Worse than a smaller member of its family: {', '.join(worse)}.")
    return [" ".join(found)] if found else []


def _worse(runs: Sequence[History]) -> list[str]:
    """Name the members that score worse than a smaller one of their family."""
    tested = [run for run in runs if run.family and run.test_score is not None]
    return [
        one.name
        for one in tested
        if any(
            other.family == one.family
            and other.macs < one.macs
            and one.metric.better(other.test_score or 0.0, one.test_score or 0.0)
            for other in tested
        )
    ]


def made(run: History) -> list[tuple[str, str]]:
    """Return how a run was made: command, seed, machine and versions, by name."""
    config, found = run.config, run.environment or {}
    hardware, git = found.get("hardware", {}), found.get("git", {}).get("guyot")
    command = " ".join(shlex.quote(part) for part in found.get("command", ()))
    versions = found.get("versions", {}).items()
    pairs = [
        ("state", _STATUS[run.status]),
        ("command", command),
        ("seed", str(config["seed"])),
        ("started", found.get("started", "")),
        ("device", f"{_place(config)}; {hardware.get('cpu', '')}".removesuffix("; ")),
        ("graphics", ", ".join(hardware.get("gpus", ()))),
        ("versions", ", ".join(f"{name} {version}" for name, version in versions)),
        ("sources", f"{git['commit'][:12]}{', changed' * git['changed']}" if git else ""),
    ]
    return [(name, value) for name, value in pairs if value]


def epochs(run: History) -> list[list[str]]:
    """Return a row per epoch, columns as in `epoch_columns`."""
    metric, written = run.metric, score_text(run.metric)
    return [
        [
            str(line["step"] if line["epoch"] is None else line["epoch"]),
            line["phase"],
            _known(line["loss"], "{:.4f}".format),
            _known(line[metric.key], written),
            _known(line[f"validation_{metric.key}"], written),
            percent(line["macs"] / run.before.macs),
            percent(line["params"] / run.before.params),
            str(line["undecided"]),
            _known(line["lr"], "{:.2g}".format),
            _known(line["seconds"], "{:.1f}".format),
        ]
        for line in run.of("epoch")
    ]


def _known(value: float | None, text: Callable[[float], str]) -> str:
    return "–" if value is None else text(value)


def summary(run: History) -> dict[str, Any]:
    """Return the figures of a run as plain data for JSON."""
    return {
        "name": run.name,
        "status": run.status,
        "goal": goal(run),
        "macs": {"before": run.before.macs, "after": run.macs},
        "params": {"before": run.before.params, "after": run.params},
        "layers": {"before": len(run.layers), "after": len(run.layers) - len(run.removed_layers)},
        f"test_{run.metric.key}": run.test_score,
        f"validation_{run.metric.key}": run.validation_score,
    }
