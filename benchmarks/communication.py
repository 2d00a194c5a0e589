"""What several processes tell each other per step: counted for real, then modelled for many.

    python benchmarks/communication.py            count gates and bytes, model 8 ... 1024 ranks
    python benchmarks/communication.py --table    model again from the counts, and write the tables
                                                  of docs/parallel.md and docs/data/

Volumes are bytes that one rank hands to a collective. That they are what `guyot` really sends is
counted in a run of two processes. Times are those of the alpha-beta model, not measured: a ring
all-reduce of B bytes over n ranks takes 2 (n - 1) rounds of alpha + B / (n beta) each, a tree
2 ceil(log2 n) rounds of alpha + B / beta; the faster of the two is taken, as NCCL does. For FSDP2 a
ring all-gather or reduce-scatter of B bytes takes n - 1 rounds of alpha + B / (n beta).
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from guyot import Discovery, DiscoveryConfig, find_structures
from guyot.app.models import build

ROOT = Path(__file__).parent
RESULT = ROOT / "results" / "communication" / "volumes.json"
PAGE = ROOT.parent / "docs" / "parallel.md"
TIMES = PAGE.parent / "data" / "communication.csv"
RANKS = (8, 32, 128, 512, 1024)
LINKS = {
    "InfiniBand 200 Gb/s": {"alpha": 5e-6, "beta": 25e9},
    "Ethernet 10 Gb/s": {"alpha": 50e-6, "beta": 1.25e9},
}
"""Assumed, not measured: seconds per message and bytes per second of one rank's link."""
MODELS = {
    "resnet20": (3, 32, 32),
    "mobilenet_v3_large": (3, 64, 64),
    "resnet50": (3, 64, 64),
    "vit_b_16": (3, 224, 224),
}
"""Input shapes are small where they change neither parameters nor gates."""
STEPS = 100_000
"""Of the whole run, to which removals are related."""
GROUP = 25e6
"""Bytes of parameters that FSDP2 gathers at once; a user decides by what is wrapped."""


def sizes(name: str) -> dict[str, int]:
    """Numbers of parameters, buffers and gates of a model."""
    shape = MODELS[name]
    model = build(name, 1000, shape) if name != "resnet20" else build(name, 10, shape)
    structures = find_structures(model.eval(), (torch.zeros(2, *shape),), verify=False)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tensors": len([*model.parameters()]),
        "buffers": sum(b.numel() * b.element_size() for b in model.buffers()),
        "gates": structures.index.total,
    }


def volumes(size: dict[str, int], ranks: int = 2) -> dict[str, float]:
    """Bytes that one rank hands to collectives, per step or per removal interval."""
    gates = size["gates"]
    return {
        "gradients": 4 * size["parameters"],
        "buffers": size["buffers"],
        "gate sums": 3 * 4 * gates,
        "norms": (3 + 2) * 4 * gates,
        "hash": 8 * ranks,
    }


def ring(volume: float, ranks: int, alpha: float, beta: float) -> float:
    """Seconds of a ring all-reduce."""
    return 2 * (ranks - 1) * (alpha + volume / ranks / beta)


def tree(volume: float, ranks: int, alpha: float, beta: float) -> float:
    """Seconds of a reduction along a binary tree and a broadcast back."""
    return 2 * math.ceil(math.log2(ranks)) * (alpha + volume / beta)


def all_reduce(volume: float, ranks: int, link: dict[str, float]) -> float:
    """Seconds of the faster algorithm."""
    return min(ring(volume, ranks, **link), tree(volume, ranks, **link))


def gather(volume: float, ranks: int, alpha: float, beta: float) -> float:
    """Seconds of a ring all-gather, or of a reduce-scatter."""
    return (ranks - 1) * (alpha + volume / ranks / beta)


def sharded(size: dict[str, int], ranks: int, link: dict[str, float]) -> dict[str, float]:
    """Milliseconds of FSDP2: parameters and gradients of a step, and one removal.

    A step gathers the parameters twice and scatters the gradients, in groups of 25 MB. A removal
    gathers every tensor by itself, the parameter and two moments of Adam, as if all of them were
    cut along dimension 0; then every rank keeps its rows of what is left, which sends nothing.
    """
    volume = 4 * size["parameters"]
    groups = math.ceil(volume / GROUP)
    step = 3 * groups * gather(volume / groups, ranks, **link)
    removal = 3 * size["tensors"] * gather(volume / size["tensors"], ranks, **link)
    return {"fsdp_step_ms": 1e3 * step, "fsdp_removal_ms": 1e3 * removal}


def modelled(size: dict[str, int]) -> list[dict[str, Any]]:
    """Times per step over numbers of ranks and links."""
    config = DiscoveryConfig()
    warmup, end = config.shares(STEPS)
    interval = round(STEPS * (end - warmup)) // config.removals
    rows: list[dict[str, Any]] = []
    for link, values in LINKS.items():
        for ranks in RANKS:
            bytes_ = volumes(size, ranks)
            gradients = all_reduce(bytes_["gradients"], ranks, values)
            sums = all_reduce(bytes_["gate sums"], ranks, values)
            checks = all_reduce(bytes_["norms"], ranks, values)
            checks += (ranks - 1) * (values["alpha"] + 8 / values["beta"])  # ring all-gather
            rows.append(
                {
                    "link": link,
                    "ranks": ranks,
                    "gradients_ms": 1e3 * gradients,
                    "gate_sums_ms": 1e3 * sums,
                    "checks_ms_per_step": 1e3 * checks / interval,
                    "gates_share": (sums + checks / interval) / gradients,
                    **sharded(size, ranks, values),
                }
            )
    return rows


