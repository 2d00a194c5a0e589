"""Whatever is typed or written into a configuration: a run, or one paragraph and exit code 2."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from guyot.app.cli.commands import app
from guyot.app.config import RunConfig
from guyot.core.errors import MisconfiguredError

REACHED = "the settings are fine"


@pytest.fixture(scope="module", autouse=True)
def without_training() -> Iterator[list[RunConfig]]:
    """Training would come next; the configuration that it would get is kept."""
    seen: list[RunConfig] = []

    def train(config: RunConfig, *_: object, **__: object) -> None:
        seen.append(config)
        raise MisconfiguredError(REACHED)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guyot.app.running.train", train)
        yield seen


def options() -> dict[str, bool]:
    """Options of `guyot train` that are settings, and whether they take a value."""
    program: Any = typer.main.get_command(app)
    parameters = program.commands["train"].params
    skip = {"config", "resume", "out", "help"}
    return {p.opts[0]: not p.is_flag for p in parameters if p.name not in skip and p.opts}


VALUES = (
    st.sampled_from(["0", "1", "-1", "0.5", "nan", "inf", "-inf", "1e400", "10m", "", " ", "None"])
    | st.sampled_from(["digits", "cifar10", "imagefolder:", "resnet20", "two-sided", "cosine"])
    | st.integers(-(10**20), 10**20).map(str)
    | st.floats().map(str)
    | st.text(max_size=8).filter(lambda text: not text.startswith("-"))
)


def assert_told(result: Any) -> None:
    """Exit code 2, and no traceback; a mistake is one line."""
    assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert "Traceback" not in result.output
    assert result.stderr.strip()
    assert all(line.startswith("error: ") for line in result.stderr.splitlines()), result.stderr


@given(data=st.data())
def test_any_options(data: st.DataObject) -> None:
    known = options()
    arguments: list[str] = []
    for name in data.draw(st.lists(st.sampled_from(sorted(known)), max_size=4)):
        arguments += [name, data.draw(VALUES)] if known[name] else [name]
    assert_told(CliRunner().invoke(app, ["train", *arguments]))


FIELDS = sorted(RunConfig.of("digits").to_dict())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(data=st.data())
def test_any_configuration(
    tmp_path_factory: pytest.TempPathFactory,
    without_training: list[RunConfig],
    data: st.DataObject,
) -> None:
    """Wrong kinds, unknown keys, contradictions; what passes is in order."""
    settings: Any = RunConfig.of("digits").to_dict()
    names = st.sampled_from(FIELDS) | st.text(max_size=5)
    settings |= data.draw(st.dictionaries(names, JSON, max_size=3))
    if data.draw(st.booleans()):
        settings = data.draw(JSON)
    file = tmp_path_factory.mktemp("config") / "config.json"
    file.write_text(json.dumps(settings))
    without_training.clear()
    result = CliRunner().invoke(app, ["train", "--config", str(file)])
    assert_told(result)
    assert bool(without_training) == (REACHED in result.stderr)
    for config in without_training:
        assert math.isfinite(config.lr) and config.epochs >= 1
        assert RunConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@given(content=st.binary(max_size=40))
def test_any_file_as_configuration(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    file: Path = tmp_path_factory.mktemp("config") / "config.json"
    file.write_bytes(content)
    assert_told(CliRunner().invoke(app, ["train", "--config", str(file)]))


@given(content=st.binary(max_size=40) | JSON.map(lambda data: json.dumps(data).encode()))
def test_any_folder_to_go_on_with(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    folder: Path = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_bytes(content)
    (folder / "result.json").write_bytes(content)
    assert_told(CliRunner().invoke(app, ["train", "--resume", str(folder)]))
