import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from guyot.app.data import Batches, Dataset, Split, load_dataset
from guyot.app.data.arrays import statistics
from guyot.app.data.batches import crop_and_flip, draw_crops, normalise
from guyot.app.data.decoding import Decoded
from guyot.core.errors import GuyotWarning, MisconfiguredError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(count: int = 10, side: int = 6) -> Dataset:
    images = torch.randint(0, 256, (count, side, side, 3), generator=generator()).byte()
    split = Split(images, torch.arange(count))
    mean, std = statistics(images)
    return Dataset("toy", split, split, ("a", "b"), mean, std, flip=True, pad=2)


def png(side: int = 32, value: int = 0) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_parquet(folder: Path, label: str = "label") -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    for part, count in (("train", 6), ("test", 4)):
        cells = [{"bytes": png(value=i), "path": None} for i in range(count)]
        table = pa.table({"img": cells, label: list(range(count))})
        parquet.write_table(table, folder / f"{part}.parquet")


def folder_of(root: Path, spoilt: dict[str, bytes]) -> Path:
    for part in ("train", "test"):
        for name in ("a", "b"):
            (root / part / name).mkdir(parents=True)
            for number in range(4):
                (root / part / name / f"{number}.png").write_bytes(png(8, number))
    for name, content in spoilt.items():
        (root / name).write_bytes(content)
    return root


def test_corrupt_images_stop_or_are_left_out(tmp_path: Path):
    spoilt = {"train/a/1.png": b"no picture", "train/b/2.png": png()[:50], "test/a/0.png": b""}
    root, cache = folder_of(tmp_path / "images", spoilt), tmp_path / "cache"
    with pytest.raises(MisconfiguredError, match=r"a/1.png .*\(its format is not known\) \(and 1"):
        load_dataset(f"imagefolder:{root}", cache_dir=cache)
    for _ in range(2):  # decoded, then from the cache: told both times
        with pytest.warns(GuyotWarning, match=r"images are left out") as said:
            dataset = load_dataset(f"imagefolder:{root}", cache_dir=cache, skip_corrupt=True)
        texts = [str(warning.message) for warning in said]
        assert "2 of 8 images are left out" in texts[0] and "1 of 8" in texts[1]
        assert all(any(name in text for text in texts) for name in spoilt)
        assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert len(dataset.test) == 7
    with pytest.raises(MisconfiguredError, match=r"1.png is not a readable .*on_corrupt=skip"):
        load_dataset(f"imagefolder:{root}", cache_dir=cache)


def test_a_pipe_among_images_is_not_waited_for(tmp_path: Path):
    root = folder_of(tmp_path / "images", {})
    os.mkfifo(root / "train" / "a" / "pipe.png")
    with pytest.raises(MisconfiguredError, match=r"pipe.png is not a readable .*no regular file"):
        load_dataset(f"imagefolder:{root}", cache_dir=tmp_path)


def test_nothing_but_corrupt_images(tmp_path: Path):
    spoilt = {f"train/{name}/{n}.png": b"" for name in "ab" for n in range(4)}
    root = folder_of(tmp_path / "images", spoilt)
    with pytest.raises(MisconfiguredError, match=r"0.png is not .*and 7 more.*none is left"):
        load_dataset(f"imagefolder:{root}", cache_dir=tmp_path, skip_corrupt=True)


def test_long_lists_of_corrupt_images_are_cut(tmp_path: Path):
    spoilt = {f"train/{name}/{n}.png": b"" for name in "ab" for n in range(3)}
    root = folder_of(tmp_path / "images", spoilt)
    with pytest.warns(GuyotWarning, match=r"6 of 8 images are left out.*; and 1 more"):
        load_dataset(f"imagefolder:{root}", cache_dir=tmp_path, skip_corrupt=True)


@given(data=st.data())
def test_any_damage_of_an_image_is_a_picture_or_corrupt(data: st.DataObject):
    content = bytearray(png(8, 7))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    decoded = Decoded(8)
    decoded.add(lambda: bytes(content), "x.png", 0)
    assert len(decoded.images) + len(decoded.corrupt) == 1


def test_every_crop_is_a_window_of_the_padded_image_or_its_mirror():
    images = toy(20).train.images
    out = crop_and_flip(images, 2, True, *draw_crops(len(images), 2, generator(1)))
    padded = torch.nn.functional.pad(images, (0, 0, 2, 2, 2, 2))
    mirrors = 0
    for image, source in zip(out, padded, strict=True):
        windows = [source[i : i + 6, j : j + 6] for i in range(5) for j in range(5)]
        plain = any(torch.equal(image, window) for window in windows)
        mirrored = any(torch.equal(image, window.flip(1)) for window in windows)
        assert plain != mirrored
        mirrors += mirrored
    assert 0 < mirrors < 20


def test_without_padding_or_flip_nothing_changes():
    images = toy().train.images
    assert torch.equal(
        crop_and_flip(images, 0, False, *draw_crops(len(images), 0, generator())), images
    )


