"""`Checkpointer`: what it writes, how a run goes on from it, and what it refuses."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import random
import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from loops import STEPS, Run, checkpointer, same
from paths import HELPERS, ROOT
from safetensors.torch import load_file, save_file
from torch import nn

from guyot import (
    Checkpointer,
    GuyotError,
    GuyotWarning,
    MisconfiguredError,
    SequenceError,
    UnsupportedError,
    rebuild,
)
from guyot.core.errors import StorageError
from guyot.core.storage import SUMS, write_tree
from guyot.discovery.checkpoint import VERSION

FILES = [
    "SHA256SUMS",
    "index.json",
    "manifest.json",
    "model.safetensors",
    "state.json",
    "state.safetensors",
    "structure.json",
]


def noisy(model: nn.Module) -> nn.Module:
    """Draws from every global generator in every forward pass."""

    def noise(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if not module.training:
            return inputs[0]
        scale = random.random() * np.random.random()  # noqa: NPY002 - the global one
        return inputs[0] + scale * torch.randn_like(inputs[0])

    model.register_forward_pre_hook(noise)
    return model


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "nothing was removed|target=.* was not met")
        yield


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [("cifar", "sgd"), pytest.param("tokens", "adamw", marks=pytest.mark.slow)],
)
def test_a_run_goes_on_from_files(tmp_path: Path, name: str, optimizer: str) -> None:
    whole = Run(name, optimizer)
    noisy(whole.model)
    whole.train(0, STEPS)
    ended = torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
    assert whole.discovery.removals
    start = 0
    for stop in (5, 17, 26, 38, 60, STEPS):
        pieces = Run(name, optimizer)
        noisy(pieces.model)
        checkpoints = checkpointer(pieces, tmp_path / "checkpoints")
        position = checkpoints.resume()
        assert position == ({"step": start, "seen": torch.tensor(start)} if start else None)
        pieces.train(start, stop)
        path = checkpoints.save(stop, {"step": stop, "seen": torch.tensor(stop)})
        assert path == checkpoints.checkpoints[-1]
        random.seed(stop), np.random.seed(stop), torch.manual_seed(stop)  # noqa: NPY002
        start = stop
    pieces = Run(name, optimizer)
    checkpointer(pieces, tmp_path / "checkpoints").resume()
    assert same(pieces.states(), whole.states())
    again = torch.rand(3), random.random(), np.random.random()  # noqa: NPY002
    assert torch.equal(again[0], ended[0]) and again[1:] == ended[1:]
    assert same(whole.discovery.finish().state_dict(), pieces.discovery.finish().state_dict())


def test_the_folder_is_as_documented(tmp_path: Path) -> None:
    run = Run("cifar")
    run.train(0, 30)
    path = checkpointer(run, tmp_path).save(30)
    assert path.name == "step-000000030"
    assert sorted(file.name for file in path.iterdir()) == FILES
    manifest = json.loads((path / "manifest.json").read_text())
    found = manifest["format"], manifest["version"], manifest["step"]
    assert found == ("guyot checkpoint", 3, 30)
    assert manifest["torch"] == torch.__version__
    structure = json.loads((path / "structure.json").read_text())
    plain = rebuild(CASES["cifar"].build(), (CASES["cifar"].inputs(),), structure)
    plain.load_state_dict(load_file(path / "model.safetensors"))
    assert same(dict(plain.state_dict()), dict(run.model.state_dict()))
    state = json.loads((path / "state.json").read_text())
    assert list(state) == ["discovery", "parts", "random", "position", "ranks"]
    assert list(state["parts"]) == ["average", "optimizer", "schedule"]


def test_the_last_ones_stay(tmp_path: Path) -> None:
    run = Run("mlp")
    checkpoints = checkpointer(run, tmp_path, keep=3)
    assert checkpoints.checkpoints == [] and checkpoints.resume() is None
    for step in (1, 2, 10, 20, 1_000_000_000):
        checkpoints.save(step)
    names = [path.name for path in checkpoints.checkpoints]
    assert names == ["step-000000010", "step-000000020", "step-1000000000"]
    (tmp_path / "step-nonsense").mkdir()
    (tmp_path / ".unfinished-step-000000030").mkdir()
    checkpoints.save(15)  # the later ones are of another future
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000010",
        "step-000000015",
        "step-nonsense",
    ]


def test_an_earlier_one_can_be_asked_for(tmp_path: Path) -> None:
    run = Run("mlp")
    checkpoints = checkpointer(run, tmp_path)
    run.train(0, 5)
    first = checkpoints.save(5, {"at": 5})
    state = {name: value.clone() for name, value in run.model.state_dict().items()}
    run.train(5, 8)
    checkpoints.save(8, {"at": 8})
    again = Run("mlp")
    assert checkpointer(again, tmp_path).resume(first) == {"at": 5}
    assert same(dict(again.model.state_dict()), state)


def test_runs_without_discovery(tmp_path: Path) -> None:
    def start() -> tuple[nn.Module, torch.optim.Optimizer]:
        model = CASES["mlp"].build()
        return model, torch.optim.Adam(model.parameters(), 0.01)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(CASES["mlp"].inputs()).square().mean().backward()
            optimizer.step()

    model, optimizer = start()
    train(model, optimizer, 5)
    Checkpointer(tmp_path, model, optimizer=optimizer).save(5)
    train(model, optimizer, 5)
    again, its = start()
    assert Checkpointer(tmp_path, again, optimizer=its).resume() == {}
    train(again, its, 5)
    assert same(dict(again.state_dict()), dict(model.state_dict()))


def test_what_cannot_be_saved_is_told(tmp_path: Path) -> None:
    run = Run("mlp")
    with pytest.raises(MisconfiguredError, match="keep=0: give how many checkpoints stay"):
        checkpointer(run, tmp_path, keep=0)
    with pytest.raises(MisconfiguredError, match=r"loss=float has no state_dict\(\)"):
        checkpointer(run, tmp_path, loss=3.0)
    with pytest.raises(MisconfiguredError, match="the discovery is of another Sequential"):
        Checkpointer(tmp_path, CASES["mlp"].build(), run.discovery)
    with pytest.raises(UnsupportedError, match=r"state.position.rows is a set"):
        checkpointer(run, tmp_path).save(1, {"rows": {1}})
    run.model(CASES["mlp"].inputs()).sum().backward()
    run.optimizer.step()
    with pytest.raises(SequenceError, match="between optimizer"):
        checkpointer(run, tmp_path).save(1)
    assert not [*tmp_path.iterdir()]

    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return "text"

        def set_extra_state(self, state: object) -> None: ...

    with pytest.raises(UnsupportedError, match="the model's state has _extra_state, a str"):
        Checkpointer(tmp_path, Extra(2, 2)).save(1)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run("mlp")
    run.train(0, 34)
    assert run.discovery.removals
    return checkpointer(run, tmp_path_factory.mktemp("original")).save(34, {"epoch": 3})


@pytest.fixture
def saved(tmp_path: Path, original: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(copied(original, tmp_path / original.name))


def copied(source: Path, target: Path) -> Path:
    target.mkdir(parents=True)
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    return target


def seal(folder: Path) -> None:
    """Renew the checksums, as somebody would who means it."""
    names = sorted(file.name for file in folder.iterdir() if file.name != SUMS)
    digests = [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names]
    lines = [f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True)]
    (folder / SUMS).write_text("".join(lines))


def edit(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))
    seal(folder)


def set_to(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = to

    return change


@pytest.mark.parametrize("name", [name for name in FILES if name != SUMS])
def test_truncated_and_flipped_files_are_named(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    for spoilt in (
        content[: len(content) // 2],
        b"",
        bytes([content[0] ^ 1, *content[1:]]),
        content + b" ",
    ):
        (saved / name).write_bytes(spoilt)
        with pytest.raises(MisconfiguredError, match=rf"{name} is damaged: its {len(spoilt)} byt"):
            checkpointer(Run("mlp"), saved.parent).resume()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "manifest.json",
            set_to("version", to=1),
            r"version 1, and this guyot reads version 3",
        ),
        ("manifest.json", set_to("version", to=4), r"this is version 4, and this guyot reads vers"),
        ("manifest.json", set_to("format", to="zip"), "this is no checkpoint of guyot"),
        ("structure.json", set_to("units", "0", to=[0, 1]), r"units.0 has 2 entries, expected \d+"),
        ("state.json", set_to("discovery", to=None), "discovery is False, expected True"),
        ("state.json", set_to("parts", "schedule", to=3), "schedule does not fit: the state is 3"),
        ("state.json", set_to("parts", "scaler", to={}), "parts.scaler is unexpected"),
        ("state.json", set_to("position", to=3), "position is False, expected True"),
        ("state.json", set_to("extra", to=3), "extra is unexpected"),
        ("state.json", set_to("discovery", "run", "nu", to=3.0), "of another run: nu is 3.0, exp"),
        ("state.json", set_to("discovery", "controller", "still", to=[]), "still is a list of 0"),
        *(
            (
                "state.json",
                set_to("discovery", "removals", 0, "units", to={"0": [unit]}),
                r"units\.0\[0\] is .*, expected a whole number",
            )
            for unit in (10**30, 1.7, True)
        ),
        (
            "state.json",
            set_to("discovery", "counters", "step", to=True),
            "counters.step is True, expected",
        ),
        (
            "state.json",
            set_to("discovery", "counters", "step", to=1.7),
            "counters.step is 1.7, exp",
        ),
        (
            "state.json",
            set_to("discovery", "removals", 0, "units", to={"0": [10**9]}),
            "takes 1 units of '0', 0 of which are among its 12",
        ),
        (
            "state.json",
            set_to("discovery", "removals", 0, "units", to={"evil": [0]}),
            "units of 'evil', but the network has",
        ),
        (
            "state.json",
            set_to("parts", "optimizer", "param_groups", 0, "lr", to="high"),
            r"optimizer does not fit: param_groups\[0\].lr is 'high'",
        ),
        (
            "state.json",
            set_to("parts", "optimizer", "state", "$items", 0, 0, to=99),
            "optimizer does not fit: state.99 is of no parameter",
        ),
        (
            "state.json",
            set_to(
                *("parts", "optimizer", "state", "$items", 0, 1, "momentum_buffer", "$tensor"),
                to="state.random.torch",
            ),
            r"optimizer does not fit: state.0.momentum_buffer: the state is a uint8 tensor",
        ),
        ("state.json", set_to("discovery", "version", to=1), "version 1 and this guyot reads 5"),
        ("state.json", set_to("ranks", to={}), "ranks is a dict, expected a list"),
        ("state.json", set_to("ranks", to=[3]), r"ranks\[0\] is a int, expected a mapping"),
        ("state.json", set_to("ranks", to=[{"x": {}}]), r"ranks\[0\].x is unexpected"),
        ("state.json", set_to("ranks", to=[{"random": 3}]), r"ranks\[0\].random is a int, exp"),
        ("state.json", set_to("random", "torch", to=[1]), "random does not fit"),
        ("state.json", set_to("random", "python", to=[1]), "random does not fit"),
        ("state.json", set_to("random", "numpy", to=["MT19937"]), "random does not fit"),
    ],
)
def test_other_contents_are_refused(
    saved: Path, name: str, change: Callable[[Any], None], message: str
) -> None:
    edit(saved, name, change)
    with pytest.raises(MisconfiguredError, match=f"{re.escape(str(saved / name))}: .*{message}"):
        checkpointer(Run("mlp"), saved.parent).resume()


def test_other_weights_are_refused(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    save_file({**weights, "0.weight": torch.ones(2, 7)}, saved / "model.safetensors")
    seal(saved)
    with pytest.raises(MisconfiguredError, match=r"model.safetensors: 0.weight is a float32 tenso"):
        checkpointer(Run("mlp"), saved.parent).resume()
    del weights["0.bias"]
    save_file(weights, saved / "model.safetensors")
    seal(saved)
    with pytest.raises(MisconfiguredError, match=r"model.safetensors: 0.bias is missing; build mo"):
        checkpointer(Run("mlp"), saved.parent).resume()


def test_other_runs_are_refused(saved: Path) -> None:
    with pytest.raises(MisconfiguredError, match=r"state.json: .*run: groups.* is missing; build"):
        checkpointer(Run("cifar"), saved.parent).resume()
    run = Run("mlp")
    with pytest.raises(MisconfiguredError, match=r"state.json: parts.average is unexpected; build"):
        Checkpointer(
            saved.parent,
            run.model,
            run.discovery,
            optimizer=run.optimizer,
            schedule=run.schedule,
        ).resume()
    with pytest.raises(MisconfiguredError, match=r"state.json: discovery is True, expected False"):
        Checkpointer(saved.parent, run.model).resume()
    with pytest.raises(MisconfiguredError, match=r"nothing cannot be read: No such file"):
        checkpointer(run, saved.parent).resume(saved.parent / "nothing")


def test_another_version_of_torch_is_told(saved: Path) -> None:
    edit(saved, "manifest.json", set_to("torch", to="1.0"))
    with pytest.warns(GuyotWarning, match=r"manifest.json: torch 1.0 wrote it .* not bit for bit"):
        checkpointer(Run("mlp"), saved.parent).resume()


def test_another_number_of_processes_is_told(saved: Path) -> None:
    edit(saved, "state.json", set_to("ranks", to=[{}, {"position": {"epoch": 7}}]))
    with pytest.warns(GuyotWarning, match=r"state.json: 3 processes wrote it and 1 .*as 3 would"):
        assert checkpointer(Run("mlp"), saved.parent).resume() == {"epoch": 3}


def test_other_gpus_are_told(saved: Path) -> None:
    edit(saved, "state.json", set_to("random", "cuda", to=[{"$tensor": "state.random.torch"}] * 99))
    with pytest.warns(GuyotWarning, match=r"state.json: .*states of 99 GPUs and \d are here"):
        checkpointer(Run("mlp"), saved.parent).resume()


def split(source: Path, target: Path, shards: int) -> Path:
    """The same checkpoint as several processes under `fully_shard` would write it."""
    copied(source, target)
    index: dict[str, Any] = {"shards": shards}
    for name in ("model", "state"):
        tensors = load_file(target / f"{name}.safetensors")
        rows = {key: len(value) for key, value in tensors.items() if value.dim() > 1}
        for number in range(shards):
            mine = {} if number else dict(tensors)
            for key, count in rows.items():
                each = math.ceil(count / shards)
                mine[key] = tensors[key][number * each : (number + 1) * each].clone()
            file = target / f"{name}-{number + 1:05}-of-{shards:05}.safetensors"
            save_file(mine, file, metadata={"step": "34"})
        (target / f"{name}.safetensors").unlink()
        index[name] = rows
    (target / "index.json").write_text(json.dumps(index))
    seal(target)
    return target


@pytest.mark.parametrize("shards", [2, 5])
def test_shards_of_many_processes_are_read_by_one(
    tmp_path: Path, original: Path, shards: int
) -> None:
    runs = [Run("mlp"), Run("mlp")]
    folders = original.parent, split(original, tmp_path / original.name, shards).parent
    for run, folder in zip(runs, folders, strict=True):
        assert checkpointer(run, folder).resume() == {"epoch": 3}
    one, other = runs
    assert same(one.states(), other.states())
    for run in runs:
        run.train(34, 40)
    assert same(one.states(), other.states())


def shard_of(step: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "state-00002-of-00003.safetensors"
        save_file(load_file(file), file, metadata={"step": step})

    return change


def shorter(folder: Path) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    save_file({**load_file(file), "0.weight": torch.ones(1, 7)}, file, metadata={"step": "34"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "model-00003-of-00003.safetensors").unlink(),
            "model-00003-of-00003.safetensors is missing: this is no whole checkpoint",
        ),
        (
            lambda folder: (folder / "model-00001-of-00002.safetensors").touch(),
            r"model-00001-of-0000\d.safetensors does not belong there",
        ),
        (
            shard_of("30"),
            "state-00002-of-00003.safetensors is of step 30, and model-00001.*step 34: put the",
        ),
        (
            lambda folder: edit(folder, "index.json", set_to("shards", to=2)),
            "index.json: it is of 2 shards, found 3",
        ),
        (
            lambda folder: edit(folder, "index.json", set_to("model", "0.weight", to=2**50)),
            r"model-00001-of-00003.safetensors holds 0.weight with shape .*, which is no share of",
        ),
        (
            lambda folder: edit(folder, "index.json", set_to("model", "9.weight", to=7)),
            "model-00001-of-00003.safetensors holds no 9.weight, which is split",
        ),
        (
            lambda folder: edit(folder, "index.json", set_to("model", to=[])),
            "index.json is no index that guyot wrote: model is a list of 0, expected a mapping",
        ),
        (
            shorter,
            "model-00002-of-00003.safetensors holds 0.weight with shape .*, expected 3 rows of a",
        ),
    ],
)
def test_shards_that_do_not_belong_together_are_refused(
    tmp_path: Path, original: Path, change: Callable[[Path], None], message: str
) -> None:
    folder = split(original, tmp_path / original.name, 3)
    change(folder)
    if (folder / "model-00003-of-00003.safetensors").exists():
        seal(folder)
    with pytest.raises(MisconfiguredError, match=message):
        checkpointer(Run("mlp"), folder.parent).resume()


ODD = st.sampled_from([None, True, -1, 10**30, 1e308, "text", [], {}, [[1]], {"$tuple": []}])


def leaves(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to everything in a tree."""
    if path:
        yield path
    if isinstance(data, dict):
        for key, value in data.items():
            yield from leaves(value, (*path, key))
    elif isinstance(data, list) and len(data) < 50:
        for number, value in enumerate(data):
            yield from leaves(value, (*path, number))


