"""The page docs/coverage.md and its tables from the results of covered.py."""

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any

Json = dict[str, Any]
LIBRARIES = ("torchvision", "timm", "transformers")
USUAL = {"an input of the network", "an output of the network"}
"""Reasons that every model has."""

COLUMNS = {
    "library": "",
    "model": "",
    "passes": "",
    "groups": "",
    "units": "",
    "layers": "",
    "layers expected": "",
    "refused": "groups and layers that were found but failed verification",
    "frozen": "axes that cannot shrink besides inputs and outputs",
    "no rule": "",
    "MMACs": "",
    "counted": "whether `torch.utils.flop_counter` gives the same MACs at both sizes",
    "prunable MACs %": "MACs that the smallest network (one unit per group, no layer) saves",
    "prunable params %": "",
    "MACs left %": "MACs after the removal of a random third of all units and layers",
    "step": "",
    "seconds": "",
    "torch-pruning": "",
    "torch-pruning MACs left %": "MACs after the removal of a random third of the channels",
    "torch-pruning seconds": "",
    "problems": "",
}
KINDS = {
    "statistics of": "a LayerNorm or GroupNorm computes statistics over it",
    "scores of": "attention scores sum over it: the size of a head",
    "size of a head": "the size of a head is written into the attention",
    "takes its entries apart": "the model splits it into parts, such as query, key and value",
    "looks its entries up by number": "the model uses it as a table",
    "product of activations": "a product of two activations sums over it",
    "weight that is computed": "a weight that the model computes reads it",
    "own forward does not run": "the model's own forward does not run without it",
    "has no rule": "guyot has no rule for an operator",
}
"""What a reason contains -> the same in plain words, for the page's table of reasons."""

TABLE, REASONS = "data/coverage.csv", "data/coverage_reasons.csv"
OTHERS = "data/coverage_others.csv"
"""The tables, relative to the page."""

INTRODUCTION = """# Coverage

This page answers one question: does guyot find the structure of the model that you already have?
It covers every classification model of torchvision, a list of models of timm and transformers, and
models of other kinds: segmentation, detection, text, speech and diffusion. Each model has random
weights and no annotations.

`python benchmarks/covered.py` examines the models, and with `--table` writes this page.
`benchmarks/results/coverage/` has one JSON file per model.

## What a model must do to pass

A model passes if all of this is true:

- Something can be removed, and guyot finds as many residual branches as the architecture has.
  A branch without convolution or linear layer saves no MACs and does not count. Neither does one
  that reads no input of the network.
- guyot counts the same MACs as `torch.utils.flop_counter`, at full size and after the removal of a
  random third of the units of every group and of the layers.
- The smaller network gives the same outputs as the full network with gates at 0, in float64.
- The smaller network runs one training step and one evaluation.

Models of [other libraries](#other-libraries) have to pass more:

- A copy, a pickle and a file of the smaller network give the same outputs.
- The hooks on every module that stays fire.
- In a training step, outputs, buffers and the gradient of every parameter that stays are those of
  the full network with gates at 0, and the same gradients are `None`.
- With another batch and another size of image, sound or text, the outputs agree as well.
- Models that make text make the same with a cache and without, and have the same logits.

[Torch-Pruning](https://github.com/VainF/Torch-Pruning) gets the same task: prune a random third of
the channels, then one training step and one evaluation. It passes if MACs fell and nothing raised
an error. Nobody checks whether its result is right.

## Results

"""


def percent(value: float | None) -> str:
    """Return a share as percent, or nothing if it is unknown."""
    return "" if value is None else f"{100 * value:.0f}"


