"""What is kept between runs: where, how big, bounded and cleared."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image
from terminal import run

from guyot.app.cache import bound, cache_root, entries
from guyot.app.data import load_dataset
from guyot.app.running.machine import remembered
from guyot.core.errors import MisconfiguredError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GUYOT_CACHE_GB", raising=False)
    return tmp_path / "guyot"


def pictures(folder: Path, shade: int) -> None:
    for part in ("train", "test"):
        for kind in ("a", "b"):
            for number in range(2):
                file = folder / part / kind / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8), (shade, number, 0)).save(file)


def test_the_command_says_what_there_is_and_clears_it(home: Path, tmp_path: Path) -> None:
    empty = run("cache")
    assert empty.exit_code == 0 and str(home) in empty.output and "0.0 MB kept" in empty.output
    pictures(tmp_path / "set", 9)
    load_dataset(f"imagefolder:{tmp_path / 'set'}", image_size=8)
    assert remembered(lambda: 4, "here") == 4
    (home / "notes.txt").write_text("of somebody else")
    (home / "folder-32-0123456789abcdef.images.77.npy").write_text("left by a killed program")
    values = json.loads(run("cache", "--json").stdout)
    assert values["folder"] == str(home) and values["bound"] == 10**10
    assert values["entries"] == {"images": 3, "measurements": 1}  # train, test, what was left
    assert values["bytes"] == sum(f.stat().st_size for f in home.iterdir()) - len(
        "of somebody else"
    )
    assert run("cache", "--quiet").output == f"{values['bytes']}\n"
    done = run("cache", "--clear")
    assert done.exit_code == 0 and "removed" in done.output
    assert [file.name for file in home.iterdir()] == ["notes.txt"]
    assert remembered(lambda: 8, "here") == 8


def test_what_was_not_used_for_long_makes_room(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(("used", "unused", "new")):
        pictures(tmp_path / name, number)
    for name in ("used", "unused"):
        load_dataset(f"imagefolder:{tmp_path / name}", image_size=8)
    assert remembered(lambda: 4, "here") == 4
    for entry in entries(home):
        for file in entry.files:
            os.utime(file, (1, 1))
    load_dataset(f"imagefolder:{tmp_path / 'used'}", image_size=8)
    kept = {entry.name for entry in entries(home) if entry.used > 1}
    total = sum(entry.size for entry in entries(home))
    monkeypatch.setenv("GUYOT_CACHE_GB", str((total + 300) / 1e9))
    load_dataset(f"imagefolder:{tmp_path / 'new'}", image_size=8)
    after = {entry.name for entry in entries(home)}
    assert sum(entry.size for entry in entries(home)) <= total + 300
    assert len(kept) == 2 and kept <= after and len(after) == 5


def test_a_bound_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bound() == 10**10 and cache_root("here") == Path("here")
    for text in ("many", "-1", "nan"):
        monkeypatch.setenv("GUYOT_CACHE_GB", text)
        with pytest.raises(MisconfiguredError, match=r"GUYOT_CACHE_GB=.*give gigabytes"):
            bound()
    done = run("cache")
    assert done.exit_code == 2 and done.stderr.startswith("error: GUYOT_CACHE_GB='nan'")
