"""Where and with what a run goes: versions, hardware, command, state of the sources."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import guyot.core.errors

_PACKAGES = ("guyot", "torch", "torchvision", "timm", "numpy", "safetensors", "scikit-learn")
_VARIABLES = ("OMP_", "MKL_", "KMP_", "CUDA_", "CUBLAS_", "MALLOC_", "THP_", "PYTHONHASHSEED")


def environment() -> dict[str, Any]:
    """Return what the figures and the last bits of a run may depend on, as plain data."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": sys.argv,
        "versions": {"python": platform.python_version(), **_versions()},
        "git": {"here": _git(Path.cwd()), "guyot": _git(Path(guyot.core.errors.__file__).parent)},
        "hardware": {
            "system": platform.platform(),
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "gpus": [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())],
        },
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLES)},
    }


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit of a folder, and whether tracked files were changed since; None outside of git."""

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        commit = ask("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(ask("status", "--porcelain", "-uno"))}
    except (OSError, subprocess.SubprocessError):
        return None


def cpu() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