def count(folder: Path) -> None:
    """In each of several processes: the bytes of every collective in some steps of discovery."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from guyot.app.launch import processes

    sent: dict[str, list[int]] = {"all_reduce": [], "all_gather": [], "gradients": []}

    def counting(state, bucket):  # DDP reads annotations, and takes no strings for types
        state.append(bucket.buffer().nbytes)
        work = real_reduce(bucket.buffer().div_(dist.get_world_size()), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])

    with processes("cpu") as ranks:
        torch.manual_seed(0)
        shape = MODELS["resnet20"]
        network = build("resnet20", 10, shape)
        model = DistributedDataParallel(network)
        real_reduce, real_gather = dist.all_reduce, dist.all_gather
        model.register_comm_hook(sent["gradients"], counting)
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        example = (torch.zeros(2, *shape),)
        discovery = Discovery(model, example, optimizer, total_steps=4000, target=0.5)

        def reduce(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            sent["all_reduce"].append(tensor.nbytes)
            return real_reduce(tensor, *args, **kwargs)

        def gather(found: list[torch.Tensor], tensor: torch.Tensor, **kwargs: Any) -> Any:
            sent["all_gather"].append(sum(t.nbytes for t in found))
            return real_gather(found, tensor, **kwargs)

        steps: list[dict[str, int]] = []
        dist.all_reduce, dist.all_gather = reduce, gather
        discovery._step = 399  # the last step of warm-up, in which nothing is sent but gradients
        for _ in range(64):
            for entries in sent.values():
                entries.clear()
            x = torch.randn(4, *shape)
            nn.functional.cross_entropy(model(x), torch.zeros(4, dtype=torch.int64)).backward()
            optimizer.step()
            optimizer.zero_grad()
            discovery.step()
            steps.append({name: sum(entries) for name, entries in sent.items()})
        if ranks.rank == 0:
            found = {
                "ranks": ranks.size,
                "gates": discovery.original.index.total,
                "parameters": sum(p.numel() for p in network.parameters()),
                "removals": len(discovery.removals),
                "interval": discovery._controller.interval,
                "steps": steps,
            }
            (folder / "counted.json").write_text(json.dumps(found))


def counted(ranks: int) -> dict[str, Any]:
    """Counts of a real run of some processes, and whether they are what the volumes say."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={ranks}", __file__, "--count", folder]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found = json.loads((Path(folder) / "counted.json").read_text())
    said = volumes({**found, "buffers": 0}, ranks)
    usual = found["steps"][1]  # with gates, no check
    checks = [step for step in found["steps"] if step["all_gather"]]
    return {
        "ranks": ranks,
        "steps": len(found["steps"]),
        "gradients": {"counted": usual["gradients"], "said": said["gradients"]},
        "gate sums": {"counted": usual["all_reduce"], "said": said["gate sums"]},
        "norms": {
            "counted": checks[0]["all_reduce"] - usual["all_reduce"],
            "said": said["norms"],
        },
        "hash": {"counted": checks[0]["all_gather"], "said": said["hash"]},
    }


def table(result: dict[str, Any]) -> str:
    """Return the table of volumes in Markdown."""
    lines = [
        "| model | parameters | gates | gradients | gate sums | norms and hashes |",
        "|---|---|---|---|---|---|",
    ]
    for name, model in result["models"].items():
        size, said = model["size"], volumes(model["size"])
        lines.append(
            f"| {name} | {size['parameters'] / 1e6:.2f} M | {size['gates']:,} "
            f"| {said['gradients'] / 1e6:.2f} MB | {said['gate sums'] / 1e3:.1f} kB "
            f"| {said['norms'] / 1e3:.1f} kB |"
        )
    return "\n".join(lines)


def times(result: dict[str, Any]) -> str:
    """Return the modelled times as CSV, milliseconds by link, model and number of ranks."""
    columns = ("gradients_ms", "gate_sums_ms", "checks_ms_per_step", "fsdp_step_ms")
    columns += ("fsdp_removal_ms",)
    lines = [("link", "ranks", "model", *columns)]
    for name, model in result["models"].items():
        for row in model["modelled"]:
            values = (f"{row[column]:.4g}" for column in columns)
            lines.append((row["link"], str(row["ranks"]), name, *values))
    return "".join(",".join(line) + "\n" for line in lines)


def write(result: dict[str, Any]) -> None:
    """Write the times, and put the volumes between their marks in the page."""
    begin, end = "<!-- communication: begin -->", "<!-- communication: end -->"
    text = PAGE.read_text(encoding="utf-8")
    before, _, tail = text.partition(begin)
    _, _, after = tail.partition(end)
    PAGE.write_text(f"{before}{begin}\n\n{table(result)}\n\n{end}{after}", encoding="utf-8")
    TIMES.write_text(times(result), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--count", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--size", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.count:
        count(arguments.count)
    elif arguments.size:
        print(json.dumps(sizes(arguments.size)))
    elif arguments.table:
        result = json.loads(RESULT.read_text())
        for model in result["models"].values():
            model["modelled"] = modelled(model["size"])
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        write(result)
    else:
        models: dict[str, Any] = {}
        for name in MODELS:  # one process each: the memory of big models goes with it
            done = subprocess.run(
                [sys.executable, __file__, "--size", name], check=True, capture_output=True
            )
            size = json.loads(done.stdout.splitlines()[-1])
            models[name] = {"size": size, "modelled": modelled(size)}
            print(name, size, flush=True)
        result = {
            "command": "python benchmarks/communication.py",
            "torch": torch.__version__,
            "links": LINKS,
            "steps": STEPS,
            "counted": [counted(2), counted(4)],
            "models": models,
        }
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
        write(result)


if __name__ == "__main__":
    main()
