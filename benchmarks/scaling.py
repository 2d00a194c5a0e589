"""How the time and memory of finding structures grow with depth, and with the weights.

    python benchmarks/scaling.py measure     # about twenty-five minutes on a quiet core
    python benchmarks/scaling.py table       # docs/scaling.md, its figure and its table

Every measurement is a process of its own with one thread; the least of three counts. Time is that
of `find_structures` with verification, CPU seconds of the process, imports excluded; memory is how
much the peak of the resident set grows meanwhile. The exponent is the slope of a straight line
through the logarithms of time and depth, for the deeper half of the networks: at small depth a
constant part dominates. Families that are not measured keep their rows. In `resnet-whole` equal
blocks are looked at one by one.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from runs import machine
from torch import nn

from guyot import find_structures
from guyot.app.models import resnet
from guyot.costs.complexity import Complexity
from guyot.structures import discover

RESULTS = Path(__file__).parent / "results" / "scaling.json"
DOCS = Path(__file__).parents[1] / "docs"
PAGE, TABLE = DOCS / "scaling.md", DOCS / "data" / "scaling.csv"
FIGURE = DOCS / "figures" / "scaling.svg"
DEPTHS = {
    "resnet": (20, 56, 110, 218, 434, 866, 1202),
    "resnet-whole": (218, 434, 1202),
    "vit": (12, 24, 48, 96),
    "resnet50": (50,),
    "llama-small": (12,),
    "llama-bf16": (20,),
    "llama-meta": (32,),
}
LABELS = {
    "resnet": "CIFAR ResNet",
    "resnet-whole": "CIFAR ResNet, every block by itself",
    "vit": "ViT, width 32",
    "resnet50": "torchvision resnet50 at 224 pixels",
    "llama-small": "Llama, width 1024",
    "llama-bf16": "Llama, width 2048, bfloat16",
    "llama-meta": "Llama, width 4096, on the meta device",
}
DRAWN = ("resnet", "resnet-whole", "vit", "resnet50")
LLAMAS = {"llama-small": 1024, "llama-bf16": 2048, "llama-meta": 4096}


def build(family: str, depth: int) -> tuple[nn.Module, torch.Tensor]:
    """A network and its input; images are small where depth is the question."""
    if family in ("resnet", "resnet-whole"):
        return resnet(depth), torch.randn(2, 3, 8, 8)
    if family == "resnet50":
        from torchvision.models import resnet50

        return resnet50(), torch.randn(2, 3, 224, 224)
    if family in LLAMAS:
        return llama(LLAMAS[family], depth, family), torch.randint(32_000, (1, 16))
    from timm.models.vision_transformer import VisionTransformer

    size = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "num_classes": 10}
    return VisionTransformer(depth=depth, **size), torch.randn(2, 3, 16, 16)


def llama(width: int, depth: int, family: str) -> nn.Module:
    """A network of the shape of Llama, with random weights or none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=32_000,
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 128,
    )
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if family == "llama-bf16" else default)
    try:
        with torch.device("meta" if family == "llama-meta" else "cpu"):
            return LlamaForCausalLM(shape)
    finally:
        torch.set_default_dtype(default)


def peak() -> float:
    """Peak resident set so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def once(family: str, depth: int) -> dict[str, float]:
    """In this process: seconds, megabytes, and what a step of the controller's prices takes."""
    torch.set_num_threads(1)
    warm, image = build("resnet", 8)[0], torch.randn(2, 3, 8, 8)
    find_structures(warm, (image,))  # imports
    model, inputs = build(family, depth)
    if family == "resnet-whole":
        discover.short_of = lambda *_: None
    before, start = peak(), time.process_time()
    structures = find_structures(model, (inputs,))
    seconds = time.process_time() - start
    complexity, theta = Complexity(structures), torch.full((structures.index.total,), 0.9)
    complexity.prices(theta)
    start = time.process_time()
    for _ in range(20):
        complexity.prices(theta)
    return {
        "seconds": seconds,
        "megabytes": peak() - before,
        "prices_ms": 50 * (time.process_time() - start),
        "parameters": sum(p.numel() for p in model.parameters()),
        "gates": structures.index.total,
        "groups": len(structures.groups),
        "layers": len(structures.layers),
    }


def measure(families: list[str], repeats: int, deepest: int) -> list[dict[str, Any]]:
    """All measurements, each in its own process."""
    rows: list[dict[str, Any]] = []
    for family in families:
        for depth in [depth for depth in DEPTHS[family] if depth <= deepest]:
            command = [sys.executable, "-W", "ignore", __file__, "once", family, str(depth)]
            runs = [
                json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                for _ in range(repeats)
            ]
            least = min(runs, key=lambda run: run["seconds"])
            spread = [run["seconds"] for run in runs]
            rows.append({"family": family, "depth": depth, **least, "all_seconds": spread})
            print(f"{family} {depth}: {least['seconds']:.2f} s, {least['megabytes']:.0f} MB")
    return rows