def cell(text: str, length: int = 160) -> str:
    """Return a text that fits into a cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return text if len(text) <= length else f"{text[: length - 1]}…"


def verdict(found: Json | None) -> str:
    """Return whether a model passed, failed or was not run."""
    if found is None:
        return "not run"
    return "yes" if found["passed"] else "no"


def left(found: Json) -> float | None:
    """Return the share of the MACs after the removal."""
    return found["macs_after"] / found["macs"] if "macs_after" in found else None


def blocks(text: str) -> str:
    """Replace the numbers of blocks by *.

    Example:
        >>> blocks("stages.0.blocks.11.attn sums over it (softmax)")
        'stages.*.blocks.*.attn sums over it (softmax)'
    """
    return re.sub(r"(?<=\.)\d+(?=[.: ]|$)", "*", text)


def frozen_of(found: Json) -> dict[str, list[str]]:
    """Return reason -> names of what cannot shrink, without inputs and outputs."""
    return {k: v for k, v in found.get("frozen", {}).items() if k not in USUAL}


def counted(found: Json) -> str:
    """Return whether PyTorch counts the same MACs at both sizes."""
    if "macs_after" not in found or "macs_after_counted" not in found:
        return ""
    same = all(found[key] == found[f"{key}_counted"] for key in ("macs", "macs_after"))
    return "yes" if same else "no"


def row(name: str, result: Json) -> list[str]:
    """Return one line of the table of models."""
    library, _, model = name.partition("/")
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
    return [
        library,
        model,
        verdict(ours),
        str(found.get("groups", "")),
        str(found.get("units", "")),
        str(found.get("layers", "")),
        str(found.get("layers_expected", "")),
        str(refused) if known else "",
        str(sum(map(len, frozen_of(found).values()))) if known else "",
        " ".join(sorted(unknown)),
        f"{found['macs'] / 1e6:.6g}" if known else "",
        counted(found),
        percent(found.get("prunable_macs")),
        percent(found.get("prunable_params")),
        percent(left(found)),
        ("yes" if trained else "no") if known else "",
        f"{found['seconds']:.1f}" if "seconds" in found else "",
        verdict(theirs),
        percent(left(other)),
        f"{other['seconds']:.1f}" if "seconds" in other else "",
        "; ".join(" ".join(problem.split()) for problem in found["problems"]),
    ]


def reasons(result: Json) -> Iterator[list[str]]:
    """Yield what stays in a model or does not pass, and why, as lines of the table of reasons."""
    library, _, model = result["model"].partition("/")
    ours = result.get("guyot") or {}
    kinds: dict[str, list[tuple[str, str]]] = {"frozen": [], "refused": []}
    for reason, names in frozen_of(ours).items():
        kinds["frozen"] += [(reason, name) for name in names]
    for text in ours.get("warnings", ()):
        name, cannot, reason = text.partition(" cannot be removed: ")
        if cannot:
            kinds["refused"].append((reason, name))
    for kind, pairs in kinds.items():
        together: dict[str, list[str]] = {}
        for reason, name in pairs:
            together.setdefault(blocks(" ".join(reason.split())), []).append(blocks(name))
        for reason, names in together.items():
            yield [library, model, kind, reason, str(len(names)), " ".join(dict.fromkeys(names))]
    for method in ("guyot", "torch-pruning"):
        found = result.get(method, {"passed": True})
        if not found["passed"]:
            problems = "; ".join(" ".join(problem.split()) for problem in found["problems"])
            yield [library, model, f"{method} does not pass", problems, "1", ""]


def commas(lines: Iterable[Sequence[str]]) -> str:
    """Return lines of cells as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def failures(results: Iterable[Json]) -> str:
    """Return the models that do not pass with guyot and why, as a list."""
    lines = [
        f"- `{result['model']}`: {cell('; '.join(found['problems']), 300)}"
        for result in results
        if not (found := result.get("guyot", {"passed": True}))["passed"]
    ]
    return "".join(
        ("These models do not pass with guyot:\n\n", "\n".join(lines), "\n\n") if lines else ()
    )


def kinds(results: Sequence[Json]) -> str:
    """Return how many models keep something for each kind of reason."""
    count: Counter[str] = Counter()
    for result in results:
        found = frozen_of(result.get("guyot") or {})
        count.update({kind for part, kind in KINDS.items() if any(part in text for text in found)})
    lines = ["| reason | models |", "|---|---|"]
    return "\n".join(lines + [f"| {kind} | {number} |" for kind, number in count.most_common()])


