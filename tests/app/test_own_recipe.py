"""Data, loss, optimiser and weights of the user's on the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from terminal import run

from guyot import report
from guyot.app.config import RunConfig
from guyot.app.data import load_dataset
from guyot.app.models import build, load_fitting
from guyot.app.running import load_run
from guyot.app.running.setup import load_data, network_of
from guyot.core.errors import GuyotWarning, MisconfiguredError

QUICK = "--epochs 3 --batch-size 16 --threads 1 --no-bf16 --round-to 4".split()
OWN = """
import torch
from torch.utils.data import DataLoader, TensorDataset
calls = []

def points(count, seed):
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()

def datasets():
    return {"train": TensorDataset(*points(640, 0)), "test": points(90, 1),
            "validation": DataLoader(TensorDataset(*points(80, 2)), 32), "classes": "abc"}

def images():
    x = torch.arange(2 * 3 * 4 * 4).view(2, 3, 4, 4).float()
    return {"train": (x, torch.tensor([0, 1])), "test": (x, torch.tensor([1, 0]))}

def pair():
    return points(8, 0)

def tokens():
    x = torch.ones(4, 5, dtype=torch.int64)
    return {"train": (x, torch.tensor([0, 1, 0, 1])), "test": (x, torch.tensor([0, 1, 0, 1]))}

def numbers():
    x, y = points(8, 0)
    return {"train": (x, y.float()), "test": (x, y.float())}

def other():
    return {"train": points(8, 0), "test": (torch.randn(4, 7), torch.tensor([0, 1, 0, 1]))}

def ragged():
    samples = [(torch.ones(2), 0), (torch.ones(3), 1)]
    return {"train": samples, "test": samples}

def loss(logits, labels):
    calls.append(len(labels))
    return torch.nn.functional.multi_margin_loss(logits, labels)

