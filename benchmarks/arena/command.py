"""The command line of the arena."""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

from arena.crew import Crew, Orders, path_of
from arena.job import Run
from arena.methods import methods
from arena.page import BEGINNINGS, load, page
from arena.tasks import names, task_of

ROOT = Path(__file__).parents[1]


def seeds_of(text: str) -> list[int]:
    """The numbers of `0-4,7`.

    >>> seeds_of("0-2,7")
    [0, 1, 2, 7]
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def arguments() -> argparse.ArgumentParser:
    """What may be asked for."""
    parser = argparse.ArgumentParser(description="Compare structures at equal MACs.")
    parser.add_argument("command", nargs="?", choices=("run", "table"), default="run")
    parser.add_argument("--list", action="store_true", help="name the runs and end")
    parser.add_argument("--tasks", default=",".join(names()), help="names; drawn-N draws one")
    parser.add_argument(
        "--starts", default="scratch,checkpoint", help="scratch, checkpoint, distilled"
    )
    parser.add_argument("--methods", default="*", help="patterns, such as 'guyot*,l2-*'")
    parser.add_argument("--targets", help="shares of MACs; default: those of the task")
    parser.add_argument("--widths", default="exact", help="exact, rounded, or both with a comma")
    parser.add_argument("--seeds", default="0-4", help="such as 0-4,7")
    parser.add_argument(
        "--guyot",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help="one more discovery: its settings by name; the name gets the prefix guyot-",
    )
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--minutes", type=float, help="end after so long")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--data-dir", help="folder with CIFAR-10's parquet files")
    parser.add_argument("--cache-dir", help="where decoded images are kept")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "arena")
    parser.add_argument(
        "--weights",
        type=Path,
        default=Path(tempfile.gettempdir()) / "guyot-bench" / "arena",
        help="where dense networks are kept for runs from a checkpoint",
    )
    parser.add_argument("--against", help="table: compare with this method")
    parser.add_argument("--out", type=Path, help="table: write it there")
    return parser


def runs(options: argparse.Namespace, orders: Orders) -> Iterator[Run]:
    """What was asked for: all methods of a seed before the next seed."""
    patterns = options.methods.split(",")
    for seed, name, start in product(
        seeds_of(options.seeds), options.tasks.split(","), options.starts.split(",")
    ):
        task = task_of(name, orders)
        asked = [float(share) for share in (options.targets or "").split(",") if share]
        seen: set[str] = set()
        for rounded, target, method in product(
            [{"exact": False, "rounded": True}[word] for word in options.widths.split(",")],
            asked or task.targets,
            methods(task, start, orders.guyot),
        ):
            if not any(fnmatchcase(method, pattern) for pattern in patterns):
                continue
            whole = method == "dense"
            run = Run(name, start, method, 1.0 if whole else target, rounded and not whole, seed)
            if run.name not in seen:
                seen.add(run.name)
                yield run


def discoveries(parser: argparse.ArgumentParser, given: list[str]) -> dict[str, dict[str, object]]:
    """The settings by name that `--guyot` gave."""
    found: dict[str, dict[str, object]] = {}
    for text in given:
        name, _, settings = text.partition("=")
        try:
            found[f"guyot-{name}"] = dict(json.loads(settings))
        except (TypeError, ValueError) as error:
            parser.error(f'--guyot {text}: give NAME={{"estimator": ...}} ({error})')
    return found


def main() -> None:
    """Train what has no result yet, or write the table."""
    parser = arguments()
    options = parser.parse_args()
    if options.command == "table":
        text = page(load(options.results), options.against)
        if options.out is None:
            print(text)
        else:
            options.out.write_text(text)
        return
    if unknown := sorted(set(options.starts.split(",")) - set(BEGINNINGS)):
        parser.error(f"--starts {','.join(unknown)}: choose among {', '.join(BEGINNINGS)}")
    orders = Orders(
        options.results,
        options.weights,
        options.device,
        options.threads,
        options.minutes,
        options.processes,
        discoveries(parser, options.guyot),
        options.data_dir,
        options.cache_dir,
    )
    asked = list(runs(options, orders))
    for pattern in options.methods.split(","):
        if not any(fnmatchcase(run.method, pattern) for run in asked):
            parser.error(
                f"--methods {pattern} names no method of these tasks and starts: --list names all "
                "of them if --methods is left out"
            )
    if options.list:
        for run in asked:
            print(run.name, "done" if path_of(run, options.results).exists() else "open")
        return
    crew = Crew(orders, task_of)
    crew.carry_out(asked)
    if crew.failed:
        sys.exit(f"{len(crew.failed)} runs failed: {', '.join(crew.failed)}")
