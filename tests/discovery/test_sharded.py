"""Discovery of models under `fully_shard` (FSDP2): real processes, started by torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import HELPERS
from sharded import SCENARIOS, THOROUGH

pytestmark = pytest.mark.timeout(1800)  # processes share what cores there are


def outcomes_of(processes: int, folder: Path, *names: str) -> list[dict[str, str | None]]:
    """What scenarios came to in each of some processes; None: well."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(HELPERS / "sharded.py"), str(folder), *names]
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str | None]]:
    return outcomes_of(2, tmp_path_factory.mktemp("two"), *SCENARIOS)


@pytest.fixture(scope="module")
def thorough(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str | None]]:
    """Of all scenarios in four processes, and of those that the other test leaves out in two."""
    found: dict[str, dict[str, str | None]] = {}
    left = [name for name in THOROUGH if name not in SCENARIOS]
    for processes, names in ((2, left), (4, [*THOROUGH])):
        folder = tmp_path_factory.mktemp(str(processes))
        for rank, outcome in enumerate(outcomes_of(processes, folder, *names)):
            found[f"rank {rank} of {processes}"] = outcome
    return found


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes(name: str, of_two: list[dict[str, str | None]]) -> None:
    for rank, outcome in enumerate(of_two):
        assert outcome[name] is None, f"rank {rank}: {outcome[name]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", THOROUGH)
def test_two_and_four_processes(name: str, thorough: dict[str, dict[str, str | None]]) -> None:
    for rank, outcome in thorough.items():
        assert outcome.get(name) is None, f"{rank}: {outcome[name]}"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_a_process_is_killed_at_any_moment_of_a_save(tmp_path: Path, ranks: tuple[int]) -> None:
    """The checkpoint before is what two others resume, until the new one has its name."""
    command = [sys.executable, str(HELPERS / "sharded_killed.py"), str(tmp_path), *map(str, ranks)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    *killed, whole = map(json.loads, done.stdout.splitlines())
    assert whole["saved"] == [0, 0] and whole["step"] == 28
    assert len(killed) >= 4
    for found in killed:
        codes = {rank: code for rank, code in enumerate(found["saved"]) if code != -9}
        assert len(codes) < 2 and set(codes.values()) <= {3}, found
    for found in (*killed, whole):
        assert found["resumed"] == [0, 0] and found["equal"], found
        assert found["left"] == [f"step-{found['step'] + more:09}" for more in (0, 1)]
    steps = [found["step"] for found in killed]
    assert steps == sorted(steps) and set(steps) <= {26, 28}
