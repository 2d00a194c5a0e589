"""The text of the benchmarks, and that pages are those of the committed results."""

import csv
import importlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def characters(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`benchmarks/arena/characters.py`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("arena.characters")
    for name in ("arena", "arena.characters"):
        sys.modules.pop(name, None)


def test_windows_of_text(characters: ModuleType) -> None:
    text = torch.arange(1000)
    training = characters.Characters(text, 3, steps=5, seed=1)
    batches = list(training.epoch(2))
    assert len(batches) == len(training) == 5
    assert len({int(start) for inputs, _ in batches for start in inputs[:, 0]}) > 5
    for inputs, labels in batches:
        assert inputs.shape == (3, characters.CONTEXT)
        assert torch.equal(labels, inputs + 1)
    assert all(map(torch.equal, batches[0], next(training.epoch(2))))
    assert not torch.equal(batches[0][0], next(training.epoch(3))[0])
    whole = characters.Characters(text, 4)
    seen = torch.cat([inputs.flatten() for inputs, _ in whole.epoch(0)])
    assert torch.equal(seen, torch.arange(len(seen)))
    assert len(seen) > len(text) - 2 * characters.CONTEXT
    assert len(list(whole.epoch(0))) == len(whole)


def test_the_parts_of_the_text_differ(characters: ModuleType) -> None:
    parts = characters.definitions()
    newline = int(parts["train"][-1])
    lines = {}
    for name, part in parts.items():
        ends = (part == newline).nonzero().flatten().tolist()
        starts = [0, *(end + 1 for end in ends)]
        lines[name] = {tuple(part[a:b].tolist()) for a, b in zip(starts, ends, strict=False)}
    assert len(lines["test"]) == len(lines["validation"]) == 1000
    assert not lines["test"] & lines["train"]
    assert not lines["validation"] & (lines["train"] | lines["test"])


def test_the_table_of_families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("table")
    monkeypatch.setattr(table, "ROOT", tmp_path)
    monkeypatch.setattr(table, "DATA", tmp_path)
    assert table.family() == ""
    (tmp_path / "results" / "family").mkdir(parents=True)
    for seed, accuracy in enumerate((0.5, 0.52)):
        found = {"macs": 50, "params": 2000, "cost": 3e12, "test_accuracy": accuracy}
        members = {"0.5": found | {"steps": 100, "first_step": 40}}
        result = {
            "run": {"method": "family", "epochs": 4, "seed": seed},
            "full_macs": 100,
            "members": members,
            "machine": {"cpu": "abacus", "threads": 1, "torch": "2"},
        }
        (tmp_path / "results" / "family" / f"{seed}.json").write_text(json.dumps(result))
    text = " ".join(table.family().split())
    lines = (tmp_path / "family.csv").read_text().splitlines()
    assert lines[1:] == ["family,0.5,0.500,2000,60,3.00,51.00,1.41,2"]
    assert "abacus, 1 thread(s), torch 2." in text and "as long as 4 epochs" in text


def test_the_page_of_benchmarks_is_the_one_of_the_committed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("table")
    monkeypatch.setattr(table, "DATA", tmp_path)
    (tmp_path / "benchmarks.md").write_text(table.page_text(), encoding="utf-8")
    files = {"benchmarks.md", "arena.csv", "family.csv", "widths.csv"}
    assert {path.name for path in tmp_path.iterdir()} == files
    for name in files:
        folder = ROOT / "docs" / ("" if name.endswith(".md") else "data")
        committed = (folder / name).read_text(encoding="utf-8")
        assert committed == (tmp_path / name).read_text(encoding="utf-8"), (
            "python benchmarks/table.py"
        )


@pytest.fixture
def coverage(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/coverage_table.py`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("coverage_table")


def test_the_page_of_coverage_is_the_one_of_the_committed_results(coverage: ModuleType) -> None:
    from others import OTHERS
    from zoo import ZOO

    results = (BENCHMARKS / "results" / "coverage").glob("*.json")
    found = [json.loads(path.read_text()) for path in sorted(results)]
    files = coverage.files(found, ZOO, list(OTHERS))
    assert len(files) == 4
    for name, text in files.items():
        committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert committed == text, "python benchmarks/covered.py --table"


def test_the_tables_of_coverage(coverage: ModuleType) -> None:
    machine = {"cpu": "abacus"}
    frozen = {
        "an output of the network": ["head"],
        "the statistics of blocks.1.norm (LayerNorm) run over it": ["blocks.1.fc"],
        "the statistics of blocks.2.norm (LayerNorm) run over it": ["blocks.2.fc"],
        "operator aten.odd.default in head has no rule": ["head:2"],
    }
    ours = {
        "passed": False,
        "problems": ["1 layers, of 2"],
        "machine": machine,
        "versions": {"guyot": "abc", "torch": "2"},
        "frozen": frozen,
        "warnings": ["units of stem cannot be removed: the model's own forward does not run"],
        "groups": 3,
        "units": 40,
        "layers": 1,
        "layers_expected": 2,
        "macs": 100,
        "macs_counted": 100,
        "macs_after": 50,
        "macs_after_counted": 49,
        "seconds": 2.0,
    }
    theirs = {"passed": True, "problems": [], "machine": machine, "macs": 10, "macs_after": 4}
    result = {"model": "timm/net", "guyot": ours, "torch-pruning": theirs}
    thorough = {"model": "odd/one", "guyot": ours | {"checks": {"outputs": [], "hooks": ["a"]}}}
    others = ["odd/one", "odd/two"]
    files = coverage.files([result, thorough], ["timm/net", "timm/other"], others)
    page, (table, reasons, more) = (
        files["coverage.md"],
        (
            [*csv.DictReader(io.StringIO(files[name]))]
            for name in (f"data/coverage{kind}.csv" for kind in ("", "_reasons", "_others"))
        ),
    )
    assert "| timm | 0 of 2: 0 % (1 not run) | 1 of 2: 50 % (1 not run) | 1 of 2 | 2.0 |" in page
    assert "abacus" in page and "`timm/net`: 1 layers, of 2" in page
    assert "| a LayerNorm or GroupNorm computes statistics over it | 1 |" in page
    assert "0 of 2 models pass: odd 0 of 2.\n1 of the 1 that were examined gives" in page
    assert "- `odd/one`: 1 layers, of 2" in page
    cells = ["odd", "one", "no", "3", "1 of 2", "50", "yes", "", "no", "", "", ""]
    assert list(more[0].values()) == cells
    assert [line["passes"] for line in more] == ["no", "not run"]
    assert [line["passes"] for line in table] == ["no", "not run"]
    first = {"frozen": "3", "refused": "1", "counted": "no", "no rule": "aten.odd.default"}
    first |= {"MACs left %": "50", "torch-pruning MACs left %": "40", "problems": "1 layers, of 2"}
    assert first.items() <= table[0].items()
    assert [(line["kind"], line["count"], line["names"]) for line in reasons][:4] == [
        ("frozen", "2", "blocks.*.fc"),
        ("frozen", "1", "head:2"),
        ("refused", "1", "units of stem"),
        ("guyot does not pass", "1", ""),
    ]
