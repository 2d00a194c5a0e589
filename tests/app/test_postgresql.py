"""Machines that share a sweep in a PostgreSQL server, which the test starts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

MACHINES, TARGETS = 4, [round(0.3 + 0.05 * n, 2) for n in range(12)]


def programs() -> Path:
    """Where `initdb` and `postgres` are; Debian's are not on the PATH."""
    places = [shutil.which("initdb"), *sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))]
    found = [Path(place).resolve().parent for place in places if place]
    if not found:
        pytest.skip("needs a PostgreSQL server: apt-get install postgresql")
    return found[-1]


@pytest.fixture
def storage() -> Iterator[str]:
    """The address of an empty database; a server never runs as root."""
    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="guyot-postgresql-"))
    user: dict[str, Any] = {"cwd": folder}
    if os.getuid() == 0:
        user |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
        shutil.chown(folder, "nobody", "nogroup")
    here, data = programs(), folder / "data"
    initdb = [here / "initdb", "-D", data, "-U", "guyot", "-A", "trust", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, **user)
    server = subprocess.Popen(
        [here / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"],
        stderr=(folder / "log").open("w"),
        **user,
    )
    try:
        until(lambda: ready(here, folder), server)
        yield f"postgresql+psycopg://guyot@/postgres?host={folder}"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(60)
        shutil.rmtree(folder)


def ready(here: Path, folder: Path) -> bool:
    return subprocess.run([here / "pg_isready", "-q", "-h", folder], check=False).returncode == 0


def until(condition: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_trial_is_lost_or_doubled_when_a_machine_dies(storage: str, tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    log = tmp_path / "sweep" / "log"
    targets = ",".join(map(str, TARGETS))
    command = [sys.executable, ROOT / "tests/helpers/sweeping.py", tmp_path / "sweep"]
    machines = [
        subprocess.Popen([*command, storage, targets], stdout=subprocess.PIPE, text=True)
        for _ in range(MACHINES)
    ]

    def lines() -> list[list[str]]:
        return [line.split() for line in log.read_text().splitlines()] if log.exists() else []

    def working() -> list[str]:
        """The machines that have a trial at this moment."""
        count = Counter(machine for _, _, machine in lines())
        return [machine for machine in count if count[machine] % 2]

    try:
        victim = machines[0]
        until(lambda: str(victim.pid) in working(), victim)
        victim.kill()
        outputs = [machine.communicate(timeout=600)[0] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [-signal.SIGKILL, 0, 0, 0]
    assert outputs[1:] == [f"{len(TARGETS)} 0\n"] * 3
    began, ended = (Counter(n for what, n, _ in lines() if what == w) for w in ("begins", "ends"))
    assert len(ended) == len(TARGETS) and set(ended.values()) == {1}
    (interrupted,) = [
        name
        for what, name, machine in lines()
        if machine == str(victim.pid)
        if (["ends", name, machine] not in lines())
    ]
    assert began == ended + Counter([interrupted])
    assert len({machine for _, _, machine in lines()}) == MACHINES
    study = optuna.load_study(study_name="guyot-sweep", storage=storage)
    states = Counter(trial.state.name for trial in study.trials)
    assert states["COMPLETE"] == len(TARGETS) and not states["RUNNING"] and not states["WAITING"]
    done = [t.user_attrs["dials"]["target"] for t in study.trials if t.state.name == "COMPLETE"]
    assert sorted(done) == TARGETS
