"""Runs in several processes that are killed, and how they go on: real processes, real SIGKILL."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from paths import HELPERS
from run_folders import assert_same, lines

pytestmark = pytest.mark.timeout(3600)  # processes share what cores there are
KILLED = -9


def together(size: int, folder: Path, *kill: object) -> list[tuple[int, str]]:
    """Train in so many processes, or go on; how each of them ended, and what it said."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(HELPERS / "killed.py"), str(folder), *map(str, kill)]
    places = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    found = [
        subprocess.Popen(
            command,
            env=os.environ | places | {"RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]
    said = [process.communicate(timeout=600)[0] for process in found]
    return [(process.returncode, text) for process, text in zip(found, said, strict=True)]


def assert_killed(ends: list[tuple[int, str]], ranks: list[int]) -> None:
    """These ranks were killed, and each of the others said so."""
    for rank, (code, said) in enumerate(ends):
        if rank in ranks:
            assert code == KILLED, said
        else:
            assert code == 1, said
            assert re.search(r"error: rank \d of \d ends: .* train --resume \S+ continues it", said)


def undisturbed_by(size: int, folder: Path) -> Path:
    assert [code for code, _ in together(size, folder, "never", 0)] == [0] * size
    removals = [line for line in lines(folder) if line["event"] == "removal"]
    assert len(removals) > 2
    return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed_by(2, tmp_path_factory.mktemp("runs") / "undisturbed")


@pytest.mark.slow
def test_both_processes_are_killed_in_the_middle_of_discovery(
    tmp_path: Path, undisturbed: Path
) -> None:
    run = tmp_path / "run"
    assert_killed(together(2, run, "step", 33, 0, 1), [0, 1])
    (checkpoint,) = (run / "checkpoints").glob("step-*27")
    state = json.loads((checkpoint / "state.json").read_text())
    assert state["discovery"]["generator"] is not None
    (other,) = state["ranks"]
    assert set(other) == {"random", "position"}
    assert [code for code, _ in together(2, run, "never", 0)] == [0, 0]
    assert_same(run, undisturbed)


@pytest.mark.slow
def test_any_process_is_killed_at_any_moment(tmp_path: Path, undisturbed: Path) -> None:
    """In steps, removals, writes and validation; rank 0, rank 1, or both of them."""
    chance = random.Random(2)
    bounds = {"step": 60, "slice": 40, "write": 40, "validation": 12}
    came: list[tuple[str, str]] = []
    for number in range(20):
        run, ended = tmp_path / str(number), False
        for _ in range(6):
            moment, ranks = chance.choice([*bounds]), chance.choice([[0], [1], [0, 1]])
            if moment == "write":
                ranks = [0]  # the others do not write
            ends = together(2, run, moment, chance.randint(1, bounds[moment]), *ranks)
            ended = all(code == 0 for code, _ in ends)
            if ended:
                break
            dead = [rank for rank, (code, _) in enumerate(ends) if code == KILLED]
            assert dead and set(dead) <= set(ranks), ends
            came.append((moment, str(dead)))
        if not ended:
            assert [code for code, _ in together(2, run, "never", 0)] == [0, 0]
        assert_same(run, undisturbed)
        if len(came) >= 12:
            break
    assert len(came) >= 12 and {moment for moment, _ in came} == {*bounds}, came
    assert {dead for _, dead in came} >= {"[0]", "[1]"}, came


@pytest.mark.slow
def test_three_processes_add_up_in_one_order(tmp_path: Path) -> None:
    """Of three numbers the order of additions counts, also across a start."""
    whole, run = undisturbed_by(3, tmp_path / "whole"), tmp_path / "run"
    assert_killed(together(3, run, "step", 33, 1), [1])
    assert_killed(together(3, run, "step", 20, 0, 2), [0, 2])
    assert [code for code, _ in together(3, run, "never", 0)] == [0] * 3
    assert_same(run, whole)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    """Not bit for bit, which is said; the structure meets the same target."""
    run = tmp_path / "run"
    assert_killed(together(2, run, "step", 33, 1), [1])
    ((code, _),) = together(1, run, "step", 20)
    assert code == KILLED
    assert [code for code, _ in together(4, run, "never", 0)] == [0] * 4
    result, other = (json.loads((path / "result.json").read_text()) for path in (run, undisturbed))
    shares = [found["after"]["macs"] / found["before"]["macs"] for found in (result, other)]
    assert abs(shares[0] - shares[1]) < 0.02