def deeper(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The deeper half of the networks of a family."""
    return rows[max(0, len(rows) // 2 - 1) :]


def exponent(rows: list[dict[str, Any]]) -> float | None:
    """Slope of log time over log depth, for the deeper half."""
    deep = deeper(rows)
    if len(deep) < 2:
        return None
    xs = [math.log(row["depth"]) for row in deep]
    ys = [math.log(row["seconds"]) for row in deep]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    slope = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return slope / sum((a - x) ** 2 for a in xs)


def page(found: dict[str, Any]) -> str:
    """Return the documentation page."""
    deepest = max(found["rows"], key=lambda row: row["depth"])
    large = "\n".join(
        f"| {LABELS[row['family']]} | {row['parameters'] / 1e6:,.0f} M | {row['seconds']:.1f} | "
        f"{row['megabytes']:,.0f} |"
        for row in found["rows"]
        if row["family"] in ("resnet50", *LLAMAS)
    )
    grows = ""
    for family, label in LABELS.items():
        rows = [row for row in found["rows"] if row["family"] == family]
        if (slope := exponent(rows)) is not None:
            first, last = deeper(rows)[0]["depth"], rows[-1]["depth"]
            local = exponent(rows[-2:])
            grows += (
                f"- {label}, depth {first} to {last}: depth to the power {slope:.2f} "
                f"({local:.2f} between the two deepest).\n"
            )
    whole = max(
        (row for row in found["rows"] if row["family"] == "resnet-whole"),
        key=lambda row: row["depth"],
    )
    return f"""# Scaling with depth

Equal blocks are [traced and verified once](decisions.md#structures-and-removal). The time to find
and verify the structures of a network grows with its depth like this:

{grows}- The deepest network, {LABELS[deepest["family"]]} of depth {deepest["depth"]}, has \
{deepest["gates"]:,} gates. It takes {deepest["seconds"]:.0f} s and {deepest["megabytes"]:.0f} MB. \
With every block by itself it takes {whole["seconds"]:.0f} s and {whole["megabytes"]:.0f} MB.

Some two seconds are constant: the graph and the verification of three blocks of each kind. What
every block costs is a forward pass in each mode, and its place in the graph and in the structures.

![Seconds and megabytes against depth, both axes logarithmic](figures/scaling.svg)

*CPU seconds of `find_structures` with verification, the least of {found["repeats"]} process(es),
and the growth of the peak resident memory. Dotted lines are linear. `{found["command"]}`;
{found["machine"]["cpu"]}, one thread.*

## Large networks

A network of more than 4 million numbers is verified on a
[narrow twin](decisions.md#structures-and-removal). Time and memory follow its graph, not the size
of its weights. It may have no weights at all (`torch.device("meta")`).

| network | parameters | CPU seconds | MB beyond its weights |
|---|---|---|---|
{large}

[`scaling.csv`](data/scaling.csv) has the figures, with the numbers of groups, layers and gates, and
the milliseconds that the prices of a step take.
"""


def table(found: dict[str, Any]) -> str:
    """Return the figures as CSV."""
    names = (
        "depth",
        "parameters",
        "groups",
        "layers",
        "gates",
        "seconds",
        "megabytes",
        "prices_ms",
    )
    lines = [",".join(("network", *names))]
    for row in found["rows"]:
        cells = (f"{row[name]:.4g}" if row[name] < 1000 else f"{row[name]}" for name in names)
        lines.append(",".join((LABELS[row["family"]].replace(",", ""), *cells)))
    return "\n".join(lines) + "\n"


def draw(rows: list[dict[str, Any]]) -> None:
    """Time and memory against depth; what grows linearly is parallel to the dotted lines."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "guyot"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axis, key, label in zip(axes, ("seconds", "megabytes"), ("CPU seconds", "MB"), strict=True):
        for family, style in zip(DRAWN, ("o-", "^-.", "s--", "D"), strict=True):
            name = LABELS[family]
            some = [row for row in rows if row["family"] == family]
            depths, values = [row["depth"] for row in some], [row[key] for row in some]
            axis.plot(depths, values, style, label=name)
            if len(some) > 1:
                linear = [values[-1] * depth / depths[-1] for depth in depths]
                axis.plot(depths, linear, ":", color="gray", lw=1)
        axis.set(xscale="log", yscale="log", xlabel="depth", ylabel=label)
    axes[0].legend(fontsize=8)
    figure.savefig(FIGURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("measure", "table", "once"))
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("--families", nargs="+", choices=DEPTHS, default=list(DEPTHS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--deepest", type=int, default=10_000)
    parser.add_argument("--dry-run", action="store_true", help="write nothing")
    options = parser.parse_args()
    if options.what == "once":
        print(json.dumps(once(options.arguments[0], int(options.arguments[1]))))
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": []}
    if options.what == "measure":
        kept = [row for row in found["rows"] if row["family"] not in options.families]
        new = measure(options.families, options.repeats, options.deepest)
        order = list(DEPTHS)
        found = {
            "command": "python benchmarks/scaling.py measure",
            "machine": machine(),
            "repeats": options.repeats,
            "rows": sorted([*kept, *new], key=lambda row: order.index(row["family"])),
        }
    if options.dry_run:
        print(page(found))
        return
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found))
    TABLE.write_text(table(found))
    draw([row for row in found["rows"] if row["family"] in DRAWN])


if __name__ == "__main__":
    main()
