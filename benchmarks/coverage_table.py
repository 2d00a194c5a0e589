"""The page docs/coverage.md from the results of coverage.py."""

import re
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

Json = dict[str, Any]
LIBRARIES = ("torchvision", "timm", "transformers")
USUAL = {"an input of the network", "an output of the network"}
"""Reasons that every model has."""

COLUMNS = {
    "model": "",
    "passes": "",
    "groups": "groups of units that passed verification",
    "units": "their units",
    "layers": "removable residual branches, of those that the architecture has",
    "refused": "groups and layers that were found but failed verification",
    "frozen": "axes that cannot shrink besides inputs and outputs; why is listed below the table",
    "no rule": "operators that guyot has no rule for",
    "MMACs": "millions of multiply-accumulates of one sample at the size of the example",
    "counted": "whether `torch.utils.flop_counter` says the same, at full size and after removal",
    "prunable MACs %": "what the smallest network, every group at one unit and no layer, lacks",
    "prunable params %": "the same in parameters",
    "MACs left %": "after a random third of every group's units and of the layers has gone",
    "step": "one training step and one evaluation after that, all finite",
    "seconds": "CPU seconds of `find_structures` with verification",
    "torch-pruning": "",
    "its MACs left %": "after a random third of the channels has gone; it has no layers",
    "its seconds": "CPU seconds to build its graph and prune",
    "problems": "",
}
INTRODUCTION = """# Coverage

Can guyot find the structure of the model you already have? Every classification model of
torchvision and a list of timm and transformers, made with random weights and examined as it is,
without annotation. Written by `python benchmarks/coverage.py --table` from the JSON files in
`benchmarks/results/coverage/`, one for each model, which hold the command, the machine, the commit
and the versions. `python benchmarks/coverage.py` examines the models that have no result yet.

Each examination has a process of its own, which may use the memory and CPU time that its command
says. A model passes if

- something can go, and as many residual branches are found as its architecture has, which
  `tests/helpers/zoo.py` counts by classes of blocks (a branch without convolution or linear layer,
  such as the pooling of PoolFormer, saves no MACs and does not count),
- its MACs are those of `torch.utils.flop_counter`, at full size and after a random third of every
  group's units and of the layers has gone; an operator without a rule that cost MACs would show
  here,
- the network without them gives the outputs of the network in which gates mask them, in float64,
- it then goes through a training step and an evaluation.

What fails is left alone by guyot (closed) or ends with an error; a network that was pruned wrongly
without notice would have *masked and sliced differ* among its problems.
[Torch-Pruning](https://github.com/VainF/Torch-Pruning) is asked for the same: prune a random third
of the channels, a training step, an evaluation. It passes if MACs went down and nothing failed;
whether its result is right is not checked.

"""


def percent(value: float | None) -> str:
    """A share as percent, blank when unknown."""
    return "" if value is None else f"{100 * value:.0f}"


