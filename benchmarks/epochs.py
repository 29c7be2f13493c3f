"""Training speed on one CPU thread: bfloat16, channels last, against float32; and images read against images trained.

ResNet-20 on packed halves of 32x32 images; CPU seconds of whole epochs of the training loop, reading included.
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from pydantic import JsonValue

from drs_ray.config import TrainingConfig
from drs_ray.data.arrays import ArrayDataset, load_mnist5k
from drs_ray.data.datasets import Dataset, load_dataset
from drs_ray.data.packing import pack_dataset
from drs_ray.models.building import build_module
from drs_ray.models.precision import has_bfloat16
from drs_ray.smoothing.partition import make_partition
from drs_ray.storage import LocalStore
from drs_ray.training import loop
from drs_ray.training.images import in_memory_if_small, read_batches
from drs_ray.training.loop import train_network

IMAGES, BATCH, ROUNDS = 1280, 128, 5
JPEGS, RANDOM_BATCHES = 6000, 4


def measure() -> Iterator[tuple[str, str, str]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        units = "with" if has_bfloat16("cpu") else "without"
        colour = _colour(IMAGES)
        digits = load_mnist5k("train")
        plain, fast = _rates(colour, "resnet20", flip=True, shift=2)
        yield (
            f"training ResNet-20 on halves of 32x32 images, 1 thread, a CPU {units} bfloat16 units: bfloat16, channels "
            f"last, against float32, contiguous ({fast:,.0f} and {plain:,.0f} images/s)",
            f"{fast / plain:.2f}x",
            ">= 2x" if units == "with" else "",
        )
        settings = TrainingConfig(epochs=1, batch=BATCH, flip=True, shift=2)
        pairs = [
            [_rate(colour, "resnet20", {"unshuffle": side}, settings) for side in (1, 2)] for _ in range(ROUNDS + 1)
        ]
        fast, cheap = (statistics.median(rates) for rates in zip(*pairs[1:], strict=True))
        yield (
            f"training ResNet-20 on the same halves: `unshuffle: 2` against 1 ({cheap:,.0f} and {fast:,.0f} images/s)",
            f"{cheap / fast:.2f}x",
            ">= 2x",
        )
        plain, quick = _rates(digits, "digits-cnn")
        yield (
            f"training the demo's CNN on halves of digits: the same ({quick:,.0f} and {plain:,.0f} images/s)",
            f"{quick / plain:.2f}x",
            ">= 1x" if units == "with" else "",
        )
        yield from _reading(fast)
    finally:
        torch.set_num_threads(threads)


def _rates(dataset: ArrayDataset, architecture: str, **training: int) -> tuple[float, float]:
    """Images/s of float32, contiguous, and of bfloat16 as it is trained by default where there are units for it."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(ROUNDS + 1):
        for bfloat16, measured in rates.items():
            settings = TrainingConfig(epochs=1, batch=BATCH, mixed_precision=bfloat16, **training)
            if bfloat16:
                measured.append(_rate(dataset, architecture, {}, settings))
                continue
            with patch.object(loop, "_memory_format", lambda *_: torch.contiguous_format):
                measured.append(_rate(dataset, architecture, {}, settings))
    return statistics.median(rates[False][1:]), statistics.median(rates[True][1:])


def _rate(
    dataset: ArrayDataset, architecture: str, arguments: Mapping[str, JsonValue], training: TrainingConfig
) -> float:
    channels, height, width = dataset.image_shape
    partition = make_partition("checkerboard", height, width, "packed")
    module = build_module(architecture, arguments, partition.layout_shape(0, channels), 10)
    started = time.process_time()
    train_network(module, in_memory_if_small(dataset), partition, [0], 0.35, training)
    return len(dataset) / (time.process_time() - started)


def _reading(trained: float) -> Iterator[tuple[str, str, str]]:
    """Random batches of a packed data set of JPEGs: as it lies, in the first epoch of a training, and later."""
    with tempfile.TemporaryDirectory(prefix="drs-ray-epochs-") as directory:
        dataset = _packed_jpegs(Path(directory))
        order = np.random.default_rng(0).permutation(JPEGS).tolist()
        batches = [order[first : first + BATCH] for first in range(0, JPEGS, BATCH)]
        held = in_memory_if_small(dataset)
        for what, source, asked, aim in (
            ("as they lie", dataset, batches[:RANDOM_BATCHES], ""),
            ("in a training's first epoch, decoded once and held in memory", held, batches, ">= 1x"),
            ("in its later epochs", held, batches, ">= 20x"),
        ):
            started = time.process_time()
            read = sum(len(labels) for _, labels in read_batches(source, asked, 0))
            rate = read / (time.process_time() - started)
            yield (
                f"packed JPEGs of 32x32 in random batches, {what}: images read against ResNet-20 halves trained "
                f"({rate:,.0f} and {trained:,.0f} images/s)",
                f"{rate / trained:.2f}x",
                aim,
            )


def _colour(count: int) -> ArrayDataset:
    """Colour images, smooth as photographs are: coarse noise, made larger."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    pixels = coarse.repeat(4, axis=2).repeat(4, axis=3)
    return ArrayDataset("coarse", "train", 10, pixels, random.integers(0, 10, count))


def _packed_jpegs(directory: Path) -> Dataset:
    folder = directory / "images" / "train" / "0"
    folder.mkdir(parents=True)
    for index, pixels in enumerate(_colour(JPEGS).pixels):
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(file, "jpeg", quality=75)
        (folder / f"{index:05d}.jpg").write_bytes(file.getvalue())
    source = load_dataset("folder", directory / "images", "train")
    pack_dataset(source, None, LocalStore(directory / "packed"), lambda done: None)
    return load_dataset("parquet", directory / "packed", "train")
