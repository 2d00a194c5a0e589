"""Which models of other libraries find their structure, and which do not.

    python benchmarks/covered.py [MODEL ...]
    python benchmarks/covered.py --list
    python benchmarks/covered.py --table

Every model of ``tests/helpers/zoo.py`` is examined in a process of its own with bounded memory and
CPU time, once by guyot and once by torch-pruning; those of ``tests/helpers/others.py`` by guyot
alone, more thoroughly. The results go to ``benchmarks/results/coverage/<library>-<model>.json`` as
each ends. Results that are there are kept, so an interrupted run continues another day;
``--again`` repeats. MODEL may be a pattern such as ``'timm/*net*'``. ``--table`` writes
docs/coverage.md and the tables that it links.
"""

import argparse
import fnmatch
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import import_module
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from runs import machine

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "helpers"))  # the tests examine the same models
from examine import ENTRIES, result_of  # noqa: E402  # pyright: ignore[reportMissingImports]
from others import OTHERS  # noqa: E402  # pyright: ignore[reportMissingImports]
from zoo import ZOO  # noqa: E402  # pyright: ignore[reportMissingImports]

RESULTS = Path(__file__).parent / "results" / "coverage"
DOCS = ROOT / "docs"
METHODS = ("guyot", "torch-pruning")
COMMAND = ("python", "benchmarks/covered.py")
IMPORTED = ("torch.export", "torch._dynamo")

Json = dict[str, Any]


def file_of(name: str) -> Path:
    """Where the result of a model is kept."""
    return RESULTS / f"{name.replace('/', '-')}.json"


def memory_of(pid: int) -> float:
    """Resident memory of a process in GB, 0 when it is gone."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1e6
    except OSError:
        pass
    return 0.0


def examined(method: str, name: str, seconds: int, path: Path) -> None:
    """What the process of a model does: at most so many seconds of CPU time, then its result."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    warnings.simplefilter("ignore")
    path.write_text(json.dumps(result_of(method, name)))


def run(method: str, name: str, gigabytes: float, seconds: int) -> Json:
    """One examination in a process that ends when it needs too much memory or CPU time.

    The process is a copy of this one, which has imported everything and computed nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.json"
        arguments = (method, name, seconds, path)
        process = get_context("fork").Process(target=examined, args=arguments)
        process.start()
        peak, started = 0.0, time.monotonic()
        killed = ""
        while process.is_alive():
            peak = max(peak, memory_of(process.pid or 0))
            if peak > gigabytes:
                killed = f"more than {gigabytes:g} GB"
            elif time.monotonic() - started > 20 * seconds:
                killed = f"no end after {20 * seconds} s on a busy machine"
            if killed:
                process.kill()
                break
            time.sleep(0.1)
        process.join()
        if process.exitcode == 0 and path.exists():
            result = json.loads(path.read_text())
        else:
            reason = killed or (
                f"more than {seconds} s of CPU time"
                if process.exitcode in (-9, -24)
                else f"the process ended with {process.exitcode}"
            )
            result = {"passed": False, "problems": [reason]}
    return result | {"peak_gb": round(peak, 2)}


def revision() -> str:
    """The commit of guyot, with a plus when the working tree has changed what is examined."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(ROOT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    changed = git("status", "--porcelain", "src/guyot", "tests/helpers")
    return git("rev-parse", "--short=8", "HEAD") + "+" * bool(changed)


def examine(name: str, options: argparse.Namespace) -> None:
    """Examine one model and write its file."""
    path = file_of(name)
    result: Json = json.loads(path.read_text()) if path.exists() else {"model": name}
    limits = ("--memory", f"{options.memory:g}", "--seconds", str(options.seconds))
    for method in options.methods:
        if (method in result and not options.again) or (method != "guyot" and name in OTHERS):
            continue
        found = run(method, name, options.memory, options.seconds)
        result[method] = found | {
            "command": shlex.join([*COMMAND, name, *limits, "--methods", method]),
            "machine": machine(),
            "versions": {
                package: revision() if package == "guyot" else version(package)
                for package in ("torch", name.partition("/")[0], method)
            },
        }
        verdict = "passed" if found["passed"] else "; ".join(found["problems"])
        print(f"{name:45} {method:14} {found.get('seconds', ''):>7} {verdict}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    """Examine the models named on the command line (default: all), or write the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument("models", nargs="*", default=["*"], help="names or patterns; default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--again", action="store_true", help="also what has a result")
    parser.add_argument("--memory", type=float, default=6, help="GB of a process")
    parser.add_argument("--seconds", type=int, default=180, help="CPU seconds of a process")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument(
        "--table", action="store_true", help="write the page and its tables in docs/ and stop"
    )
    options = parser.parse_args()
    if options.table:
        from coverage_table import files

        results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
        for name, text in files(results, ZOO, list(OTHERS)).items():
            (DOCS / name).parent.mkdir(exist_ok=True)
            (DOCS / name).write_text(text, encoding="utf-8")
        return
    names = [n for pattern in options.models for n in fnmatch.filter(ENTRIES, pattern)]
    if not names:
        parser.error(f"no model matches {' '.join(options.models)}; --list names them")
    if options.list:
        print("\n".join(names))
        return
    peers = {method.replace("-", "_") for method in options.methods}
    for module in {name.partition("/")[0] for name in names} | peers | set(IMPORTED):
        import_module(module)
    for name in dict.fromkeys(names):  # in the order of the patterns
        examine(name, options)


if __name__ == "__main__":
    main()
