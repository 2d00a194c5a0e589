"""The arena: its tasks, rivals, statistics, and how it resumes."""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from paths import ROOT

PARTS = "command crew cuts job labels methods networks page paired planted real task tasks training"


@pytest.fixture
def arena(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The modules of `benchmarks/arena/`, with small held-out sets."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = SimpleNamespace(
        **{name: importlib.import_module(f"arena.{name}") for name in PARTS.split()}
    )
    monkeypatch.setattr(found.labels, "HELD_OUT", 1_000)
    yield found
    for name in list(sys.modules):
        if name.partition(".")[0] in ("arena", "runs"):
            sys.modules.pop(name)


def quick(arena: SimpleNamespace, name: str, steps: int = 60) -> object:
    """A planted task with few steps."""
    return arena.task.shorter(arena.planted.TASKS[name], steps, steps)


NAMES = ["mlp-4x80", "mlp-5x72", "residual", "cnn", "transformer"]


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_makes_the_same_task_again(arena: SimpleNamespace, name: str) -> None:
    task = arena.planted.TASKS[name]
    first, again, other = task.data(3), task.data(3), task.data(4)
    for part in ("train", "validation", "test"):
        ours, theirs, others = (
            next(getattr(data, part).epoch(0)) for data in (first, again, other)
        )
        assert all(map(torch.equal, ours, theirs))
        assert not torch.equal(ours[0], others[0])
    assert not torch.equal(next(first.train.epoch(0))[0], next(first.train.epoch(1))[0])
    assert torch.equal(next(first.test.epoch(0))[0], next(first.test.epoch(1))[0])
    assert not torch.equal(next(first.test.epoch(0))[0], next(first.validation.epoch(0))[0])


@pytest.mark.parametrize("name", NAMES)
def test_labels_tell_of_the_inputs(arena: SimpleNamespace, name: str) -> None:
    source = arena.planted.TASKS[name].data(0).validation
    inputs, labels = (torch.cat(part) for part in zip(*source.epoch(0), strict=True))
    logits = source.teacher(inputs)
    assert logits.std(0).tolist() == pytest.approx([arena.labels.TEMPERATURE] * 10, rel=0.2)
    assert torch.nn.functional.cross_entropy(logits, labels) < 1.6 < math.log(10)
    assert labels.bincount(minlength=10).min() > 10


@pytest.mark.parametrize("number", range(4))
def test_drawn_tasks_have_teachers_of_their_kind(arena: SimpleNamespace, number: int) -> None:
    task, again = arena.planted.drawn(number), arena.planted.drawn(number)
    assert (task.full, task.planted) == (again.full, again.planted)
    assert task.planted != arena.planted.drawn(number + 1).planted
    assert 0.08 <= task.targets[0] <= 0.35
    assert all(small <= wide for small, wide in zip(task.planted, task.full, strict=True))


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_fixed_structures_come_close_to_the_target(
    arena: SimpleNamespace, name: str, rounded: bool
) -> None:
    task = arena.planted.TASKS[name]
    (target,) = task.targets
    for base in (task.full, task.half):
        shape = task.fitted(base, target, rounded)
        assert [bool(width) for width in shape] == [bool(width) for width in base]
        if rounded:
            wide = [w for w, full in zip(shape, task.full, strict=True) if full >= 16]
            assert all(width % 8 == 0 for width in wide)
        else:
            assert task.macs_of(shape) == pytest.approx(target * task.full_macs, rel=0.06)


METHODS = {
    "scratch": "dense planted uniform half-depth random guyot guyot-rebuilt l2-10 l1-global-25 "
    "fisher-10 isomorphic-25 group-norm-10",
    "checkpoint": "dense guyot guyot-shrink taylor taylor-global",
    "distilled": "dense guyot l2",
}


