"""Memory of a process while `fully_shard` models lose units or are saved: beyond its shard.

    python benchmarks/sharded_memory.py [--processes 2 4] [--width 2048] [--blocks 4]

Builds a stack of blocks of two linear layers, shards it over processes on the CPU (gloo), makes a
`Discovery` and a step of AdamW, and removes half of the hidden units of every block. The kernel
tells the largest resident memory since the `Discovery` or the removal began (VmHWM, after it was
set back). The rise over what the process held before is compared with the whole model, and with the
largest module, which `fully_shard` gathers in every step. Before the removal it saves a checkpoint
with the optimiser's state, and resumes from it with a second model: the largest memory then is
compared with what the process held before the save, and with what it holds after the resume. Writes
benchmarks/results/sharded_memory.json.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from runs import machine
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from guyot import Checkpointer, Discovery, find_structures
from guyot.core.parallel import reshaped
from guyot.core.types import KeepPlan
from guyot.surgery import operate

RESULTS = Path(__file__).parent / "results" / "sharded_memory.json"


class Block(nn.Module):
    """Two linear layers around a ReLU, and a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())


def build(width: int, blocks: int) -> nn.Module:
    """Return the stack."""
    return nn.Sequential(*(Block(width) for _ in range(blocks)))


def resident(name: str) -> int:
    """Return bytes of resident memory: VmRSS now, or VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise LookupError(name)


def largest_from_now() -> int:
    """Let VmHWM begin again; return the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def sharded(width: int, blocks: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return the stack, sharded over all processes, and its optimiser."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    model = build(width, blocks)
    for module in (*model, model):
        fully_shard(module, mesh=mesh)
    return model, torch.optim.AdamW(model.parameters(), 1e-3)


def held_by(model: nn.Module) -> int:
    """Return bytes of this process's parameters and their two moments."""
    return 3 * sum(p.to_local().nbytes for p in model.parameters())


def save_and_resume(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, width: int, blocks: int
) -> dict[str, int]:
    """Return how much more memory than before a save takes, and than after a resume that takes."""
    gc.collect()
    before = largest_from_now()
    Checkpointer(folder, model, optimizer=optimizer).save(1)
    saving = resident("VmHWM") - before
    again, its = sharded(width, blocks)
    checkpoints = Checkpointer(folder, again, optimizer=its)
    gc.collect()
    start = largest_from_now()
    assert checkpoints.resume() == {}
    held = resident("VmRSS")
    for mine, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine.to_local(), other.to_local())
    return {"saving": saving, "loading": resident("VmHWM") - held, "loaded": held - start}


def measure(width: int, blocks: int, folder: Path) -> dict[str, Any]:
    """Return the memory of this process before and during all this, in bytes."""
    example = (torch.ones(2, width),)
    model, optimizer = sharded(width, blocks)
    parameters = 4 * sum(p.numel() for p in model.parameters())
    find_structures(build(8, 2), (torch.ones(2, 8),))  # what is imported counts before
    gc.collect()
    held = largest_from_now()
    structures = Discovery(model, example, optimizer, total_steps=1000, target=0.5).original
    finding = resident("VmHWM") - held
    kept = {
        number: torch.arange(0, group.size, 2)
        for number, group in enumerate(structures.groups)
        if group.name.endswith("up")
    }
    assert len(kept) == blocks
    model(torch.randn(4, width)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    files = save_and_resume(folder, model, optimizer, width, blocks)
    gc.collect()
    shard = held_by(model)
    module = 4 * sum(p.numel() for p in model[0].parameters())
    before = largest_from_now()
    with reshaped(model):
        operate(model, structures, KeepPlan(kept, frozenset()), [optimizer])
    return {
        "parameters": parameters,
        "finding": finding,
        "shard": shard,
        "largest_module": module,
        "largest_tensor": 4 * width * width,
        "before": before,
        "rise": resident("VmHWM") - before,
        "fall": before - resident("VmRSS"),
        **files,
    }


def measured(processes: int, width: int, blocks: int) -> dict[str, Any]:
    """Return what each of some processes measured."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", __file__, "--folder", folder]
        command += ["--width", str(width), "--blocks", str(blocks)]
        # memory that is freed goes back at once, so that it is not taken for held
        settings = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
        subprocess.run(command, check=True, env=os.environ | settings)
        ranks = [json.loads((Path(folder) / f"{n}.json").read_text()) for n in range(processes)]
    return {"processes": processes, "ranks": ranks}


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        dist.init_process_group("gloo")
        found = measure(options.width, options.blocks, options.folder / "checkpoints")
        (options.folder / f"{dist.get_rank()}.json").write_text(json.dumps(found))
        dist.barrier()
        dist.destroy_process_group()
        return
    runs = [measured(processes, options.width, options.blocks) for processes in options.processes]
    found = {"machine": machine(), "width": options.width, "blocks": options.blocks, "runs": runs}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for run in runs:
        worst = max(rank["rise"] / rank["largest_module"] for rank in run["ranks"])
        finding = max(rank["finding"] / rank["parameters"] for rank in run["ranks"])
        print(
            f"{run['processes']} processes: at most {finding:.2f} of the model to find its "
            f"structures, {worst:.2f} of the largest module to remove"
        )
        most = {
            name: max(rank[name] / rank["largest_tensor"] for rank in run["ranks"])
            for name in ("saving", "loading")
        }
        print(
            f"  beyond the shard, {most['saving']:.2f} of the largest tensor to save and "
            f"{most['loading']:.2f} to resume from it"
        )


if __name__ == "__main__":
    main()
