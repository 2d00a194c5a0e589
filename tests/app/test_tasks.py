"""Regression and texts: what `guyot train` makes of them, and what its figures are called."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from terminal import run

from guyot import report
from guyot.app.config import RunConfig
from guyot.app.data import load_dataset
from guyot.app.running import load_run
from guyot.app.sweep import Sweep
from guyot.app.tasks import TASKS
from guyot.core.errors import MisconfiguredError
from guyot.core.metric import ACCURACY, BITS, R2

QUICK = "--epochs 10 --threads 1 --no-bf16 --round-to 4".split()


@pytest.fixture(scope="module", autouse=True)
def short_measurements() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
        yield


def houses(file: Path, count: int = 400) -> str:
    draw = random.Random(0)
    rows = ["rooms,town,price,size"]
    for _ in range(count):
        rooms, town, size = draw.randint(1, 6), draw.choice("ab"), draw.uniform(30, 90)
        rows.append(f"{rooms},{town},{1000 * rooms + 50 * size + 900 * (town == 'b')},{size}")
    file.write_text("\n".join(rows))
    return f"table:{file}"


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("houses")
    data, out = houses(folder / "houses.csv"), folder / "run"
    options = ["--data", data, "--task", "regression", "--label", "price", "--baseline", "full"]
    done = run("train", *QUICK, "--batch-size", "16", *options, "--out", out)
    assert done.exit_code == 0, done.output
    assert "train and valid: R²" in done.output and "R² on test data" in done.output
    assert "accuracy" not in done.output
    return out


def test_numbers_are_predicted(priced: Path) -> None:
    result = json.loads((priced / "result.json").read_text())
    assert result["metric"] == "r2" and result["after"]["test_r2"] > 0.9
    assert result["after"]["macs"] < 0.6 * result["before"]["macs"]
    lines = [json.loads(line) for line in (priced / "metrics.jsonl").read_text().splitlines()]
    assert {"r2", "validation_r2"} <= next(
        line for line in lines if line["event"] == "epoch"
    ).keys()

    data = load_dataset(f"table:{priced.parent / 'houses.csv'}", regression=True, label="price")
    structure = json.loads((priced / "structure.json").read_text())
    assert structure["target"] == list(data.target or ()) and structure["class_names"] == []
    with torch.no_grad():
        found = load_run(priced)(data.test.images)[:, 0]
    error = (found - data.test.labels).square().mean()
    variance = data.test.labels.var(correction=0)
    assert float(1 - error / variance) == pytest.approx(result["after"]["test_r2"], abs=1e-5)

    values = json.loads(run("evaluate", priced, "--json").stdout)
    assert values["r2"] == result["after"]["test_r2"] and values["metric"] == "r2"
    assert values["deviation"] == pytest.approx(structure["target"][1] * math.sqrt(error), rel=1e-5)
    printed = run("evaluate", priced).output
    assert "test R²" in printed and "test RMSE" in printed and "MACs of one sample" in printed


def test_other_commands_name_the_score(priced: Path, tmp_path: Path) -> None:
    compared = json.loads(run("compare", priced, "--json").stdout)["runs"]
    assert [one["name"] for one in compared] == ["found", "full"]
    gap = compared[0]["test_r2"] - compared[1]["test_r2"]
    assert compared[0]["difference"] == [pytest.approx(gap)] and compared[1]["difference"] is None
    page = tmp_path / "page.html"
    assert run("report", priced, "--output", page).exit_code == 0
    html = page.read_text()
    assert "Validation R²" in html and "R² against cost" in html.replace("r² a", "R² a")
    assert "accuracy" not in html.partition("<script")[0].lower()
    done = run("export", priced, "--format", "pt2", "--output", tmp_path / "net.pt2")
    assert done.exit_code == 0, done.output


def test_the_data_must_be_that_of_the_run(priced: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    houses(other, count=300)
    done = run("evaluate", priced, "--data-dir", other)
    assert done.exit_code == 2 and "is not what the network was trained on" in done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "song.txt").write_text("row row row your boat\ngently down the stream\n" * 80)
    out = folder / "run"
    options = ["--data", f"text:{folder / 'song.txt'}", "--context", "16", "--batch-size", "16"]
    done = run("train", *QUICK, *options, "--out", out, "--lr", "0.003")
    assert done.exit_code == 0, done.output
    assert "train and valid: bits per character" in done.output
    return out


def test_characters_are_predicted(written: Path) -> None:
    result = json.loads((written / "result.json").read_text())
    assert result["metric"] == "bits" and result["model"] == "transformer"
    assert result["after"]["test_bits"] < 3
    assert result["after"]["macs"] < 0.6 * result["before"]["macs"]
    data = load_dataset(f"text:{written.parent / 'song.txt'}", context=16)
    structure = json.loads((written / "structure.json").read_text())
    assert structure["class_names"] == list(data.classes)
    with torch.no_grad():
        logits = load_run(written)(data.test.images)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), data.test.labels.flatten())
    assert float(loss) / math.log(2) == pytest.approx(result["after"]["test_bits"], rel=1e-5)
    values = json.loads(run("evaluate", written, "--json").stdout)
    assert values["bits"] == result["after"]["test_bits"]


def test_scores_of_different_kinds_are_not_compared(written: Path, priced: Path) -> None:
    for command in ("compare", "report"):
        done = run(command, written, priced)
        assert done.exit_code == 2
        assert "different scores, bits per character and R²: give those of one task" in done.stderr


def test_a_text_is_cut_into_windows(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    text = "".join(random.Random(1).choices("abcde", k=1000))
    file.write_text(text)
    data = load_dataset(f"text:{file}", context=10, validation=0.2)
    assert data.validation is not None and data.image_shape == (10,)
    learnt = [data.classes[code] for code in data.train.images.flatten()]
    follow = [data.classes[code] for code in data.train.labels.flatten()]
    assert "".join(learnt) == text[: len(learnt)] and "".join(follow) == text[1 : len(follow) + 1]
    assert 690 <= len(learnt) <= 720  # 0.8 of the 0.9 that is not test data
    tested = "".join(data.classes[code] for code in data.test.images.flatten())
    assert tested == text[900 : 900 + len(tested)] and len(tested) >= 90


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import csv, parquet

    houses(tmp_path / "t.csv", count=40)
    parquet.write_table(csv.read_csv(tmp_path / "t.csv"), tmp_path / "t.parquet")
    pair = [
        load_dataset(f"table:{tmp_path / name}", regression=True) for name in ("t.csv", "t.parquet")
    ]
    assert torch.equal(pair[0].train.images, pair[1].train.images)
    assert torch.equal(pair[0].test.labels, pair[1].test.labels)
    assert pair[0].target == pair[1].target
    table = pa.table({"x": [1.0, None, 3.0, 4.0, 5.0], "y": [0, 1, 0, 1, 0]})
    parquet.write_table(table, tmp_path / "holes.parquet")
    with pytest.raises(MisconfiguredError, match="row 3: the column 'x' is empty"):
        load_dataset(f"table:{tmp_path / 'holes.parquet'}")
    parquet.write_table(pa.table({"x": [[1]] * 5, "y": [0] * 5}), tmp_path / "lists.parquet")
    with pytest.raises(MisconfiguredError, match="'x' holds lists or records: give one value"):
        load_dataset(f"table:{tmp_path / 'lists.parquet'}")
    (tmp_path / "bad.parquet").write_text("x,y")
    with pytest.raises(MisconfiguredError, match=r"bad.parquet cannot be read \(.*: give a file"):
        load_dataset(f"table:{tmp_path / 'bad.parquet'}")


def test_parquet_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MisconfiguredError, match=r"pip install 'guyot\[data\]'"):
        load_dataset(f"table:{tmp_path / 't.parquet'}")


@pytest.mark.parametrize("task", ["classification", "regression", "text"])
def test_a_score_does_not_depend_on_batches(task: str) -> None:
    draw = torch.Generator().manual_seed(0)
    labels = {
        "classification": torch.randint(3, (12,), generator=draw),
        "regression": torch.randn(12, generator=draw),
        "text": torch.randint(3, (12, 4), generator=draw),
    }[task]
    outputs = {"classification": (12, 3), "regression": (12, 1), "text": (12, 4, 3)}[task]
    found, one = torch.randn(outputs, generator=draw), TASKS[task]
    parts = [one.count(found[s], labels[s]) for s in (slice(0, 5), slice(5, 12))]
    whole = one.score(one.count(found, labels).tolist())
    assert one.score(sum(parts).tolist()) == pytest.approx(whole)  # type: ignore[union-attr]
    if task == "regression":
        rest = (found[:, 0] - labels).square().sum() / (labels - labels.mean()).square().sum()
        assert whole == pytest.approx(1 - float(rest))
        assert one.loss(found, labels) == pytest.approx(float(rest * labels.var(correction=0)))


def test_what_a_sweep_wants_of_a_score() -> None:
    data = {"table:t.csv": R2, "text:t.txt": BITS, "digits": ACCURACY}
    for name, metric in data.items():
        task = {"task": "regression"} if metric is R2 else {}
        sweep = Sweep(RunConfig.of(name, **task), {"target": [0.3, 0.5]})
        assert sweep.objectives == (metric.key, "macs")
        assert sweep.directions == ["maximize" if metric.higher else "minimize", "minimize"]
    base = RunConfig.of("table:t.csv", task="regression")
    with pytest.raises(MisconfiguredError, match=r"'mac' is unknown: choose among r2, .*mean macs"):
        Sweep(base, {"target": [0.3]}, objectives=("mac",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data houses.csv", "--data='houses.csv' is unknown: .*did you mean table:houses.csv?"),
        ("--data a/b.txt", "did you mean text:a/b.txt?"),
        ("--data pictures", "--data='pictures' is unknown: .*did you mean imagefolder:pictures?"),
        ("--data b.parquet", "did you mean table:b.parquet?"),
        ("--data digits --task regression", "--task='regression' is for a table or your own data"),
        ("--data digits --task regresion", "choose classification or regression, did you mean"),
        ("--data digits --label x", "--label='x' is for --data=table:FILE"),
        ("--data digits --context 32", "--context=32 is for --data=text:FILE"),
        ("--data table:t.csv --label pric", "no column of t.csv, did you mean price?: choose"),
        (
            "--data table:t.csv --label town --task regression",
            "has '.' in row 2, which is no f",
        ),
        ("--data table:t.csv --label one --task regression", "has the same number in all rows"),
        (
            "--data table:t.csv --label price",
            "too many for classes: predict numbers with --task=",
        ),
        ("--data table:t.csv --task regression --distill 1", "distill=1 "),
        (
            "--data table:t.csv --task regression --label-smoothing 0.1",
            "is for classes and",
        ),
        ("--data table:twice.csv", "twice.csv has two columns 'x': rename one"),
        ("--data text:gone.txt", r"gone.txt cannot be read \(No such file"),
        ("--data text:empty.txt", "has 0 different characters: give a text"),
        ("--data text:short.txt", "has 40 characters, too few for windows of 64"),
        ("--data text:latin.txt", r"latin.txt cannot be read \(.*: give a file of text in UTF-8"),
        (
            "--data text:short.txt --context 2 --model mlp --batch-size 4",
            "'mlp' does not fit --data='text:short.txt' with samples of 2: .*give --model=transf",
        ),
        (
            "--data table:t.csv --task regression --model resnet20 --batch-size 8",
            "does not fit --data='table:t.csv' with samples of .*: .*give --model=mlp, or other",
        ),
        ("--data text:wide.txt", "has 5000 different characters: give a text with at most"),
    ],
)
def test_mistakes(
    options: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    houses(tmp_path / "t.csv", count=60)
    rows = (tmp_path / "t.csv").read_text().splitlines()
    (tmp_path / "t.csv").write_text("\n".join([f"one,{rows[0]}", *(f"1,{r}" for r in rows[1:])]))
    (tmp_path / "twice.csv").write_text("x,x\n" + "1,a\n2,b\n" * 4)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("abcd" * 10)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1") * 100)
    (tmp_path / "wide.txt").write_text("".join(chr(0x4E00 + n) for n in range(5000)))
    done = run("train", "--epochs", "3", "--round-to", "4", *options.split(), "--out", "run")
    assert done.exit_code == 2, done.output
    assert re.search(message.replace("?", r"\?"), done.stderr), done.stderr
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())
    assert not (tmp_path / "run").exists()
