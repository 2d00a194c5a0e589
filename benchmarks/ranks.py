"""Two processes of 64 images against one of 128: the same result, statistically.

    python benchmarks/ranks.py [--seeds 4] [--epochs 40] [--launcher torchrun]

Trains the digits network by `guyot train` with batch size 128 in one process and in two, for
several seeds, and writes benchmarks/results/ranks.json: MACs kept, test accuracy, and the mean
difference with its standard error. Gates of two processes are sampled independently, so single
runs differ. Threads: one per process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from runs import machine

RESULTS = Path(__file__).parent / "results" / "ranks.json"
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "accelerate": ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"],
}


def train(seed: int, processes: int, launcher: str, epochs: int) -> dict[str, float]:
    """One run; its share of MACs and its test accuracy."""
    folder = Path(tempfile.mkdtemp()) / "run"
    start = [sys.executable, *(LAUNCHERS[launcher] if processes == 2 else [])]
    options = ["--data", "digits", "--batch-size", "128", "--epochs", str(epochs), "--threads", "1"]
    options += ["--seed", str(seed), "--target", "0.5", "--round-to", "8", "--no-bf16", "--quiet"]
    command = [*start, "-m", "guyot", "train", *options, "--out", str(folder)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    found = json.loads((folder / "result.json").read_text())
    return {
        "macs": found["after"]["macs"] / found["before"]["macs"],
        "accuracy": found["after"]["test_accuracy"],
    }


def difference(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Mean of two processes minus one, and its standard error over seeds."""
    deltas = [two - one for one, two in pairs]
    return {"mean": mean(deltas), "standard_error": stdev(deltas) / len(deltas) ** 0.5}


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--launcher", choices=LAUNCHERS, default="torchrun")
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for processes in (1, 2):
            found = train(seed, processes, options.launcher, options.epochs)
            runs.append({"seed": seed, "processes": processes} | found)
            print(runs[-1], flush=True)
    result: dict[str, Any] = {"launcher": options.launcher, "epochs": options.epochs, "runs": runs}
    for key in ("macs", "accuracy"):
        by = {(run["seed"], run["processes"]): run[key] for run in runs}
        result[key] = difference([(by[s, 1], by[s, 2]) for s in range(options.seeds)])
        print(key, result[key])
    RESULTS.write_text(json.dumps(result | {"machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