def losses(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

def make(parameters, lr, weight_decay):
    return torch.optim.RMSprop(parameters, lr, weight_decay=weight_decay)

def nothing(parameters):
    return None
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mine.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
    yield
    sys.modules.pop("guyot_user_mine", None)


def test_everything_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = "--data mine.py:datasets --model mlp --loss mine.py:loss --optimizer mine.py:make"
    done = run("train", *QUICK, *options.split(), "--lr", "0.003", "--out", folder, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["test_images"] == 90 and result["after"]["test_accuracy"] > 0.6
    assert result["after"]["macs"] < result["before"]["macs"] and result["image_shape"] == [6]
    assert set(sys.modules["guyot_user_mine"].calls) == {16}
    assert load_run(folder)(torch.randn(5, 6)).shape == (5, 3)
    evaluated = json.loads(run("evaluate", folder, "--trust", "--json").stdout)
    assert evaluated["accuracy"] == result["after"]["test_accuracy"]


@pytest.mark.parametrize("setting", ["data", "loss", "optimizer"])
def test_a_file_may_not_name_functions_unasked(setting: str, tmp_path: Path) -> None:
    name = {"data": "datasets", "loss": "loss", "optimizer": "make"}[setting]
    (tmp_path / "c.json").write_text(json.dumps({setting: f"mine.py:{name}"}))
    done = run("train", "--config", "c.json")
    assert done.exit_code == 2 and "a function whose code would run" in done.stderr
    assert f"{setting}='mine.py:{name}'" in done.stderr and "guyot_user_mine" not in sys.modules


def test_evaluation_does_not_call_the_data_of_a_folder_unasked(tmp_path: Path) -> None:
    options = ["--no-discovery", "--data", "mine.py:datasets", "--model", "mlp", "--epochs", "1"]
    done = run("train", *options, "--threads", "1", "--out", "run", "--quiet")
    assert done.exit_code == 0, done.output
    sys.modules.pop("guyot_user_mine")
    done = run("evaluate", "run")
    assert done.exit_code == 2 and "data='mine.py:datasets', a function whose code" in done.stderr
    assert "guyot_user_mine" not in sys.modules


def test_parts_are_what_the_function_gave() -> None:
    dataset = load_data(RunConfig.of("mine.py:datasets", model="mlp"))
    assert dataset.validation is not None and dataset.classes == ("a", "b", "c")
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [640, 80, 90]
    assert dataset.test.images.dtype == torch.float32 and dataset.image_shape == (6,)


def test_float_images_reach_the_network_as_they_are() -> None:
    from guyot.app.data import Batches

    dataset = load_dataset("mine.py:images")
    ((images, _),) = Batches(dataset, dataset.test, 2, augment=False).epoch(0)
    assert torch.equal(images, torch.arange(96).view(2, 3, 4, 4).float())
    assert dataset.image_shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--data mine.py:dataset", "has no function 'dataset', did you mean datasets"),
        ("--data mine.py:pair", "returned tuple: return a dict"),
        ("--data mine.py:tokens", "samples are int64 of (5,): give uint8 images"),
        ("--data mine.py:numbers", "give numbers of classes from 0, or --task=regression"),
        ("--data mine.py:other", "samples of test are float32 of (7,), those of train"),
        ("--data mine.py:ragged", "train cannot be read as pairs (x, label) of one shape"),
        ("--data gone.py:f", "gone.py cannot be imported"),
        ("--data foldr:x", "--data='foldr:x' is unknown"),
        ("--loss mse", "--loss='mse': give a function of your own as FILE.py:NAME"),
        ("--loss mine.py:losses", "returned (16,): return the mean over the samples"),
        ("--optimizer adam", "--optimizer='adam': choose sgd or adamw, or your own"),
        ("--optimizer mine.py:nothing", "returned NoneType: return a torch.optim.Optimizer"),
        ("--weights a.safetensors --pretrained", "both say where the weights come from"),
        ("--distill 0.5", "distill=0.5 lets the full network teach, and it is not trained: give"),
        ("--weights a.safetensors --distill 1.5", "distill=1.5: give a share from 0 to 1"),
        ("--weights gone.safetensors", "gone.safetensors cannot be read"),
        ("--pretrained", "only networks of torchvision and timm have trained weights"),
        ("--augment blur", "--augment='blur': choose none or flip or crop or flip+crop"),
        ("--test-share 0.2", "--test-share=0.2 is for --data=imagefolder:DIR"),
    ],
)
def test_mistakes(options: str, message: str) -> None:
    done = run("train", *QUICK, *options.split())
    assert done.exit_code == 2, done.output
    assert message in " ".join(done.stderr.split())


def test_adamw_has_a_learning_rate_of_its_own() -> None:
    assert RunConfig.of("digits", optimizer="adamw").lr == 1e-3
    assert RunConfig.of("digits", optimizer="adamw", lr=0.01).lr == 0.01
    assert RunConfig.of("digits").lr == 0.1


@pytest.mark.parametrize(
    ("augment", "flip", "crop"),
    [("none", False, False), ("flip", True, False), ("crop", False, True), ("flip+crop", 1, 1)],
)
def test_augmentation(augment: str, flip: bool, crop: bool) -> None:
    dataset = load_data(RunConfig.of("digits", augment=augment))
    assert (dataset.flip, dataset.pad > 0) == (flip, crop)


# -- weights -----------------------------------------------------------------------------------