def summary(names: dict[str, list[str]], results: dict[str, Json]) -> str:
    """Return how many models of each library pass. A model that was not run does not pass."""

    def share(some: Sequence[Json], method: str, of: int) -> str:
        passed = sum(r[method]["passed"] for r in some if method in r)
        run = sum(method in r for r in some)
        missing = f" ({of - run} not run)" if run < of else ""
        return f"{passed} of {of}: {100 * passed / of:.0f} %{missing}"

    def typical(some: Sequence[Json], method: str) -> str:
        seconds = [r[method]["seconds"] for r in some if "seconds" in r.get(method, {})]
        return f"{median(seconds):.1f}" if seconds else ""

    titles = ("guyot passes", "torch-pruning passes", "layers found", "guyot s", "torch-pruning s")
    lines = [
        f"| library | {' | '.join(titles)} |",
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


CHECKS = ("outputs", "copies", "hooks", "gradients", "other sizes", "cache")
"""The checks of other libraries' models, in the order of the table."""


def others_table(names: Iterable[str], results: dict[str, Json]) -> list[list[str]]:
    """Return the table of other libraries' models, its titles first."""
    lines = [["library", "model", "passes", "groups", "layers", "MACs left %", *CHECKS]]
    for name in names:
        library, _, model = name.partition("/")
        found = results.get(name, {}).get("guyot")
        if found is None:
            lines.append([library, model, "not run", *[""] * (3 + len(CHECKS))])
            continue
        checks = found.get("checks", {})
        cells = [library, model, verdict(found), str(found.get("groups", ""))]
        cells += [f"{found['layers']} of {found['layers_expected']}" if "layers" in found else ""]
        cells += [percent(left(found))]
        cells += ["" if c not in checks else "no" if checks[c] else "yes" for c in CHECKS]
        lines.append(cells)
    return lines


def others_text(names: Iterable[str], results: dict[str, Json]) -> str:
    """Return what the page says of other libraries' models, and why some do not pass."""
    names = list(names)
    known = [n for n in names if n in results]
    passed = [name for name in known if results[name]["guyot"]["passed"]]
    wrong = sum(any(results[n]["guyot"].get("checks", {}).values()) for n in known)
    of, good = (Counter(name.partition("/")[0] for name in some) for some in (names, passed))
    libraries = [f"{library} {good[library]} of {count}" for library, count in of.items()]
    why = [
        f"- `{name}`: {cell('; '.join(results[name]['guyot']['problems']), 300)}"
        for name in known
        if name not in passed
    ]
    verb = "give" if wrong > 1 else "gives"
    text = f"""## Other libraries

{len(passed)} of {len(names)} models pass: {", ".join(libraries)}.
{wrong or "None"} of the {len(known)} that were examined {verb} another result than the masked
network. [`coverage_others.csv`]({OTHERS}) has one line per model. The models are small: few and
narrow blocks. The detectors are written for this benchmark in the shape of recent YOLO networks.

"""
    return text + ("These do not pass:\n\n" + "\n".join(why) + "\n\n" if why else "")


def provenance(results: Iterable[Json]) -> str:
    """Return the machines, versions and commits that the results come from."""
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
        "The seconds are medians over the models, from one thread of a busy machine "
        f"({'; '.join(machines)}). They separate fast from slow and no more. Versions: {said}. "
        f"Commits of guyot, with the number of models examined at each: {ours}.\n\n"
    )


def ordered(names: Iterable[str]) -> dict[str, list[str]]:
    """Return the names of all models by library."""
    of: dict[str, list[str]] = {library: [] for library in LIBRARIES}
    for name in names:
        of[name.partition("/")[0]].append(name)
    return {library: given for library, given in of.items() if given}


def files(
    results: Iterable[Json], names: Iterable[str], others: Sequence[str] = ()
) -> dict[str, str]:
    """Return the page and its tables: path below docs/ -> text.

    Args:
        results: one for each model that was examined.
        names: of all models of the first tables.
        others: names of the models that are examined more thoroughly.
    """
    found = {result["model"]: result for result in results}
    of = ordered(names)
    some = [found[name] for given in of.values() for name in given if name in found]
    more = [found[name] for name in others if name in found]
    table = [[*COLUMNS], *(row(n, found.get(n, {})) for given in of.values() for n in given)]
    why = [["library", "model", "kind", "reason", "count", "names"]]
    why += [line for result in (*some, *more) for line in reasons(result)]
    text = INTRODUCTION + summary(of, found) + provenance(found.values()) + failures(some)
    text += others_text(others, found) if others else ""
    text += f"""## What stays, and why

Inputs and outputs of a network stay as they are. The table gives the other common reasons, with the
number of models in which something stays for that reason. *It* is the axis that stays.

{kinds(some)}

[`coverage_reasons.csv`]({REASONS}) has every reason for every model. `guyot inspect MODEL` prints
the reasons for a model of yours.

## The table of models

[`coverage.csv`]({TABLE}) has one line per model. Some columns need a word:

"""
    text += "".join(f"- *{name}*: {what}\n" for name, what in COLUMNS.items() if what)
    made = {"coverage.md": text, TABLE: commas(table), REASONS: commas(why)}
    return made | ({OTHERS: commas(others_table(others, found))} if others else {})