@given(data=st.data())
def test_any_change_is_refused_or_harmless(
    original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whoever writes a checkpoint with valid checksums gets an error of ours, or a run."""
    folder = copied(original, tmp_path_factory.mktemp("fuzz") / "step-000000034")
    name = data.draw(st.sampled_from(["manifest.json", "structure.json", "state.json"]))
    content = json.loads((folder / name).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([*leaves(content)]))
        set_to(*path, to=copy.deepcopy(data.draw(ODD)))(content)  # a later change is inside
        if not isinstance(content, dict):
            break
    (folder / name).write_text(json.dumps(content))
    seal(folder)
    run = Run("mlp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuyotWarning)
        said = refused(checkpointer(run, folder.parent))
    assert said is None or str(folder) in said


def refused(checkpoints: Checkpointer) -> str | None:
    try:
        checkpoints.resume()
    except GuyotError as error:
        return str(error)
    return None


NO_CODE = """
import sys
sys.path[:0] = sys.argv[2:]
from loops import Run
from loops import checkpointer
from pathlib import Path
run = Run("mlp")
checkpoints = checkpointer(run, Path(sys.argv[1]))

def watch(event, arguments):
    if event.split(".")[0] in ("pickle", "subprocess", "socket", "exec", "compile", "import"):
        raise SystemExit(f"{event} {arguments}")
    if event in ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.spawn"):
        raise SystemExit(f"{event} {arguments}")
    if event == "open" and "w" in str(arguments[1] or ""):
        raise SystemExit(f"{event} {arguments}")

checkpoints.resume()  # what is imported late is imported now
run = Run("mlp")
checkpoints = checkpointer(run, Path(sys.argv[1]))
sys.addaudithook(watch)
print(checkpoints.resume())
"""


def test_resuming_runs_no_code(saved: Path) -> None:
    """Python's own audit: nothing is unpickled, compiled, imported, started, written."""
    here = str(HELPERS)
    command = [sys.executable, "-c", NO_CODE, str(saved.parent), here]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "{'epoch': 3}\n", done.stderr


def test_names_lead_nowhere(saved: Path) -> None:
    """Neither checksums nor tensors nor units can name a file elsewhere."""
    (saved.parent / "state.json").write_bytes((saved / "state.json").read_bytes())
    (saved / SUMS).write_text((saved / SUMS).read_text().replace("state.json", "../state.json"))
    with pytest.raises(MisconfiguredError, match=r"SHA256SUMS lists \.\./state.json"):
        checkpointer(Run("mlp"), saved.parent).resume()
    seal(saved)
    (saved / "state.json").unlink()
    (saved / "state.json").symlink_to("/etc/passwd")
    with pytest.raises(MisconfiguredError, match=r"state.json cannot be read: it is no regular"):
        checkpointer(Run("mlp"), saved.parent).resume()


def test_a_full_disk_keeps_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run("mlp")
    checkpoints = checkpointer(run, tmp_path)
    run.train(0, 12)
    first = checkpoints.save(12, {"at": 12})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    run.train(12, 20)
    for broken in ("os.fsync", "safetensors.torch.serialize_file", "pathlib.Path.write_text"):
        with monkeypatch.context() as patch:
            patch.setattr(broken, full)
            with pytest.raises(StorageError, match=r"No space left on device; make room"):
                checkpoints.save(20, {"at": 20})
        assert [*tmp_path.iterdir()] == [first]
    assert checkpointer(Run("mlp"), tmp_path).resume() == {"at": 12}
    checkpoints.save(20, {"at": 20})
    assert checkpointer(Run("mlp"), tmp_path).resume() == {"at": 20}


def test_the_version_is_that_of_the_documentation() -> None:
    page = (ROOT / "docs" / "checkpoints.md").read_text()
    assert f'"version": {VERSION}' in page


def test_a_tree_alone_serves_hosts(tmp_path: Path) -> None:
    """What another program's checkpoint can hold beside its own files."""
    from guyot.core.storage import read_tree

    run = Run("mlp")
    run.train(0, 34)
    write_tree(tmp_path, "guyot", run.discovery.state_dict())
    again = Run("mlp")
    again.discovery.load_state_dict(read_tree(tmp_path, "guyot"))
    assert same(again.discovery.state_dict(), run.discovery.state_dict())