def test_weights_of_a_file_are_where_the_run_begins(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = build("digits")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    config = RunConfig.of("digits", weights="w.safetensors")
    for name, tensor in network_of(config, 10, (1, 8, 8)).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_the_full_network_teaches(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_file(build("mlp", 3, (6,)).state_dict(), tmp_path / "w.safetensors")
    settings = "--data mine.py:datasets --model mlp --weights w.safetensors --lr 0.02 --json"

    def accuracy(share: str) -> float:
        out = tmp_path / share
        done = run("train", *QUICK, *settings.split(), "--distill", share, "--out", out)
        assert done.exit_code == 0, done.output
        found = json.loads(done.stdout)
        assert found["after"]["macs"] < found["before"]["macs"]
        return found["after"]["test_accuracy"]

    assert accuracy("0.1") > 0.7
    assert accuracy("1") < 0.6  # the teacher is not trained, and nothing else is listened to


def test_a_head_for_other_classes_stays_random() -> None:
    source: Any = build("digits", 7)
    model: Any = build("digits", 10)
    before = model.fc.weight.clone()
    with pytest.warns(GuyotWarning, match=r"some: fc.weight, fc.bias are of another size"):
        load_fitting(model, source.state_dict(), "some")
    assert torch.equal(model.fc.weight, before)
    assert torch.equal(model.conv1.weight, source.conv1.weight)


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(MisconfiguredError, match=r"do not fit the network: .* and \d+ more are mi"):
        load_fitting(build("digits"), build("mlp").state_dict(), "these")
    wrong = {name: value[..., None] for name, value in build("mlp").state_dict().items()}
    with pytest.raises(MisconfiguredError, match="of another size; give weights of the same"):
        load_fitting(build("mlp"), wrong, "these")


def test_trained_weights_are_asked_of_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    import torchvision

    asked: list[Any] = []
    make = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained, **k: asked.append(pretrained) or make(name, **k),
    )
    build("timm:test_resnet", 5, pretrained=True)
    assert asked == [True]
    state = torchvision.models.get_model("squeezenet1_1", weights=None).state_dict()
    weights = torchvision.models.get_model_weights("squeezenet1_1")
    monkeypatch.setattr(weights, "get_state_dict", lambda *_, **__: state)
    with pytest.warns(GuyotWarning, match=r"classifier.1.weight, classifier.1.bias are of another"):
        model = build("torchvision:squeezenet1_1", 5, pretrained=True)
    assert torch.equal(model.state_dict()["features.0.weight"], state["features.0.weight"])

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "get_state_dict", unreachable)
    with pytest.raises(MisconfiguredError, match=r"no route to host; without .* give weights=FILE"):
        build("torchvision:squeezenet1_1", 5, pretrained=True)


# -- folders and tables ------------------------------------------------------------------------


def images(root: Path, *places: str) -> Path:
    for number, place in enumerate(places):
        file = root / place
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(file)
    return root


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ("train/a/1.png test/a/1.png", "has only the class 'a': give two classes or more"),
        ("train/1.png train/2.png test/a/1.png", "no folders of classes, and 2 images that are in"),
        ("a/1.png b/1.png", "class folders that it has with test_share=0.2"),
        ("train/a/1.png train/b/1.txt test/a/1.png", "classes without images: b; add some"),
    ],
)
def test_bad_folders(places: str, message: str, tmp_path: Path) -> None:
    root = images(tmp_path / "data", *places.replace(".txt", ".png").split())
    for place in places.split():
        if place.endswith(".txt"):
            (root / place.replace(".txt", ".png")).rename(root / place)
    with pytest.raises(MisconfiguredError, match=message):
        load_dataset(f"imagefolder:{root}", cache_dir=tmp_path / "cache", image_size=8)


def test_folders_that_are_not_there_or_closed(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="there is no such folder"):
        load_dataset(f"imagefolder:{tmp_path / 'gone'}")
    root = images(tmp_path / "data", "train/a/1.png", "test/a/1.png")
    if os.geteuid():
        (root / "train").chmod(0)
        with pytest.raises(MisconfiguredError, match="cannot be read"):
            load_dataset(f"imagefolder:{root}")
        (root / "train").chmod(0o700)


def test_class_folders_are_split(tmp_path: Path) -> None:
    places = [f"{name}/{n}.png" for name in ("a", "b") for n in range(10)] + ["c/1.png"]
    root = images(tmp_path / "data", *places)
    options: Any = {"cache_dir": tmp_path / "cache", "image_size": 8, "test_share": 0.2}
    first, second = (load_dataset(f"imagefolder:{root}", **options) for _ in range(2))
    assert first.train.labels.bincount().tolist() == [8, 8, 1]
    assert first.test.labels.bincount().tolist() == [2, 2]
    assert torch.equal(first.test.images, second.test.images)
    seen = torch.cat([first.train.images, first.test.images])[:, 0, 0, 0]
    assert sorted(seen.tolist()) == list(range(21))
    images(root, "train/x/1.png")
    with pytest.raises(MisconfiguredError, match=r"and .*data has train: leave it out"):
        load_dataset(f"imagefolder:{root}", **options)


