"""The functions behind the benchmarks of other libraries' models and of families, at tiny sizes."""

import csv
import importlib
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest
import torch
from paths import ROOT

from guyot.app.data import Dataset, Split
from guyot.app.models import count_macs

BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """`benchmarks/models.py`."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("models")
    for name in ("models", "runs"):
        sys.modules.pop(name, None)


@pytest.fixture
def models(real: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """With a GPT-2 and a vision transformer that train in seconds."""
    full = 32
    for name, depth in (("gpt2", 2), ("vit", 3)):
        model = real.MODELS[name]
        recipe = replace(model.recipe, epochs=2, batch_size=4, bf16=False)
        steps = 50 if model.steps else None
        tiny = replace(
            model,
            full=full,
            widths=range(4, full, 4),
            recipe=recipe,
            steps=steps,
            shallow=partial(model.build, full, depth),
        )
        monkeypatch.setitem(real.MODELS, name, tiny)
    return real


def noise() -> Dataset:
    """Images of the right shape, 200 for training."""

    def split(count: int) -> Split:
        drawn = torch.Generator().manual_seed(count)
        images = torch.randint(256, (count, 32, 32, 3), generator=drawn, dtype=torch.uint8)
        return Split(images, torch.randint(10, (count,), generator=drawn))

    channels = (0.5,) * 3
    classes = tuple("abcdefghij")
    return Dataset(
        "noise", split(200), split(30), classes, channels, channels, True, 4, validation=split(20)
    )


class ReadOnce:
    """Test data that count how often they are asked for."""

    def __init__(self, source: object) -> None:
        self.source, self.times = source, 0

    def epoch(self, number: int) -> object:
        self.times += 1
        return self.source.epoch(number)


@pytest.mark.parametrize("name", [pytest.param("gpt2", marks=pytest.mark.slow), "vit"])
def test_all_methods_train_the_same_steps(models: ModuleType, name: str) -> None:
    results = {}
    for method in models.METHODS:
        run = models.Run(name, method, 0)
        data = models.data_of(run, noise)
        if name == "gpt2":
            short = replace(data.validation, text=data.validation.text[:2000])
            data = replace(data, validation=short, test=short)
        once = ReadOnce(data.test)
        results[method] = models.train(run, replace(data, test=once))
        assert once.times == 1
    full = results["dense"]["macs"]
    assert {result["steps"] for result in results.values()} == {100}
    assert min(results[rival]["macs"] for rival in ("uniform", "shallow")) >= models.TARGET * full
    assert results["guyot"]["macs"] == pytest.approx(models.TARGET * full, rel=0.15)
    assert results["guyot"]["attained"] == pytest.approx(results["guyot"]["macs"] / full, abs=0.01)
    for result in results.values():
        assert 0 <= result["test_accuracy"] <= 1
        assert result["test_loss"] < 6


@pytest.mark.parametrize("name", ["gpt2", "vit", "mobilenet_v2"])
def test_the_rival_is_the_narrowest_that_is_not_smaller(models: ModuleType, name: str) -> None:
    model = models.MODELS[name]
    chosen = models.uniform_width.__wrapped__(name)
    half = models.TARGET * count_macs(model.build(model.full), model.example())
    narrower = [width for width in model.widths if width < chosen]
    assert count_macs(model.build(chosen), model.example()) >= half
    assert count_macs(model.build(max(narrower)), model.example()) < half


def test_shallow_rivals_keep_at_least_the_target(real: ModuleType) -> None:
    stacks = [model for model in real.MODELS.values() if model.shallow is not None]
    assert len(stacks) == 2
    for model in stacks:
        networks = (model.build(model.full), model.shallow())
        full, half = (count_macs(network, model.example()) for network in networks)
        assert real.TARGET * full <= half < 0.52 * full


@pytest.mark.parametrize("variant", ["uniform", "blocks-1-2-2", "blocks-1-1-3"])
def test_fixed_structures_are_the_narrowest_that_are_not_smaller(
    monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    choices = importlib.import_module("choices")
    image = torch.zeros(1, *choices.IMAGE)
    full = count_macs(choices.network(choices.Run("guyot", 0.5, 0)), image)
    model = choices.network(choices.Run(variant, 0.5, 0))
    blocks = choices.VARIANTS[variant].blocks
    assert tuple(map(len, model.stages)) == blocks
    widths = [stage[-1].conv2.out_channels for stage in model.stages]
    narrower = choices.cut(blocks, 0, [width - 1 for width in widths])
    assert count_macs(narrower, image) < 0.5 * full <= count_macs(model, image)


def test_an_unknown_method_is_named(models: ModuleType) -> None:
    with pytest.raises(ValueError, match="method='magic' is unknown; choose one of"):
        models.network(models.Run("gpt2", "magic", 0))


def test_windows_of_text(models: ModuleType) -> None:
    text = torch.arange(1000)
    training = models.Characters(text, 3, steps=5, seed=1)
    batches = list(training.epoch(2))
    assert len(batches) == len(training) == 5
    assert len({int(start) for inputs, _ in batches for start in inputs[:, 0]}) > 5
    for inputs, labels in batches:
        assert inputs.shape == (3, models.CONTEXT)
        assert torch.equal(labels, inputs + 1)
    assert all(map(torch.equal, batches[0], next(training.epoch(2))))
    assert not torch.equal(batches[0][0], next(training.epoch(3))[0])
    whole = models.Characters(text, 4)
    seen = torch.cat([inputs.flatten() for inputs, _ in whole.epoch(0)])
    assert torch.equal(seen, torch.arange(len(seen)))
    assert len(seen) > len(text) - 2 * models.CONTEXT
    assert len(list(whole.epoch(0))) == len(whole)


def test_the_parts_of_the_text_differ(models: ModuleType) -> None:
    parts, digest = models.definitions()
    newline = int(parts["train"][-1])
    lines = {}
    for name, part in parts.items():
        ends = (part == newline).nonzero().flatten().tolist()
        starts = [0, *(end + 1 for end in ends)]
        lines[name] = {tuple(part[a:b].tolist()) for a, b in zip(starts, ends, strict=False)}
    assert len(lines["test"]) == len(lines["validation"]) == 1000
    assert not lines["test"] & lines["train"]
    assert not lines["validation"] & (lines["train"] | lines["test"])
    assert len(digest) == 64


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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    table = importlib.import_module("table")
    committed = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert committed == table.page_text(), "python benchmarks/table.py"


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
