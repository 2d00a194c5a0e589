"""The page docs/coverage.md from the results of coverage.py."""

from typing import Any

Json = dict[str, Any]
LIBRARIES = ("torchvision", "timm", "transformers")

COLUMNS = [
    "model",
    "passes",
    "groups",
    "units",
    "layers",
    "excluded",
    "prunable MACs %",
    "prunable params %",
    "seconds",
    "torch-pruning",
    "its seconds",
    "problems",
]
INTRODUCTION = """# Coverage

Written by `python benchmarks/coverage.py --table` from the JSON files in
`benchmarks/results/coverage/`, one for each model, which hold the command, the machine and the
versions. `python benchmarks/coverage.py` examines the models that have no result yet.

Each model is made with random weights and examined as it is, without annotation, in a process of
its own, which may use {limits}. A model passes if

- something can go, and as many residual branches are found as its architecture has, which
  `tests/zoo.py` counts by classes of blocks (a branch without convolution or linear layer, such as
  the pooling of PoolFormer, saves no MACs and does not count),
- its MACs are those of `torch.utils.flop_counter`, at full size and after a random third of every
  group's units and of the layers has gone,
- the network without them gives the outputs of the network in which gates mask them, in float64,
- it then goes through a training step and an evaluation.

What fails is left alone by guyot (closed) or ends with an error; nothing here was pruned wrongly
without notice: the column of problems would say *masked and sliced differ*.

*Prunable* is what the smallest network (every group at one unit, no layer) lacks of MACs and of
parameters. *Excluded* groups and layers were found but failed verification. *Seconds* are CPU
seconds of `find_structures` with verification, on one thread of a machine that had other work to
do. [Torch-Pruning](https://github.com/VainF/Torch-Pruning) is asked for the same: prune a random
third of the channels (it has no layers), a training step, an evaluation; its seconds are those of
building the graph and pruning, and whether its result is right is not checked.

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


def row(result: Json) -> str:
    """One line of the main table."""
    ours, theirs = result.get("guyot"), result.get("torch-pruning")
    found = ours or {"problems": ["not run"]}
    excluded = sum("cannot be removed" in text for text in found.get("warnings", ()))
    cells = [
        result["model"].partition("/")[2],
        verdict(ours),
        str(found.get("groups", "")),
        str(found.get("units", "")),
        f"{found['layers']} of {found['layers_expected']}" if "layers" in found else "",
        str(excluded) if "layers" in found else "",
        percent(found.get("prunable_macs")),
        percent(found.get("prunable_params")),
        f"{found['seconds']:.1f}" if "seconds" in found else "",
        verdict(theirs),
        f"{theirs['seconds']:.1f}" if theirs and "seconds" in theirs else "",
        cell("; ".join(found["problems"])),
    ]
    return f"| {' | '.join(cells)} |"


def frozen(result: Json) -> str | None:
    """What cannot shrink in a model and why, as one line of a list; None when nothing notable."""
    found = result.get("guyot") or {}
    usual = {"an input of the network", "an output of the network"}
    reasons = [
        f"{cell(reason, 200)} ({len(names)}: {cell(', '.join(names), 60)})"
        for reason, names in found.get("frozen", {}).items()
        if reason not in usual
    ]
    if not reasons:
        return None
    shown, rest = reasons[:4], len(reasons) - 4
    more = f"; and {rest} more in the JSON" if rest > 0 else ""
    return f"- **{result['model'].partition('/')[2]}**: {'; '.join(shown)}{more}"


def section(library: str, results: list[Json]) -> str:
    """Table, list of what is frozen and list of torch-pruning's failures for one library."""
    mine = [r for r in results if r["model"].startswith(f"{library}/")]
    passed = {
        method: sum(r[method]["passed"] for r in mine if method in r)
        for method in ("guyot", "torch-pruning")
    }
    count = f"{passed['guyot']} of {len(mine)} models pass with guyot"
    failures = [
        f"- **{r['model'].partition('/')[2]}**: {cell('; '.join(theirs['problems']))}"
        for r in mine
        if not (theirs := r.get("torch-pruning", {"passed": True}))["passed"]
    ]
    lines = [
        f"## {library}",
        "",
        f"{count}, {passed['torch-pruning']} with torch-pruning.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
        *map(row, mine),
        "",
        "What cannot shrink, besides inputs and outputs:",
        "",
        *(line for line in map(frozen, mine) if line),
        "",
        "Where torch-pruning does not pass:",
        "",
        *failures,
        "",
    ]
    return "\n".join(lines)


def page(results: list[Json]) -> str:
    """The whole page."""
    runs = [r["guyot"] for r in results if "guyot" in r]
    machines = sorted({run["machine"]["cpu"] for run in runs})
    versions: dict[str, set[str]] = {}
    for result in results:
        for method in ("guyot", "torch-pruning"):
            for package, number in result.get(method, {}).get("versions", {}).items():
                versions.setdefault(package, set()).add(number)
    said = ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in sorted(versions.items()))
    text = INTRODUCTION.format(limits="6 GB and 180 CPU seconds unless its command says otherwise")
    text += f"{'; '.join(machines)}; {said}.\n\n"
    return text + "\n".join(section(library, results) for library in LIBRARIES)
