"""One run from its first step to its result, and the dense weights that fine-tuning begins with."""

import os
import platform
import subprocess
import time
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from runs import machine
from torch import nn

from arena.job import Job, Json, Run, score
from arena.methods import methods
from arena.task import Task
from guyot import Distillation

PACKAGES = ("torch", "numpy", "torch-pruning", "only-train-once", "timm", "transformers")


def versions() -> Json:
    """Versions of what decides a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def commit() -> str | None:
    """The commit of this checkout, with a mark where files differ from it."""
    asked = ("rev-parse HEAD", "status --porcelain -uno ../../src")
    try:
        head, changed = (
            subprocess.run(
                ["git", *arguments.split()],
                cwd=Path(__file__).parent,
                capture_output=True,
                text=True,
                check=True,
            ).stdout.strip()
            for arguments in asked
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changed)


def dense_weights(task: Task, run: Run, weights: Path) -> Path:
    """Where the dense run of a seed leaves its weights."""
    return weights / f"{task.name}-s{run.seed}-{task.recipe.steps}.pt"


def begin(task: Task, run: Run, folders: tuple[Path, Path], device: torch.device) -> Job:
    """The network, the data and the schedule of a run."""
    results, weights = folders
    recipe = task.recipe
    torch.manual_seed(run.seed)
    scratch = run.start == "scratch"
    method = methods(task, run.start, {}).get(run.method)
    model = task.make(task.full) if method is None else method.network(task, run, results)
    if not scratch:
        model.load_state_dict(torch.load(dense_weights(task, run, weights), weights_only=True))
    teacher = Distillation(model.to(device)) if run.start == "distilled" else None
    return Job(
        run,
        task,
        task.data(run.seed),
        device,
        model,
        recipe.steps if scratch else recipe.fine_steps,
        recipe.lr if scratch else recipe.fine_lr,
        recipe.warmup if scratch else recipe.fine_warmup,
        teacher=teacher,
    )


def train(
    task: Task,
    run: Run,
    results: Path,
    weights: Path,
    device: torch.device | str = "cpu",
    guyot: Mapping[str, Mapping[str, Any]] | None = None,
) -> Json:
    """Train one run to its end; the only place that reads test data."""
    started, cpu = time.perf_counter(), time.process_time()
    job = begin(task, run, (results, weights), torch.device(device))
    known = methods(task, run.start, guyot or {})
    progress = known[run.method].begin(job)
    losses: list[float] = []
    epoch = 0
    job.model.train()
    while job.step < job.total:
        total = torch.zeros((), device=job.device)
        first = job.step
        for inputs, labels in job.batches(epoch):
            job.set_rate()
            loss = job.loss(inputs, labels)
            loss.backward()
            progress.before_optimizer()
            job.optimizer.step()
            job.optimizer.zero_grad()
            job.step += 1
            job.spent += job.macs
            progress.after_step(lambda: job.loss(inputs, labels))  # noqa: B023
            total += loss.detach()
            if job.step == job.total:
                break
        losses.append(float(total) / (job.step - first))
        epoch += 1
    found = progress.finish()
    if run.method == "dense" and run.start == "scratch":
        keep(job.model, dense_weights(task, run, weights))
    seconds = {"wall": time.perf_counter() - started, "cpu": time.process_time() - cpu}
    return {
        "run": asdict(run),
        "settings": getattr(known[run.method], "settings", None),
        "steps": job.total,
        "recipe": asdict(task.recipe),
        "input_shape": list(task.example().shape[1:]),
        "macs": (macs := task.macs(job.model)),
        "share": macs / task.full_macs,
        "full_macs": task.full_macs,
        "params": sum(parameter.numel() for parameter in job.model.parameters()),
        "widths": widths(job.model),
        "macs_over_steps": job.spent,
        "cost": job.spent / (task.full_macs * job.total),
        "losses": losses,
        "training_loss": losses[-1],
        "validation": score(job, "validation"),
        "test": score(job, "test"),
        "seconds": seconds,
        "machine": machine() | {"device": device_name(job.device)},
        "versions": versions() | {"guyot": commit()},
        **found,
    }


def widths(model: nn.Module) -> dict[str, int]:
    """Output widths of layers with weights."""
    layers = (nn.Linear, nn.Conv2d)
    return {n: m.weight.shape[0] for n, m in model.named_modules() if isinstance(m, layers)}


def device_name(device: torch.device) -> str:
    """ "cpu", or the GPU's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def keep(model: nn.Module, path: Path) -> None:
    """Write weights so that a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    torch.save(model.state_dict(), part)
    part.replace(path)
