"""Trees and folders on disk: what comes back, what never appears, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from guyot.core import storage
from guyot.core.errors import GuyotError, MisconfiguredError, StorageError, UnsupportedError
from guyot.core.storage import (
    SUMS,
    published,
    read_json,
    read_tensors,
    read_tree,
    remove_leftovers,
    removed,
    verify,
    write_json,
    write_tree,
)


def tensors() -> st.SearchStrategy[Tensor]:
    """Of several dtypes and layouts, views among them."""

    def make(draw: st.DrawFn) -> Tensor:
        shape = draw(st.lists(st.integers(0, 3), max_size=4))
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]))
        tensor = (100 * torch.randn(shape)).to(dtype)
        tensor = tensor.permute(draw(st.permutations(range(len(shape)))))
        return tensor[..., ::2] if shape and draw(st.booleans()) else tensor

    return st.composite(make)()


def trees() -> st.SearchStrategy[Any]:
    text = st.text(max_size=5) | st.sampled_from(["$tensor", "$tuple", "a.b", "__class__"])
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | text | tensors()
    keys = text | st.integers() | st.tuples(st.integers(), text)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.lists(inner, max_size=3).map(tuple)
            | st.dictionaries(text, inner, max_size=3)
            | st.dictionaries(keys, inner, max_size=3)
            | st.dictionaries(st.integers(), st.integers(), max_size=3).map(Counter)
        ),
        max_leaves=12,
    )


def same(left: Any, right: Any) -> bool:
    """Equal in type, value and layout, to the last bit."""
    if type(left) is not type(right):
        return False
    if isinstance(left, Tensor):
        dense = torch.ops.aten.is_non_overlapping_and_dense(left) and left.numel()
        return (
            left.dtype is right.dtype
            and torch.equal(left, right)
            and (not dense or left.stride() == right.stride() or left.is_contiguous())
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right or left != left


@given(tree=trees())
def test_trees_come_back(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    folder = tmp_path_factory.mktemp("tree")
    write_tree(folder, "state", tree)
    assert same(read_tree(folder, "state"), tree)
    assert sorted(file.name for file in folder.iterdir()) == ["state.json", "state.safetensors"]


def test_whoever_may_read_one_file_may_read_the_other(tmp_path: Path) -> None:
    for mask, mode in ((0o022, 0o644), (0o007, 0o660)):
        before = os.umask(mask)
        write_tree(tmp_path, f"tree{mask}", {"x": torch.ones(2)})
        os.umask(before)
        for ending in ("json", "safetensors"):
            assert (tmp_path / f"tree{mask}.{ending}").stat().st_mode & 0o777 == mode


def test_one_tensor_under_two_names(tmp_path: Path) -> None:
    weight = torch.randn(4, 4)
    tree = {"a": weight, "b": [weight, weight.T, weight[1:]], "a.b": {"c": 1}, "a.b.c": weight}
    write_tree(tmp_path, "state", tree)
    assert same(read_tree(tmp_path, "state"), tree)


def test_numbers_of_numpy_become_plain(tmp_path: Path) -> None:
    write_tree(tmp_path, "state", {"a": np.float64(0.1), "b": np.int32(3), "c": np.bool_(True)})
    assert same(read_tree(tmp_path, "state"), {"a": 0.1, "b": 3, "c": True})


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        ({1, 2}, r"state.a.1 is a set: a checkpoint holds tensors"),
        (object(), r"state.a.1 is a object"),
        (torch.nn.Linear(1, 1), r"state.a.1 is a Linear"),
        (torch.eye(3).to_sparse(), r"state.a.1 is a float32 tensor .*sparse.*dense tensors"),
        (torch.ones(2, device="meta"), r"state.a.1 is a float32 tensor .* on meta"),
    ],
)
def test_what_is_no_plain_value_is_refused(tmp_path: Path, leaf: Any, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        write_tree(tmp_path, "state", {"a": [1, leaf]})


def put(folder: Path, data: Any) -> None:
    write_tree(folder, "state", {"x": torch.ones(2, 3)})
    (folder / "state.json").write_text(data if isinstance(data, str) else json.dumps(data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "state.json cannot be read: Expecting value"),
        ("[" * 100_000, "state.json cannot be read: "),
        ('{"a": NaN}', "state.json cannot be read: NaN is no JSON"),
        ("9" * 5000, "state.json cannot be read: Exceeds the limit"),
        ("\x80", "state.json cannot be read"),
        ({"$tensor": "y"}, "the tensor 'y' is not in the file beside it"),
        ({"$tensor": ["state.x"]}, "the tensor a list of 1 is not"),
        ({"$tensor": "state.x", "strides": [1, 1]}, "a list of 2 as strides of a float32"),
        ({"$tensor": "state.x", "strides": [2**40, 1]}, "as strides of"),
        ({"$tensor": "state.x", "strides": [-3, 1]}, "as strides of"),
        ({"$tensor": "state.x", "strides": "ab"}, "'ab' as strides of"),
        ({"$tensor": "state.x", "device": "cuda"}, r"a mapping of 2 with '\$tensor'"),
        ({"$tuple": 3}, r"with '\$tuple': 3"),
        ({"$items": [1]}, r"with '\$items': a list of 1"),
        ({"$items": [[[1], 2]]}, r"with '\$items': a list of 1"),
        ({"$float": "1e9"}, r"with '\$float': '1e9'"),
        ({"$import": "os"}, r"with '\$import': 'os'"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, data: Any, message: str) -> None:
    put(tmp_path, data)
    with pytest.raises(MisconfiguredError, match=message):
        read_tree(tmp_path, "state")


def read_or_refused(folder: Path) -> str:
    """The error, or what names every file if there is none."""
    try:
        read_tree(folder, "state")
    except GuyotError as error:
        return str(error)
    return f"{folder}/state.json"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["$tensor", "$tuple", "$items", "$counter", "$float", "strides", "a"]),
            inner | st.just("state.x"),
            max_size=3,
        )
    ),
    max_leaves=20,
)


@given(data=JSON)
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    folder = tmp_path_factory.mktemp("tree")
    put(folder, data)
    assert "state.json" in read_or_refused(folder)


@given(data=st.data())
def test_any_damage_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Without checksums a flipped bit may pass, but nothing else than our error may happen."""
    folder = tmp_path_factory.mktemp("tree")
    write_tree(folder, "state", {"x": torch.randn(3, 3).T, "y": (1, {2: 3.5})})
    file = folder / data.draw(st.sampled_from(["state.json", "state.safetensors"]))
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert str(folder) in read_or_refused(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,  # a header of 2**64 bytes
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2) + b"{}" + b"more than it says",
        struct.pack("<Q", 60) + b'{"x":{"dtype":"F32","shape":[9],"data_offsets":[0,9999999999]}}',
        pickle.dumps({"x": 1}),
    ],
)
def test_what_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "state.safetensors"
    file.write_bytes(content)
    with pytest.raises(MisconfiguredError, match=r"state.safetensors cannot be read: "):
        read_tensors(file)