@pytest.mark.parametrize("start", METHODS)
def test_methods_end_near_the_target(
    arena: SimpleNamespace, tmp_path: Path, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.setattr(arena.cuts, "MEASURED", 1)
    task = quick(arena, "mlp-4x80", 100)
    (target,) = task.targets
    names = arena.methods.methods(task, start, {})
    chosen = METHODS[start].split()
    assert set(chosen) <= set(names)
    weights = arena.training.dense_weights(
        task, arena.job.Run(task.name, start, "dense", 1.0, False, 1), tmp_path
    )
    arena.training.keep(task.make(task.full), weights)
    for name in chosen:
        share = 1.0 if name == "dense" else target
        run = arena.job.Run(task.name, start, name, share, False, 1)
        result = arena.training.train(task, run, tmp_path, tmp_path)
        arena.crew.write(result, arena.crew.path_of(run, tmp_path))
        assert result["share"] == pytest.approx(share, rel=0.03), run.name
        assert result["steps"] == 100 and len(result["losses"]) == 10
        assert share - 0.01 <= result["cost"] <= 1
        assert result["test"]["loss"] < 3


@pytest.mark.parametrize("name", NAMES[2:])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_cuts_of_other_networks(
    arena: SimpleNamespace, tmp_path: Path, name: str, scope: str
) -> None:
    pytest.importorskip("torch_pruning")
    task = quick(arena, name, 4)
    method = "l2-25" if scope == "uniform" else "l2-global-25"
    run = arena.job.Run(name, "scratch", method, task.targets[0], False, 0)
    result = arena.training.train(task, run, tmp_path, tmp_path)
    assert result["share"] == pytest.approx(task.targets[0], rel=0.1)


def test_a_shallower_stack_keeps_trained_blocks(arena: SimpleNamespace) -> None:
    def make(shape: tuple[int, int]) -> torch.nn.Module:
        width, depth = shape
        return torch.nn.ModuleDict(
            {"blocks": torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(depth)))}
        )

    model = make((4, 5))
    blocks = list(model["blocks"])
    job = SimpleNamespace(
        task=SimpleNamespace(
            stack="blocks", full=(4, 5), full_macs=80, macs_of=lambda shape: 16 * shape[1]
        ),
        run=SimpleNamespace(target=0.57),
        model=model,
        take=lambda smaller: None,
    )
    arena.methods.Shallower().begin(job)
    assert list(model["blocks"]) == [blocks[0], blocks[2], blocks[4]]


def test_test_data_are_read_once_after_the_last_step(
    arena: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = quick(arena, "mlp-4x80", 100)
    data, read, job = task.data(0), list[int](), None

    class Watched:
        def epoch(self, number: int) -> object:
            read.append(job.step)
            return data.test.epoch(number)

    begun = arena.training.begin

    def watched(*arguments: object) -> object:
        nonlocal job
        job = begun(*arguments)
        job.data = replace(data, test=Watched())
        return job

    monkeypatch.setattr(arena.training, "begin", watched)
    run = arena.job.Run("mlp-4x80", "scratch", "guyot", task.targets[0], False, 0)
    arena.training.train(task, run, tmp_path, tmp_path)
    assert read == [100]


def test_the_same_run_twice_is_the_same(arena: SimpleNamespace, tmp_path: Path) -> None:
    task = quick(arena, "mlp-4x80", 100)
    for method in ("uniform", "guyot"):
        run = arena.job.Run(task.name, "scratch", method, task.targets[0], False, 2)
        first, second = (arena.training.train(task, run, tmp_path, tmp_path) for _ in range(2))
        assert first["losses"] == second["losses"]
        assert first["test"] == second["test"]


def test_paired_differences_by_hand(arena: SimpleNamespace) -> None:
    pytest.importorskip("scipy")
    found = arena.paired.paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    # mean 2, deviation 1, error 1/sqrt(3); t = 2 sqrt(3) with 2 degrees of freedom, whose
    # distribution is F(t) = 1/2 + t / (2 sqrt(2 + t^2)), so p = 1 - sqrt(12/14)
    assert found.mean == pytest.approx(2)
    assert found.p == pytest.approx(1 - math.sqrt(12 / 14))
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-5)
    assert arena.paired.paired([1.0], [3.0]).mean == -2
    assert arena.paired.paired([1.0], [3.0]).p == 1
    assert arena.paired.paired([1.0, 1.0], [1.0, 1.0]).p == 1


def result_of(arena: SimpleNamespace, method: str, seed: int, loss: float) -> dict[str, object]:
    """A result as `train` writes it, as far as the table reads it."""
    run = arena.job.Run("mlp-4x80", "scratch", method, 0.1064, False, seed)
    scores = {"loss": loss, "accuracy": 1 - loss / 4}
    return {
        "run": asdict(run),
        "recipe": asdict(arena.planted.TASKS["mlp-4x80"].recipe),
        "settings": {} if method == "guyot" else None,
        "share": 0.1064,
        "cost": 0.2,
        "params": 2000,
        "training_loss": loss,
        "validation": scores,
        "test": scores,
        "machine": {"cpu": "abacus"},
        "versions": {"torch": "2"},
    }


