"""How many images one process decodes a second, and how many cores keep GPUs busy.

    python benchmarks/decoding.py --data imagefolder:DIR [--images 1000] [--gpus 8] [--rate 2500]

DIR is what `guyot train` takes. Without `--data` it is a folder of JPEGs that are made here: 500 x
400 pixels and about 100 kB each, as those of ImageNet on the average, with structure on several
scales. One process decodes them, cuts them at random, scales them to 224 x 224, mirrors and
normalises them. Seconds are those of the CPU, so that other programs hardly count. `--rate` is what
is assumed of a GPU, in images per second.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from runs import machine

from guyot.app.data import Batches, Dataset, load_dataset

RESULTS = Path(__file__).parent / "results" / "decoding.json"
SIZE = 224
BATCH = 32


def picture(number: int) -> Image.Image:
    """Draw structure on several scales: neighbours are alike, as in a photograph."""
    chance = np.random.default_rng(number)
    pixels = np.full((400, 500, 3), 128.0)
    for step, spread in ((100, 40), (25, 20), (5, 12), (2, 12), (1, 10)):
        noise = chance.normal(0, spread, (400 // step, 500 // step, 3))
        pixels += noise.repeat(step, 0).repeat(step, 1)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write(root: Path, count: int) -> float:
    """Write images of two classes; their mean size in kB."""
    files: list[Path] = []
    for number in range(count):
        for part in ("train", "val") if number < 2 else ("train",):
            files.append(root / part / "ab"[number % 2] / f"{number}.jpg")
            files[-1].parent.mkdir(parents=True, exist_ok=True)
            picture(number).save(files[-1], quality=90)
    return sum(file.stat().st_size for file in files) / len(files) / 1000


def rate(data: Dataset, images: int) -> float:
    """Images per second of the CPU's time, from the second batch on."""
    batches = Batches(data, data.train, BATCH, augment=True)
    count, epoch, started = 0, 0, 0.0
    while count < images:
        for x, _ in batches.epoch(epoch):
            if not started:
                started = time.process_time()
                continue
            count += len(x)
        epoch += 1
    return count / (time.process_time() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--rate", type=float, default=2500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        size = None
        if options.data is None:
            size, options.data = write(Path(folder), 200), f"imagefolder:{folder}"
        data = load_dataset(options.data, image_size=SIZE, workers=0)
        data = dataclasses.replace(data, resized=True)
        alone = rate(data, options.images)
        found = {
            "kilobytes": size,
            "images_per_second_of_a_core": alone,
            "gpus": options.gpus,
            "images_per_second_of_a_gpu": options.rate,
            "cores_needed": math.ceil(options.gpus * options.rate / alone),
        }
    RESULTS.write_text(json.dumps({"machine": machine(), **found}, indent=1) + "\n")
    print(f"{alone:.0f} images per second of a core: {found['cores_needed']} cores")


if __name__ == "__main__":
    main()