def test_offsets_and_mirrors_are_uniform():
    # One bright pixel in the centre: its position tells offset and mirror. 5x5 offsets, N = 20,000.
    images = torch.zeros(20_000, 5, 5, 1, dtype=torch.uint8)
    images[:, 2, 2] = 255
    where = (
        crop_and_flip(images, 2, True, *draw_crops(len(images), 2, generator()))
        .flatten(1)
        .argmax(1)
    )
    counts = where.bincount(minlength=25).double()
    expected = 20_000 / 25
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_normalise_is_exact_and_channels_last():
    dataset = toy()
    images = dataset.train.images
    mean, std = torch.tensor(dataset.mean), torch.tensor(dataset.std)
    out = normalise(images, mean, std, torch.float32)
    expected = ((images.double() / 255 - mean.double()) / std.double()).permute(0, 3, 1, 2)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert normalise(images, mean, std, torch.bfloat16).dtype == torch.bfloat16
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)


def test_epochs_are_deterministic_differ_and_can_be_resumed():
    dataset = toy()

    def draw(seed: int, epoch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return list(Batches(dataset, dataset.train, 3, augment=True, seed=seed).epoch(epoch))

    first, again = draw(0, 4), draw(0, 4)
    assert len(first) == 3
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    labels = torch.cat([y for _, y in first])
    assert len(labels.unique()) == 9
    for other in (draw(0, 5), draw(1, 4)):
        assert not torch.equal(labels, torch.cat([y for _, y in other]))


def test_evaluation_batches_are_all_images_in_order():
    dataset = toy()
    batches = Batches(dataset, dataset.test, 4, augment=False)
    labels = [y for _, y in batches.epoch(0)]
    assert [len(y) for y in labels] == [4, 4, 2]
    assert len(batches) == 3
    assert torch.equal(torch.cat(labels), torch.arange(10))


def test_hold_out_partitions_the_training_images():
    dataset = toy().hold_out(3, seed=1)
    assert dataset.validation is not None
    parts = torch.cat([dataset.train.labels, dataset.validation.labels])
    assert len(dataset.validation) == 3
    assert torch.equal(parts.sort().values, torch.arange(10))
    assert torch.equal(toy().hold_out(3, seed=1).train.labels, dataset.train.labels)


def test_digits():
    dataset = load_dataset("digits")
    assert dataset.image_shape == (1, 8, 8)
    assert len(dataset.train) + len(dataset.test) == 1797
    assert dataset.train.labels.unique().tolist() == list(range(10))
    assert not dataset.flip


@pytest.mark.parametrize(("name", "label"), [("cifar10", "label"), ("cifar100", "fine_label")])
def test_parquet_is_decoded_and_cached(tmp_path: Path, name: str, label: str):
    write_parquet(tmp_path, label)
    cache = tmp_path / "cache"
    first = load_dataset(name, tmp_path, cache_dir=cache)
    assert first.image_shape == (3, 32, 32)
    assert first.train.images[:, 0, 0, 0].tolist() == list(range(6))
    assert first.test.labels.tolist() == list(range(4))
    files = sorted(cache.iterdir())
    written = [file.stat().st_ino for file in files]
    assert len(files) == 4
    again = load_dataset(name, tmp_path, cache_dir=cache)
    assert torch.equal(again.train.images, first.train.images)
    assert [file.stat().st_ino for file in files] == written


def test_image_folder(tmp_path: Path):
    for part in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            (folder / "0.png").write_bytes(png(side=50 + label, value=100 * label))
    dataset = load_dataset(f"imagefolder:{tmp_path}", cache_dir=tmp_path / "cache", image_size=16)
    assert dataset.classes == ("cat", "dog")
    assert dataset.image_shape == (3, 16, 16)
    assert dataset.train.images[:, 0, 0, 0].tolist() == [0, 100]
    assert dataset.test.labels.tolist() == [0, 1]


def test_a_corrupt_image_is_named(tmp_path: Path):
    for part in ("train", "test"):
        (tmp_path / part / "cat").mkdir(parents=True)
        (tmp_path / part / "cat" / "bad.png").write_bytes(png()[:60])
        (tmp_path / part / "dog").mkdir()
        (tmp_path / part / "dog" / "good.png").write_bytes(png())
    with pytest.raises(MisconfiguredError, match=r"bad\.png is not a readable image"):
        load_dataset(f"imagefolder:{tmp_path}", cache_dir=tmp_path / "cache")


def test_bad_arguments(tmp_path: Path):
    with pytest.raises(MisconfiguredError, match=r"data='mnist'.*digits"):
        load_dataset("mnist")
    with pytest.raises(MisconfiguredError, match=r"holds no train\*\.parquet"):
        load_dataset("cifar10", tmp_path)
    with pytest.raises(MisconfiguredError, match=r"needs the folders .*train"):
        load_dataset(f"imagefolder:{tmp_path}")
    with pytest.raises(MisconfiguredError, match=r"validation=10 images of 10"):
        toy().hold_out(10)
    with pytest.raises(MisconfiguredError, match=r"batch_size=11.*10 training samples"):
        Batches(toy(), toy().train, 11, augment=True)
    write_parquet(tmp_path)
    with pytest.raises(MisconfiguredError, match=r"no column 'fine_label'"):
        load_dataset("cifar100", tmp_path, cache_dir=tmp_path / "cache")


def test_classes_of_the_test_folder_must_be_known(tmp_path: Path):
    for name in ("train/cat", "train/dog", "test/cat", "test/yak"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "0.png").write_bytes(png())
    with pytest.raises(MisconfiguredError, match=r"classes that the training folder lacks: yak"):
        load_dataset(f"imagefolder:{tmp_path}", cache_dir=tmp_path / "cache")
