"""Images that processes decode for each batch, from folders and from the Hub's Parquet files."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import images
import numpy as np
import pytest
import torch
import warm
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from run_folders import assert_same
from torch import Tensor, nn

from guyot import report
from guyot.app import running
from guyot.app.config import RunConfig
from guyot.app.data import Batches, Dataset, load_dataset
from guyot.app.data.parquet import ParquetImages
from guyot.app.data.streamed import Streamed, centre_crop, random_crop
from guyot.app.running import Silent
from guyot.app.running.setup import load_data
from guyot.core.errors import GuyotWarning, MisconfiguredError, ParallelError

SIZE = 8


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    """Let the tests share one server of processes, whichever comes first."""
    assert warm.FORKS
    forkserver.ensure_running()


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("images")
    return {
        "folder": images.write_folder(root / "folder"),
        "parquet": images.write_parquet(root / "parquet"),
    }


@pytest.fixture(params=["folder", "parquet"])
def place(request: pytest.FixtureRequest, places: dict[str, Path]) -> Path:
    return places[request.param]


def streamed(place: Path, workers: int = 0, **options: object) -> Dataset:
    data = load_dataset(f"imagefolder:{place}", image_size=SIZE, workers=workers, **options)
    return dataclasses.replace(data, resized=True)


def batches(data: Dataset, augment: bool = True, **options: object) -> Batches:
    split = data.train if augment else data.test
    return Batches(data, split, 6, augment=augment, seed=2, **options)


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for x, y in zip(first, second, strict=True)
        for a, b in zip(x, y, strict=True)
    )


def test_images_are_those_that_would_be_held_in_memory(place: Path, tmp_path: Path) -> None:
    held = load_dataset(f"imagefolder:{place}", image_size=SIZE, cache_dir=tmp_path)
    data = dataclasses.replace(streamed(place), resized=False, mean=held.mean, std=held.std)
    assert data.classes == held.classes == images.CLASSES and data.image_shape == (3, SIZE, SIZE)
    assert same([*batches(data, augment=False).epoch(0)], [*batches(held, augment=False).epoch(0)])
    if place.name == "folder":  # rows of Parquet have an order of their own
        assert same([*batches(data).epoch(3)], [*batches(held).epoch(3)])


def test_processes_change_nothing(place: Path) -> None:
    alone, helped = batches(streamed(place)), batches(streamed(place, workers=2))
    whole = [*alone.epoch(5)]
    assert len(whole) == 3 and same(whole, [*helped.epoch(5)])
    assert same(whole[1:2], [*helped.epoch(5, start=1, stop=2)])
    assert not same(whole, [*alone.epoch(6)]) and same(whole, [*alone.epoch(5)])
    parts = [batches(streamed(place), share=(rank, 2)).epoch(5) for rank in range(2)]
    joined = [
        (torch.cat([a[0], b[0]]), torch.cat([a[1], b[1]])) for a, b in zip(*parts, strict=True)
    ]
    assert same(whole, joined)


def test_every_image_of_the_test_data_is_seen_once(place: Path) -> None:
    parts = [batches(streamed(place), augment=False, share=(rank, 4)) for rank in range(4)]
    seen = torch.cat([x for part in parts for x, _ in part.epoch(0)])
    assert len(seen) == len(seen.flatten(1).unique(dim=0)) == 6


def test_evaluation_cuts_the_margin_off(places: dict[str, Path]) -> None:
    assert centre_crop((320, 256), centred=True) == (48, 16, 272, 240)  # 224 x 224 of the centre
    assert centre_crop((320, 256), centred=False) == (32, 0, 288, 256)
    data = streamed(places["folder"])
    (x, _), *_ = batches(data, augment=False).epoch(0)
    file = next((places["folder"] / "val/cat").iterdir())
    with Image.open(min(file.parent.iterdir())) as image:
        crop = centre_crop(image.size, centred=True)
        pixels = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=crop)
    red = torch.from_numpy(np.array(pixels)[..., 0]) / 255
    torch.testing.assert_close(x[0, 0], (red - 0.485) / 0.229, atol=1e-5, rtol=0)


@given(st.integers(1, 600), st.integers(1, 600), st.integers(0, 2**62))
def test_random_crops_lie_in_the_image(width: int, height: int, seed: int) -> None:
    (left, upper, right, lower), _ = random_crop((width, height), random.Random(seed))
    assert 0 <= left < right <= width and 0 <= upper < lower <= height
    if min(width, height) > 200 and max(width, height) < 1.3 * min(width, height):
        assert 0.07 < (right - left) * (lower - upper) / (width * height) <= 1
        assert 0.74 < (right - left) / (lower - upper) < 1.36


def test_random_crops_are_everywhere_and_mirrored_half_of_the_time() -> None:
    found = [random_crop((100, 100), random.Random(seed)) for seed in range(2000)]
    mirrors = sum(mirrored for _, mirrored in found)
    assert abs(mirrors - 1000) < 5 * 500**0.5
    areas = torch.tensor([(r - left) * (low - up) / 1e4 for (left, up, r, low), _ in found])
    assert areas.min() < 0.12 and areas.max() > 0.85 and 0.4 < areas.mean() < 0.6
    assert {left == 0 for (left, *_), _ in found} == {True, False}


@given(st.data())
def test_an_epoch_reads_every_row_group_once(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    total = sum(counts)
    batch = data.draw(st.integers(1, total))
    source = ParquetImages.__new__(ParquetImages)
    source.__dict__.update(_bytes=100, _counts=[(0, group, n) for group, n in enumerate(counts)])
    order = source.order(torch.arange(total), batch, torch.Generator().manual_seed(1))
    assert torch.equal(order.sort().values, torch.arange(total))
    group = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[order]
    lanes, steps = min(batch, len(counts)), total // batch
    table = group[: batch * steps].view(steps, batch)
    edges = [lane * batch // lanes for lane in range(lanes + 1)]
    reads = [
        len(torch.unique_consecutive(table[:, first:last].flatten()))
        for first, last in itertools.pairwise(edges)
    ]
    assert sum(reads) < len(counts) + lanes  # at the edge of two lanes one more


def test_an_unreadable_image_is_named_or_left_out(tmp_path: Path) -> None:
    root = images.write_folder(tmp_path)
    bad = root / "train/dog/007.png"
    bad.write_bytes(bad.read_bytes()[:90])
    with pytest.raises(MisconfiguredError, match=r"dog/007.png is not a readable .*; repair it"):
        list(batches(streamed(root)).epoch(0))
    whole = batches(streamed(root, skip_corrupt=True))
    with pytest.warns(GuyotWarning, match=r"dog/007.png is not a readable .*; it is left out"):
        found = [len(x) for epoch in range(3) for x, y in whole.epoch(epoch) if len(x) == len(y)]
    assert len(found) == 9 and set(found) == {5, 6}


def test_a_row_that_is_no_image_is_named(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    root = images.write_parquet(tmp_path)
    cells = [{"bytes": None, "path": "x.png"}] * 4
    table = pa.table({"image": cells, "label": [0, 1, 0, 1]})
    parquet.write_table(table, root / "data/train-00002-of-00002.parquet")
    with pytest.raises(MisconfiguredError, match=r"00002.parquet, row \d of row group 0, is not a"):
        list(batches(streamed(root)).epoch(0))


def test_a_process_that_dies_is_an_error(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    source = images.Deadly(places["folder"] / "train", images.CLASSES, whole=True)
    split = Streamed(source, torch.arange(20), SIZE, workers=1)
    data = dataclasses.replace(streamed(places["folder"]), train=split)
    with pytest.raises(ParallelError, match=r"decodes images ended .*fewer than data_workers=1"):
        list(batches(data).epoch(0))


def test_bad_parquet_files(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    def refused(text: str, **options: object) -> None:
        with pytest.raises(MisconfiguredError, match=text):
            streamed(tmp_path, **options)

    cell = {"bytes": b"", "path": ""}
    for columns, text in (
        ({"img": [cell], "label": [0]}, r"no column 'image' \(it has img, label\): name"),
        ({"image": [b"x"], "label": [0]}, r"column 'image' is binary: give records with .*'bytes'"),
        ({"image": [cell], "label": ["cat"]}, r"'label' is string: give numbers of classes"),
        ({"image": [cell] * 2, "label": [0, None]}, r"'label' has empty rows"),
        ({"image": [cell] * 2, "label": [0, -1]}, r"labels from -1 to 0: give two classes"),
    ):
        parquet.write_table(pa.table(columns), tmp_path / "train.parquet")
        refused(text)
    (tmp_path / "train.parquet").write_bytes(b"PAR")
    refused(r"train.parquet cannot be read .*repair it, or download it again")
    images.rows("train", tmp_path, range(12))
    refused(r"no test\*.parquet or val\*.parquet with labels: .*test_share=0.2")
    assert len(streamed(tmp_path, test_share=0.25).test) == 4  # 2 of each class
    images.rows("val", tmp_path, range(4), classes=("dog", "cat"))
    refused(r"val.parquet has other classes than .*train.parquet")
    refused(r"test_share=0.25 is for files without test data", test_share=0.25)
    images.rows("val", tmp_path, range(4), labels=[0, 1, 2, 0])
    refused(r"val.parquet has other classes than .*train.parquet")
    images.rows("val", tmp_path, range(4))
    images.rows("test", tmp_path, range(3), labels=[-1, -1, -1])
    with pytest.warns(GuyotWarning, match=r"test.parquet has no labels \(all are -1\): it is not"):
        assert len(streamed(tmp_path).test) == 4


def test_row_groups_that_are_too_large(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guyot.app.data.parquet._LARGEST", 1)
    with pytest.raises(MisconfiguredError, match=r"write the files with row_group_size=100"):
        next(batches(streamed(places["parquet"])).epoch(0))


def test_images_that_do_not_fit_into_memory(
    places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guyot.app.data.sources.memory", lambda: 40 * 3 * SIZE**2 - 2)
    data = f"imagefolder:{places['folder']}"
    with pytest.raises(MisconfiguredError, match=r"20 images of 8 pixels .*\(data_workers=8\)"):
        load_dataset(data, image_size=SIZE, cache_dir=tmp_path)
    assert len(load_dataset(data, image_size=SIZE, workers=0).train) == 20


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(MisconfiguredError, match=r"data_workers=2 is for data=imagefolder:DIR"):
        RunConfig.of("digits", data_workers=2)
    with pytest.raises(MisconfiguredError, match=r"augment='resized-crop' needs whole images"):
        RunConfig.of("imagefolder:x", augment="resized-crop")


@pytest.mark.parametrize(
    ("augment", "flip", "crop", "resized"),
    [
        ("flip+resized-crop", True, False, True),
        ("resized-crop", False, False, True),
        ("flip+crop", True, True, False),
        (None, True, True, False),
    ],
)
def test_augmentation_by_name(
    places: dict[str, Path], augment: str | None, flip: bool, crop: bool, resized: bool
) -> None:
    config = RunConfig.of(f"imagefolder:{places['folder']}", augment=augment, data_workers=1)
    data = load_data(config)
    assert (data.flip, data.pad > 0, data.resized) == (flip, crop, resized)


def tiny(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, num_classes)
    )


class Counting(Silent):
    steps = 0

    def stepped(self, step: int, loss: float) -> None:
        self.steps += 1


def test_a_run_that_resumes_sees_the_same_images(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guyot.costs.timing.measure", partial(report.measure, seconds=0.0))
    settings = {"epochs": 2, "batch_size": 4, "bf16": False, "ema": 0.9, "discovery": False}
    settings |= {"augment": "flip+resized-crop", "image_size": SIZE, "data_workers": 1}
    model = f"{Path(__file__)}:tiny"
    config = RunConfig.of(f"imagefolder:{place}", model=model, threads=1, **settings)
    whole = running.train(config, tmp_path / "whole")
    assert whole.test_images == 6
    counting = Counting()
    running.train(config, tmp_path / "run", counting, lambda: counting.steps >= 6)
    file = tmp_path / "run/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"data_workers": 2}))
    running.resume(tmp_path / "run", trust=True)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("run", "whole")]
    assert weights[0] == weights[1]
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_other_images_are_told_from_those_of_the_run(tmp_path: Path) -> None:
    root = images.write_folder(tmp_path / "images")
    before = streamed(root).train.fingerprint()
    assert streamed(root).train.fingerprint() == before
    root = root.rename(tmp_path / "moved")
    assert streamed(root).train.fingerprint() == before
    file = root / "train/cat/000.png"
    file.write_bytes(file.read_bytes() + b" ")
    assert streamed(root).train.fingerprint() != before
