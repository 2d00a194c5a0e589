"""Files of somebody else run nothing unless their user says so, and take no memory."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import guyot
from guyot import MisconfiguredError
from guyot.app import running
from guyot.app.cli.commands import app
from guyot.app.config import RunConfig
from guyot.app.factories import is_factory
from guyot.app.models import build
from guyot.app.running.together import resolve_together, resuming
from guyot.core.parallel import Ranks

CODE = """
from pathlib import Path
from guyot.app.models import build
from guyot.app.running.together import resolve_together, resuming
from guyot.core.parallel import Ranks

Path(__file__).with_suffix(".ran").touch()

def factory():
    return build("digits")
"""
COMMANDS = (
    ("evaluate", "{run}"),
    ("export", "{run}", "--format", "state-dict"),
    ("train", "--resume", "{run}"),
    ("train", "--config", "{run}/config.json", "--out", "{run}/out"),
    ("sweep", "{run}/sweep", "--config", "{run}/config.json", "--target", "0.5"),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder that names a function beside it."""
    (tmp_path / "notes.py").write_text(CODE)
    folder = tmp_path / "run"
    found = {"units": {}, "removed_layers": [], "mean": [0.0], "std": [1.0], "classes": 10}
    found["model"] = name = f"{tmp_path}/notes.py:factory"
    guyot.save(folder, build("digits"), (torch.zeros(2, 1, 8, 8),), found)
    config = RunConfig.of("digits", model=name, epochs=2)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def edit(run: Path, name: str, **values: Any) -> None:
    found = json.loads((run / name).read_text())
    (run / name).write_text(json.dumps({**found, **values}))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_function_that_a_file_names_is_not_called(command: tuple[str, ...], run: Path):
    done = CliRunner().invoke(app, [part.format(run=run) for part in command])
    assert done.exit_code == 2
    assert re.search("names (--)?model='", done.stderr)
    assert "give --trust if you trust it" in done.stderr
    assert not (run.parent / "notes.ran").exists()


def test_it_is_called_when_its_user_says_so(run: Path):
    with pytest.raises(MisconfiguredError, match="a function whose code would run"):
        running.load_run(run)
    assert running.load_run(run, trust=True)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert (run.parent / "notes.ran").exists()


@pytest.mark.parametrize("trust", [[], ["--trust"]])
def test_a_member_of_a_family_is_a_file_too(run: Path, trust: list[str]):
    """Its own settings may name a function that those of the family do not."""
    edit(run, "config.json", model="digits", target=None, targets=[0.7, 0.5])
    (run / "0.5").mkdir()
    config = RunConfig.of("digits", model=f"{run.parent}/notes.py:factory", epochs=2, keep=0)
    (run / "0.5" / "config.json").write_text(json.dumps(config.to_dict()))
    done = CliRunner().invoke(app, ["train", "--resume", str(run), *trust])
    assert done.exit_code == 2
    assert ("made with --keep=0" in done.stderr) == bool(trust)  # only then it is looked at further


def test_a_name_that_was_typed_is_trusted(run: Path):
    out = str(run / "new")
    typed = ["--model", "digits", "--epochs", "0"]  # another mistake, which comes later
    done = CliRunner().invoke(
        app, ["train", "--config", f"{run}/config.json", *typed, "--out", out]
    )
    assert done.exit_code == 2 and "--epochs=0" in done.stderr and "trust" not in done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": 10**5}, r"classes=100000, which is no size of any tensor"),
        ({"classes": 10**9}, r"classes is 1000000000, expected a whole number of 1 to"),
        ({"classes": True}, r"classes is True, expected a whole number"),
        ({"classes": 10.0}, r"classes is 10\.0, expected a whole number"),
        ({"mean": "0"}, r"mean is '0', expected a list"),
        ({"inputs": [{"tensor": [2, 1, 8, 10**6], "dtype": "float32"}]}, r"tensor\[3\] is 1000000"),
        ({"inputs": []}, r"inputs is a list of 0"),
        ({"model": 3}, r"model is 3, expected a text"),
    ],
)
def test_sizes_and_kinds_are_checked_before_a_network_is_made(
    run: Path, values: dict[str, Any], message: str
):
    edit(run, "structure.json", model="digits")
    edit(run, "structure.json", **values)
    with pytest.raises(MisconfiguredError, match=message):
        running.load_run(run)


def test_networks_of_packages_are_no_functions():
    names = (
        "digits",
        "guyot:digits",
        "torchvision:resnet18",
        "timm:resnet18",
        "os:getcwd",
        "a.py:f",
    )
    assert [is_factory(name) for name in names] == [False] * 4 + [True] * 2


def test_the_numbers_of_processes_that_may_resume_are_named():
    """A run goes on with fewer or more processes, but each needs as many images of a batch."""
    three = Ranks(None, torch.device("cpu"))
    three.size = 3
    config = RunConfig.of("digits", batch_size=8)
    with pytest.raises(MisconfiguredError, match=r"over 3 processes: start 1, 2, 4 or 8 processes"):
        resolve_together(config, three)
    assert "any number of processes that divides batch_size" in resuming("run")