def write(file: Path, *rows: str) -> str:
    file.write_text("\n".join(rows) + "\n")
    return f"table:{file}"


def test_a_table(tmp_path: Path) -> None:
    rows = [f"{n},{'red' if n % 3 else 'blue'},{'yes' if n < 50 else 'no'}" for n in range(100)]
    dataset = load_dataset(write(tmp_path / "t.csv", "size,colour,good", *rows))
    assert dataset.classes == ("no", "yes") and dataset.image_shape == (3,)
    assert (len(dataset.train), len(dataset.test)) == (80, 20)
    size = dataset.train.images[:, 0]
    assert abs(float(size.mean())) < 1e-6 and abs(float(size.std(correction=0)) - 1) < 1e-6
    assert dataset.train.images[:, 1:].sum(1).eq(1).all()
    assert torch.equal((size < size[dataset.train.labels == 0].min()), dataset.train.labels == 1)


def test_a_column_called_label_is_the_class(tmp_path: Path) -> None:
    dataset = load_dataset(
        write(tmp_path / "t.csv", "label,x", *(f"{n % 2},{n}" for n in range(10)))
    )
    assert dataset.classes == ("0", "1") and dataset.image_shape == (1,)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x,y"], "has 0 rows: give a line of names and 5 rows or more"),
        (["x,y", *["1,a"] * 9], "'y' has only the class 'a': give two or more"),
        (["x,y", *["1,a", "2,b"] * 4, "3"], "row 10: 1 entries, and 2 names"),
        (["x,y", *["1,a", "2,b"] * 4, ",b"], "row 10: the column 'x' is empty: fill it in"),
        (
            ["x,y", ",a", *["1,a", "2,b"] * 4, "1,", ",b"],
            "row 2: the column 'x' is empty, and 2 more rows have gaps: fill them in",
        ),
        (
            ["x,y", "?,a", *["1,a", "NA,b"] * 4],
            r"'x' holds numbers, but '\?' in row 2, and 4 more rows have no number there: write",
        ),
        (
            ["x,y", *["1,a", "2,b"] * 5, "12 cm,a"],
            "'x' holds numbers, but '12 cm' in row 12: write numbers, or remove the rows",
        ),
        (["x,y", *(f"row {n},{n % 2}" for n in range(30))], "has no features: give columns"),
        (["x,y", *(f"{n},{n / 7}" for n in range(30))], "30 different numbers in 30 rows"),
        (["y", *["a", "b"] * 4], "has one column: give features"),
        (["x,y", *["nan,a", "2,b"] * 4], "'x' .*not finite: 'nan' in row 2, and 3 more"),
    ],
)
def test_bad_tables(rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        load_dataset(write(tmp_path / "t.csv", *rows))


def test_a_column_of_names_is_left_out_and_said(tmp_path: Path) -> None:
    rows = [f"{n},{n % 7} Main Street,house {n},{'yes' if n < 50 else 'no'}" for n in range(100)]
    data = write(tmp_path / "t.csv", "size,road,name,good", *rows)
    with pytest.warns(GuyotWarning, match=r"'name' is left out, since it has 100 different texts"):
        dataset = load_dataset(data)
    assert dataset.image_shape == (1 + 7,)


def test_texts_that_are_many_among_numbers_are_categories(tmp_path: Path) -> None:
    rows = [f"{'A' if n % 3 else n % 2},{n % 5 > 2}" for n in range(60)]
    assert load_dataset(write(tmp_path / "t.csv", "zone,y", *rows)).image_shape == (3,)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match=r"cannot be read \(No such file"):
        load_dataset(f"table:{tmp_path / 'gone.csv'}")


def test_a_table_trains(tmp_path: Path) -> None:
    rows = [f"{n % 17},{n % 5},{int(n % 17 > 8)}" for n in range(800)]
    data = write(tmp_path / "t.csv", "a,b,c", *rows)
    options = ["--no-discovery", "--data", data, "--out", tmp_path / "run", "--json"]
    done = run("train", *QUICK, *options)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["model"] == "mlp" and result["after"]["test_accuracy"] > 0.9