def test_giants_links_and_devices_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    with file.open("wb") as stream:
        stream.truncate(storage.JSON_LIMIT + 1)  # takes no room on the disk
    with pytest.raises(MisconfiguredError, match=r"state.json cannot be read: it has 268435457 by"):
        read_json(file)
    for link in ("/dev/zero", "/etc/passwd", "missing"):
        file.unlink()
        file.symlink_to(link)
        for read in (read_json, read_tensors):
            with pytest.raises(MisconfiguredError, match="cannot be read: it is no regular file"):
                read(file)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(MisconfiguredError, match="it is no regular file"):
        read_json(file)


def folder_with(path: Path, text: str) -> Path:
    with published(path) as folder:
        write_json(folder / "a.json", text)
        (folder / "b.txt").write_text(2 * text)
    return path


def test_folders_are_whole_and_checked(tmp_path: Path) -> None:
    path = folder_with(tmp_path / "deep" / "one", "text")
    verify(path, ("a.json", "b.txt"))
    subprocess.run(["sha256sum", "--check", "--strict", SUMS], cwd=path, check=True)
    assert [p.name for p in path.parent.iterdir()] == ["one"]
    folder_with(path, "other")
    verify(path, ("a.json", "b.txt"))
    assert read_json(path / "a.json") == "other"
    removed(path)
    assert not [*path.parent.iterdir()]


def tampered(change: Callable[[Path], Any]) -> Callable[[Path], Path]:
    def make(tmp_path: Path) -> Path:
        path = folder_with(tmp_path / "one", "text")
        change(path)
        return path

    return make


