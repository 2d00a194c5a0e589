"""Several processes that train one model: real ones, started by torchrun."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from paths import HELPERS, ROOT
from torch import nn
from workers import SCENARIOS

from guyot import Discovery, MisconfiguredError, UnsupportedError
from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.data import Batches, load_dataset
from guyot.app.launch import launched, local_device, processes
from guyot.app.running.together import resolve_together
from guyot.core.errors import ParallelError
from guyot.core.parallel import Ranks
from guyot.discovery.optimizers import Optimizers
from guyot.planning.benefits import SideMeans, SideSums
from guyot.planning.evidence import Evidence

pytestmark = pytest.mark.timeout(1200)  # processes share what cores there are
WORKERS = HELPERS / "workers.py"


def torchrun(*arguments: str, processes: int = 2, fails: bool = False) -> str:
    """Start processes on a free port, one thread each; what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command, f"--nproc-per-node={processes}", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert (done.returncode != 0) == fails, done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str | None]]:
    """What every scenario came to in each of two processes; None: well."""
    folder = tmp_path_factory.mktemp("outcomes")
    torchrun(str(WORKERS), str(folder))
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes(name: str, outcomes: list[dict[str, str | None]]) -> None:
    for rank, outcome in enumerate(outcomes):
        assert outcome[name] is None, f"rank {rank}: {outcome[name]}"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("die", r"rank 0 of 2 ends: rank 1 does not live any more \(.*\); go on from the last ch"),
        pytest.param(
            "hang",
            r"rank 0 of 2 ends: all processes live, but one did not answer \(Timed out waiting",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_rank_that_is_lost_ends_the_others(how: str, message: str) -> None:
    said = torchrun(str(WORKERS.with_name("dying.py")), how, fails=True)
    assert re.search(message, said), said


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(tmp_path: Path) -> None:
    """2 processes, one of which is killed; then 1, stopped; then 2 again, to the end."""
    run = tmp_path / "run"
    script = str(WORKERS.with_name("training.py"))
    said = torchrun(script, "train", str(run), "25", fails=True)
    assert re.search(
        r"rank 0 of 2 ends: rank 1 does not live .* train --resume \S+ continues it", said
    )
    there = [path.name for path in (run / "checkpoints").iterdir()]
    assert "step-000000020" in there

    steps = itertools.count()
    outcome = running.resume(run, stop=lambda: next(steps) > 12)
    assert outcome.interrupted == "discovery"

    torchrun(script, "resume", str(run))
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    assert 0.45 < result["after"]["macs"] / result["before"]["macs"] < 0.52
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == list(range(1, 7))
    assert running.load_run(run)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def launch(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_launchers_run_the_command_unchanged(tmp_path: Path) -> None:
    """torchrun and `accelerate launch` start two processes of the same command: one network.

    Without GPUs Accelerate starts one process whatever --num_processes says, but with --multi_gpu.
    """
    train = """-m guyot train --data digits --epochs 5 --batch-size 64 --target 0.6 --round-to 4
        --seed 3 --threads 1 --device cpu --deterministic --out""".split()
    accelerate = """-m accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1
        --mixed_precision no --dynamo_backend no --num_cpu_threads_per_process 1""".split()
    torchrun = "-m torch.distributed.run --standalone --nproc-per-node=2".split()
    runs = {}
    for name, launcher in (("accelerate", accelerate), ("torchrun", torchrun)):
        folder = tmp_path / name
        said = launch(*launcher, *train, str(folder))
        assert "find_unused_parameters" not in said and "bucket view strides" not in said, said
        result = json.loads((folder / "result.json").read_text())
        assert result["status"] == "finished"
        assert result["after"]["macs"] / result["before"]["macs"] == pytest.approx(0.6, abs=0.03)
        (last,) = [*(folder / "checkpoints").glob("*/state.json")][-1:]
        assert len(json.loads(last.read_text())["ranks"]) == 1  # of a second process
        runs[name] = (folder / "model.safetensors").read_bytes()
    assert runs["accelerate"] == runs["torchrun"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_shares_of_a_batch_are_the_batch(ranks: int) -> None:
    data = load_dataset("digits")
    split = dataclasses.replace(data.train)
    for augment in (True, False):
        whole = Batches(data, split, 50, augment=augment, seed=3)
        parts = [
            Batches(data, split, 50, augment=augment, seed=3, share=(rank, ranks))
            for rank in range(ranks)
        ]
        for batch, *shares in zip(
            whole.epoch(2, start=4), *(part.epoch(2, start=4) for part in parts), strict=True
        ):
            for n, expected in enumerate(batch):
                assert torch.equal(torch.cat([share[n] for share in shares]), expected)


def test_batches_that_cannot_be_split() -> None:
    with pytest.raises(MisconfiguredError, match=r"batch_size=64 images .* multiple of 3"):
        resolve_together(RunConfig.of("digits"), Several(0, 3))


def test_what_a_launcher_forgot(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with (
        pytest.raises(
            MisconfiguredError, match=r"WORLD_SIZE=3 .* but RANK is missing: .* torchrun"
        ),
        processes("cpu"),
    ):
        pass
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(MisconfiguredError, match="WORLD_SIZE='many' in the environment are no"):
        launched()


def test_others_that_never_come(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    places = {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    for name, value in places.items():
        monkeypatch.setenv(name, str(value))
    with (
        pytest.raises(ParallelError, match=r"rank 1 of 2 found no others within 1 s: .* MASTER_"),
        processes("cpu", timeout=1),
    ):
        pass


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes("cpu") as ranks:
        assert (ranks.rank, ranks.size) == (0, 1)
        assert not ranks.any(False)
        assert ranks.any(True)
    assert local_device("cpu") == "cpu"


def test_devices_are_those_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "9"), ("WORLD_SIZE", "16"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert launched() == (9, 16)
    assert local_device("cuda") == "cuda:1"
    assert local_device("cuda:3") == "cuda:3"


def test_the_volumes_in_the_documentation_were_counted() -> None:
    """The page has the table of the recorded result, whose volumes real processes sent."""
    root = ROOT
    path = root / "benchmarks" / "communication.py"
    spec = importlib.util.spec_from_file_location("communication", path)
    assert spec is not None and spec.loader is not None
    communication = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(communication)
    result = json.loads(communication.RESULT.read_text())
    assert communication.table(result) in (root / "docs" / "parallel.md").read_text()
    for counts in result["counted"]:
        for name in ("gradients", "gate sums", "norms", "hash"):
            assert counts[name]["counted"] == counts[name]["said"] > 0
    for model in result["models"].values():
        assert model["modelled"] == communication.modelled(model["size"])
    link = {"alpha": 1e-6, "beta": 1e9}
    assert communication.ring(8e6, 2, **link) == pytest.approx(2e-6 + 8e-3)
    assert communication.all_reduce(8, 1024, link) == communication.tree(8, 1024, **link)
    assert communication.all_reduce(8e9, 1024, link) == communication.ring(8e9, 1024, **link)


def test_one_rank_says_nothing_to_itself() -> None:
    ranks, values, generator = Ranks(), torch.arange(3.0), torch.Generator()
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.mean(values) is values
    assert ranks.sum(values) is values
    assert ranks.stream(generator) is generator
    ranks.agree("anything", values)


class Several(Ranks):
    """One of many ranks, without the others."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size


def test_every_rank_has_a_stream_of_its_own() -> None:
    """Different on every rank and in every step; the source stays the same on all of them."""
    draws: set[tuple[float, ...]] = set()
    sources: set[bytes] = set()
    for rank in range(100):
        source = torch.Generator().manual_seed(3)
        for _ in range(5):
            draws.add(tuple(torch.rand(3, generator=Several(rank, 100).stream(source)).tolist()))
        sources.add(source.get_state().numpy().tobytes())
    assert len(sources) == 1
    assert len(draws) == 500
    firsts = torch.tensor([draw[0] for draw in draws])
    assert abs(float(firsts.mean()) - 0.5) < 4 * (1 / 12 / 500) ** 0.5


@given(st.integers(1, 9), st.integers(0, 10**6))
def test_a_rank_s_sample_weighs_what_it_saw(size: int, seed: int) -> None:
    """Ranks that all sample one side move a running mean as one rank with all their images does."""
    torch.manual_seed(seed)
    gradient, gate = torch.randn(size, 4), (torch.rand(4) < 0.5).float()
    off, squares = (1 - gate).expand(size, -1), gradient.square()
    rows = (gradient * gate, gradient * off, 1 - off, squares * gate, squares * off)
    every = torch.cat([*rows, torch.ones(size, 1)], dim=1)

    def mean(values: torch.Tensor) -> torch.Tensor:
        torch.testing.assert_close(values, every[0])
        return every.mean(0)

    evidence = Evidence(4, "cpu")
    evidence.add(gradient[0], gate, 1, mean)
    shared = evidence.take().sums
    whole = SideSums.from_sample(gradient.mean(0), gate)
    several = one = SideMeans.start(4)
    for _ in range(3):
        several, one = several.updated(shared, 0.96), one.updated(whole, 0.96)
    for name in ("mean_one", "weight_one", "mean_zero", "weight_zero"):
        torch.testing.assert_close(getattr(several, name), getattr(one, name))


def test_sides_that_some_ranks_sampled() -> None:
    """Half of the ranks on a side are half a sample: weight 1 - decay ** 0.5."""
    ones = torch.ones(1)
    halves = (3 * ones / 2, ones / 2, 5 * ones / 2, ones / 2)
    sums = SideSums(*halves, ones, ones, predictions=8)
    means = SideMeans.start(1).updated(sums, decay=0.9)
    torch.testing.assert_close(means.weight_one, 1 - 0.9 ** (ones / 2))
    torch.testing.assert_close(means.mean_one / means.weight_one, 3 * ones)
    torch.testing.assert_close(means.mean_zero / means.weight_zero, 5 * ones)


def test_data_parallel_is_refused() -> None:
    model = nn.DataParallel(CASES["mlp"].build())
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    with pytest.raises(UnsupportedError, match=r"DataParallel copies .* DistributedDataParallel"):
        Discovery(model, (CASES["mlp"].inputs(),), optimizer, total_steps=100, target=0.5)


def test_sharded_optimisers_are_refused() -> None:
    class ZeroRedundancyOptimizer(torch.optim.SGD):
        """As torch's, which needs a process group."""

    model = CASES["mlp"].build()
    optimizer: Any = ZeroRedundancyOptimizer(model.parameters(), 0.1)
    with pytest.raises(UnsupportedError, match="use the optimiser that it wraps"):
        Optimizers(model, optimizer)