def cell(text: str, length: int = 160) -> str:
    """Text that fits into a cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= length else f"{text[: length - 1]}…"


def verdict(found: Json | None) -> str:
    """Passed, or not, or not run."""
    if found is None:
        return "not run"
    return "yes" if found["passed"] else "**no**"


def left(found: Json) -> float | None:
    """Share of the MACs after the removal."""
    return found["macs_after"] / found["macs"] if "macs_after" in found else None


def blocks(text: str) -> str:
    """A text with * for the numbers of blocks.

    Example:
        >>> blocks("stages.0.blocks.11.attn sums over it (softmax)")
        'stages.*.blocks.*.attn sums over it (softmax)'
    """
    return re.sub(r"(?<=\.)\d+(?=[.: ]|$)", "*", text)


def frozen_of(found: Json) -> dict[str, list[str]]:
    """Reason -> names of what cannot shrink, without inputs and outputs."""
    return {k: v for k, v in found.get("frozen", {}).items() if k not in USUAL}


def counted(found: Json) -> str:
    """Do the MACs agree with those that PyTorch counts, at both sizes?"""
    if "macs_after" not in found or "macs_after_counted" not in found:
        return ""
    same = all(found[key] == found[f"{key}_counted"] for key in ("macs", "macs_after"))
    return "yes" if same else "**no**"


def row(name: str, result: Json) -> str:
    """One line of the main table."""
    ours, theirs = result.get("guyot"), result.get("torch-pruning")
    found, other = ours or {"problems": []}, theirs or {}
    known = "layers" in found
    unknown = {
        match[1]
        for reason in found.get("frozen", {})
        if (match := re.match(r"operator (\S+) in .* has no rule", reason))
    }
    refused = sum("cannot be removed" in text for text in found.get("warnings", ()))
    trained = found.get("trained", found.get("passed"))
    cells = [
        name.partition("/")[2],
        verdict(ours),
        str(found.get("groups", "")),
        str(found.get("units", "")),
        f"{found['layers']} of {found['layers_expected']}" if known else "",
        str(refused) if known else "",
        str(sum(map(len, frozen_of(found).values()))) if known else "",
        ", ".join(sorted(unknown)),
        f"{found['macs'] / 1e6:.3g}" if known else "",
        counted(found),
        percent(found.get("prunable_macs")),
        percent(found.get("prunable_params")),
        percent(left(found)),
        ("yes" if trained else "**no**") if known else "",
        f"{found['seconds']:.1f}" if "seconds" in found else "",
        verdict(theirs),
        percent(left(other)),
        f"{other['seconds']:.1f}" if "seconds" in other else "",
        cell("; ".join(found["problems"])),
    ]
    return f"| {' | '.join(cells)} |"


def reasons(result: Json) -> str | None:
    """What cannot shrink in a model and why, as one line of a list; None when nothing notable."""
    together: dict[str, list[str]] = {}
    for reason, names in frozen_of(result.get("guyot") or {}).items():
        together.setdefault(blocks(reason), []).extend(map(blocks, names))
    if not together:
        return None
    parts = [
        f"{cell(reason, 200)} ({len(names)}: {cell(', '.join(dict.fromkeys(names)), 60)})"
        for reason, names in together.items()
    ]
    shown, rest = parts[:6], len(parts) - 6
    more = f"; and {rest} more in the JSON" if rest > 0 else ""
    return f"- **{result['model'].partition('/')[2]}**: {'; '.join(shown)}{more}"


def refusals(result: Json) -> str | None:
    """What was found in a model but failed verification, as one line of a list."""
    together: dict[str, list[str]] = {}
    for text in (result.get("guyot") or {}).get("warnings", ()):
        name, cannot, reason = text.partition(" cannot be removed: ")
        if cannot:
            together.setdefault(blocks(reason), []).append(blocks(name))
    parts = [
        f"{cell(', '.join(dict.fromkeys(names)), 80)}: {cell(reason, 160)} ({len(names)})"
        for reason, names in together.items()
    ]
    if not parts:
        return None
    shown, rest = parts[:4], len(parts) - 4
    more = f"; and {rest} more in the JSON" if rest > 0 else ""
    return f"- **{result['model'].partition('/')[2]}**: {'; '.join(shown)}{more}"


def failures(method: str, results: Iterable[Json]) -> list[str]:
    """The models that a method does not pass, with the reason, as lines of a list."""
    return [
        f"- **{result['model'].partition('/')[2]}**: {cell('; '.join(found['problems']), 300)}"
        for result in results
        if not (found := result.get(method, {"passed": True}))["passed"]
    ]


def listed(title: str, lines: Iterable[str | None]) -> list[str]:
    """A titled list, nothing when it is empty."""
    given = [line for line in lines if line]
    return [title, "", *given, ""] if given else []


def section(library: str, names: Sequence[str], results: dict[str, Json]) -> str:
    """The table of one library and what it leaves out."""
    mine = [results[name] for name in names if name in results]
    lines = [
        f"## {library}",
        "",
        *listed("Does not pass with guyot:", failures("guyot", mine)),
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
        *(row(name, results.get(name, {})) for name in names),
        "",
        *listed("What cannot shrink and why, besides inputs and outputs:", map(reasons, mine)),
        *listed("What was found but failed verification and stays:", map(refusals, mine)),
        *listed("Does not pass with torch-pruning:", failures("torch-pruning", mine)),
    ]
    return "\n".join(lines)


def summary(names: dict[str, list[str]], results: dict[str, Json]) -> str:
    """How many models of each library pass; what was not run does not."""

    def share(some: Sequence[Json], method: str, of: int) -> str:
        passed = sum(r[method]["passed"] for r in some if method in r)
        run = sum(method in r for r in some)
        missing = f" ({of - run} not run)" if run < of else ""
        return f"{passed} of {of}: {100 * passed / of:.0f} %{missing}"

    def typical(some: Sequence[Json], method: str) -> str:
        seconds = [r[method]["seconds"] for r in some if "seconds" in r.get(method, {})]
        return f"{median(seconds):.1f}" if seconds else ""

    lines = [
        "| library | guyot passes | torch-pruning passes | layers found | median seconds | its |",
        "|---|---|---|---|---|---|",
    ]
    for library, given in names.items():
        some = [results[name] for name in given if name in results]
        ours = [r["guyot"] for r in some if "layers" in r.get("guyot", {})]
        layers = f"{sum(f['layers'] for f in ours)} of {sum(f['layers_expected'] for f in ours)}"
        cells = [library, *(share(some, m, len(given)) for m in ("guyot", "torch-pruning"))]
        cells += [layers, typical(some, "guyot"), typical(some, "torch-pruning")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n"


def provenance(results: Iterable[Json]) -> str:
    """Machines, versions and commits that the results come from."""
    runs = [found for r in results for m in ("guyot", "torch-pruning") if (found := r.get(m))]
    machines = sorted({run["machine"]["cpu"] for run in runs})
    versions: dict[str, dict[str, int]] = {}
    for run in runs:
        for package, number in run.get("versions", {}).items():
            count = versions.setdefault(package, {})
            count[number] = count.get(number, 0) + 1
    commits = versions.pop("guyot", {})
    said = ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in sorted(versions.items()))
    ours = ", ".join(f"{commit} ({count})" for commit, count in commits.items())
    return (
        f"Seconds are of one thread of a machine ({'; '.join(machines)}) that had much other work "
        f"to do: they tell the fast from the slow. Versions: {said}. Commits of guyot, with the "
        f"number of models examined at each: {ours}.\n\n"
    )


def page(results: Iterable[Json], names: Iterable[str]) -> str:
    """The whole page.

    Args:
        results: one for each model that was examined.
        names: of all models.
    """
    found = {result["model"]: result for result in results}
    of: dict[str, list[str]] = {library: [] for library in LIBRARIES}
    for name in names:
        of[name.partition("/")[0]].append(name)
    text = INTRODUCTION + summary(of, found) + provenance(found.values())
    text += "".join(f"- *{name}*: {what}\n" for name, what in COLUMNS.items() if what) + "\n"
    return text + "\n".join(section(library, of[library], found) for library in LIBRARIES)