def rewrite(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (tampered(lambda p: rewrite(p / "b.txt", "t", "T")), r"b.txt is damaged: its 8 bytes have"),
        (tampered(lambda p: (p / "b.txt").write_text("te")), r"b.txt is damaged: its 2 bytes have"),
        (tampered(lambda p: (p / "b.txt").unlink()), r"b.txt is missing: this is no whole"),
        (tampered(lambda p: (p / SUMS).unlink()), r"SHA256SUMS is missing"),
        (tampered(lambda p: (p / "c").touch()), r"one/c does not belong there"),
        (tampered(lambda p: rewrite(p / SUMS, "b.txt", "../b.txt")), r"SUMS lists \.\./b.txt, a"),
        (tampered(lambda p: rewrite(p / SUMS, "b.txt", "/etc/passwd")), r"SUMS lists /etc/passwd"),
        (tampered(lambda p: (p / SUMS).write_bytes(b"\xff")), r"SHA256SUMS cannot be read"),
        (tampered(lambda p: (p / SUMS).write_text("")), r"SHA256SUMS lists nothing; expected a"),
        (tampered(shutil.rmtree), r"one cannot be read: No such file"),
        (
            tampered(lambda p: ((p / "b.txt").unlink(), (p / "b.txt").symlink_to("a.json"))),
            "b.txt cannot be read: it is no regular file",
        ),
    ],
)
def test_damage_is_named(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        verify(make(tmp_path), ("a.json", "b.txt"))


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = folder_with(tmp_path / "one", "old")

    def fail() -> None:
        with published(path) as folder:
            write_json(folder / "a.json", "new")
            raise KeyError("half-way")

    with pytest.raises(KeyError, match="half-way"):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["one"]
    assert read_json(path / "a.json") == "old"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
def test_a_kill_at_any_system_call_leaves_an_old_or_a_new_folder(tmp_path: Path) -> None:
    """A copy of this process dies at the 1st, 2nd, ... change of the disk, until none is left."""
    path = tmp_path / "one"
    calls = ("fsync", "rename", "rmdir", "unlink", "mkdir", "open", "replace")
    states: list[str] = []
    for number in range(1, 200):
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
        folder_with(path, "old")
        pid = os.fork()
        if pid == 0:
            die_at(number, calls)
            folder_with(path, "new")
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        remove_leftovers(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["one"]
        verify(path, ("a.json", "b.txt"))
        states.append(read_json(path / "a.json"))
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == 9
    assert number > 10, "the kills hit nothing"
    assert states == sorted(states, reverse=True), "once new, always new"
    assert states[0] == "old" and states[-1] == "new"


def die_at(number: int, calls: tuple[str, ...]) -> None:
    """Let this process end, as by SIGKILL, before the given change of the disk."""
    left = [number]

    def dying(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                os._exit(9)
            return call(*arguments, **options)

        return wrapped

    for name in calls:
        setattr(os, name, dying(getattr(os, name)))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where one may be mounted."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mounted)]
    if os.getuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


@pytest.mark.parametrize("size", [200, 60_000, 10_000_000])
def test_a_full_disk_keeps_what_was_there(small_disk: Path, size: int) -> None:
    path = folder_with(small_disk / "one", "old")
    (small_disk / "ballast").write_bytes(b"0" * 190_000)

    def write() -> None:
        with published(path) as folder:
            write_tree(folder, "state", {"x": torch.ones(size // 4), "y": "z" * 100_000})
            write_json(folder / "a.json", "new" * 50_000)

    with pytest.raises(StorageError, match=r"cannot be written: .*No space left.*make room"):
        write()
    verify(path, ("a.json", "b.txt"))
    assert sorted(p.name for p in small_disk.iterdir()) == ["ballast", "one"]


LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from guyot.core.errors import StorageError
from guyot.core.storage import published, write_json, write_tree
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with published(Path(sys.argv[1])) as folder:
        write_tree(folder, "state", {"x": torch.ones(100_000)})
except StorageError as error:
    print(error)
"""


def test_a_limit_on_files_keeps_what_was_there(tmp_path: Path) -> None:
    path = folder_with(tmp_path / "one", "old")
    command = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "state.safetensors cannot be written: " in done.stdout
    assert "File too large" in done.stdout
    verify(path, ("a.json", "b.txt"))
    assert [p.name for p in tmp_path.iterdir()] == ["one"]


def test_folders_that_cannot_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    def write() -> None:
        with published(tmp_path / "file" / "one"):
            pass

    with pytest.raises(StorageError, match=r"one cannot be written: Not a directory; make room"):
        write()