def test_the_table_names_the_best_rival(arena: SimpleNamespace) -> None:
    pytest.importorskip("scipy")
    losses = {
        "guyot": [1.0, 1.1],
        "planted": [0.8, 0.9],
        "uniform": [1.4, 1.6],
        "half-depth": [1.5, 1.5],
        "grid-depth-1": [1.3, 1.7],
        "l2-10": [1.2, 1.4],
    }
    results = [
        result_of(arena, method, seed, loss)
        for method, values in losses.items()
        for seed, loss in enumerate(values)
    ]
    text = arena.page.page(results)
    assert "test loss − l2-10" in text
    (ours,) = [line for line in text.splitlines() if line.startswith("| **guyot**")]
    assert "-0.2500 ± 0.6353, p = 0.13" in ours
    (hand,) = [line for line in text.splitlines() if "best of 3 by hand" in line]
    assert "| 1.4000 ± 0.1414 |" in hand  # 1.3 of the first seed, 1.5 of the second
    assert "test loss − planted" in arena.page.page(results, "planted")
    first, *_, row = arena.page.summary(results).splitlines()
    assert first == "From scratch:"
    assert "| mlp-4x80 | 0.1064 | 2 | l2-10 | 1.3000 ± 0.1414 | 1.0500 ± 0.0707 |" in row
    assert "| -0.2500 ± 0.6353, p = 0.13 |" in row and "| +0.2000 ± 0.0000" in row


def orders(arena: SimpleNamespace, folder: Path, **others: object) -> object:
    return arena.crew.Orders(folder, folder / "weights", **others)


def test_what_has_a_result_is_skipped(arena: SimpleNamespace, tmp_path: Path) -> None:
    crew = arena.crew.Crew(orders(arena, tmp_path), arena.tasks.task_of)
    found = result_of(arena, "guyot", 0, 1.0)
    run = arena.job.Run(**found["run"])
    path = arena.crew.path_of(run, tmp_path)
    arena.crew.write(found, path)
    before = path.read_bytes()
    crew.carry_out([run])
    assert crew.done == 0 and path.read_bytes() == before
    arena.crew.write(found | {"recipe": {"steps": 3}}, path)
    with pytest.raises(SystemExit, match="give another folder with --results"):
        crew.carry_out([run])


def test_runs_wait_for_what_they_build_on(arena: SimpleNamespace, tmp_path: Path) -> None:
    crew = arena.crew.Crew(orders(arena, tmp_path), arena.tasks.task_of)
    dense = arena.job.Run("mlp-4x80", "scratch", "dense", 1.0, False, 0)
    after = replace(dense, start="checkpoint", method="l2", target=0.1064)
    rebuilt = replace(dense, method="guyot-rebuilt", target=0.1064)
    queue = [after, rebuilt, dense]
    assert crew._next(queue) == dense
    assert queue == [after, rebuilt] and crew._next(queue) is None
    weights = arena.training.dense_weights(
        arena.planted.TASKS["mlp-4x80"], dense, tmp_path / "weights"
    )
    arena.training.keep(torch.nn.Linear(1, 1), weights)
    assert crew._next(queue) == after


def test_no_run_begins_that_cannot_end_in_time(arena: SimpleNamespace, tmp_path: Path) -> None:
    crew = arena.crew.Crew(orders(arena, tmp_path, minutes=1.0), arena.tasks.task_of)
    run = arena.job.Run("mlp-4x80", "scratch", "uniform", 0.1064, False, 0)
    crew.times["mlp-4x80", "scratch"].append(90.0)
    assert crew._next([run]) is None
    crew.times["mlp-4x80", "scratch"] = [30.0]
    assert crew._next([run]) == run


def test_runs_of_a_command_line(
    arena: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "arena.py --list --tasks mlp-4x80 --methods dense,guyot* --seeds 0,2 --starts scratch"
    monkeypatch.setattr(sys, "argv", [*line.split(), "--guyot", 'late={"warmup": 0.3}'])
    arena.command.main()
    names = [row.split()[0] for row in capsys.readouterr().out.splitlines()]
    assert len(names) == len(set(names))
    assert {"mlp-4x80/scratch-dense-s0", "mlp-4x80/scratch-guyot-late-0.1064-exact-s2"} <= {*names}
    assert not any("s1" in name or "l2" in name for name in names)
    monkeypatch.setattr(sys, "argv", ["arena.py", "--guyot", "late=0.3"])
    with pytest.raises(SystemExit):
        arena.command.main()
    assert "give NAME={" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*line.split(), "--methods", "dense,magic"])
    with pytest.raises(SystemExit):
        arena.command.main()
    assert "--methods magic names no method" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["arena.py", "--starts", "scrath"])
    with pytest.raises(SystemExit):
        arena.command.main()
    assert "--starts scrath: choose among scratch" in capsys.readouterr().err


@pytest.mark.slow
def test_a_call_writes_results_in_other_processes(arena: SimpleNamespace, tmp_path: Path) -> None:
    crew = arena.crew.Crew(orders(arena, tmp_path, processes=2), arena.tasks.task_of)
    run = arena.job.Run("mlp-4x80", "scratch", "uniform", 0.1064, False, 0)
    crew.carry_out([run, replace(run, seed=1)])
    assert crew.done == 2 and not crew.failed
    found = json.loads(arena.crew.path_of(run, tmp_path).read_text())
    assert found["versions"]["torch"] == torch.__version__
