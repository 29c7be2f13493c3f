"""Packing and reading images at scale: peak memory at two numbers of images, and units on S3 beside units in memory."""

from __future__ import annotations

import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.models import write_images
from drs_ray.config import parse_config
from drs_ray.counts.plan import Draw, Unit
from drs_ray.data.datasets import load_dataset
from drs_ray.data.packing import pack_dataset
from drs_ray.engine.description import describe_run
from drs_ray.engine.observer import Observer
from drs_ray.engine.unit_runner import UnitRunner
from drs_ray.storage import open_store
from tests.servers import BUCKET, seaweed_server

SMALL, LARGE, SIZE = 500, 5000, 224
DISTINCT = 50  # images that are different; the others are links to them, to spare disk and time
ROUNDS, IMAGES_PER_UNIT, SAMPLES, MNIST_IMAGES = 3, 8, 500, 10_000  # units of 10 s, shorter than usual

PEAK = """
import sys, time
from pathlib import Path
from drs_ray.data.datasets import load_dataset
from drs_ray.data.packing import pack_dataset
from drs_ray.storage import LocalStore
what, directory, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
started = time.perf_counter()
if what == "pack":
    source = load_dataset("folder", directory / "images")
    pack_dataset(source, None, LocalStore(directory / "packed"), lambda done: None)
else:
    dataset = load_dataset("parquet", directory / "packed")
    for image_id in range(count // 2, count // 2 + 64):
        dataset.image(image_id)
# Not getrusage: its maximum begins with that of the process that started this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 1024, time.perf_counter() - started)
"""


def measure() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory(prefix="drs-ray-data-") as directory:
        places = [_images(Path(directory, str(count)), count) for count in (SMALL, LARGE)]
        for what, told in (("pack", "packing"), ("read", "reading a unit of 64 of")):
            (small, _), (large, seconds) = (_peak(what, place, int(place.name)) for place in places)
            yield (
                f"peak memory of {told} {LARGE:,} images of {SIZE}x{SIZE} against {SMALL:,} "
                f"({large:.0f} and {small:.0f} MiB)",
                f"{large / small:.2f}x",
                "1.0x",
            )
            if what == "pack":
                yield f"packing PNG images of {SIZE}x{SIZE} into a directory", f"{LARGE / seconds:,.0f} images/s", ""
    memory, s3 = _unit_seconds()
    yield (
        f"a unit of {IMAGES_PER_UNIT} images x {SAMPLES:,} samples, ResNet-20: data on S3 against data in memory "
        f"({s3:.2f} and {memory:.2f} s)",
        f"{s3 / memory:.3f}x",
        "<= 1.05x",
    )


def _images(place: Path, count: int) -> Path:
    """An image folder of PNG noise, which is larger than photographs are."""
    write_images(place / "images", DISTINCT, classes=2, size=SIZE)
    for index in range(DISTINCT, count):
        folder = place / "images" / "test" / str(index % 2)
        os.link(folder / f"{index % DISTINCT}.png", folder / f"{index}.png")
    return place


def _peak(what: str, place: Path, count: int) -> tuple[float, float]:
    """MiB and seconds."""
    command = [sys.executable, "-c", PEAK, what, str(place), str(count)]
    mib, seconds = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return float(mib), float(seconds)


def _unit_seconds() -> tuple[float, float]:
    """Median seconds of a unit in turns: in memory, on S3. Each unit's images are in a row group not read before."""
    with tempfile.TemporaryDirectory(prefix="drs-ray-data-") as directory, seaweed_server() as server:
        _write_mnist(Path(directory))
        with patch.dict(os.environ, server.environment):
            place = f"s3://{BUCKET}/mnist"
            pack_dataset(load_dataset("mnist", directory), None, open_store(place), lambda done: None)
            memory, s3 = _runner("mnist", directory), _runner("parquet", place)
            seconds: dict[UnitRunner, list[float]] = {memory: [], s3: []}
            for round_ in range(ROUNDS + 1):
                first = round_ * (MNIST_IMAGES // (ROUNDS + 1))
                unit = Unit(
                    0, (first, first + IMAGES_PER_UNIT - 1), tuple(range(first, first + IMAGES_PER_UNIT)), _DRAWS
                )
                for runner, spent in seconds.items():
                    started = time.perf_counter()
                    list(runner.count(unit))
                    spent.append(time.perf_counter() - started)
            # The first round warms up the network, and the connection.
            return statistics.median(seconds[memory][1:]), statistics.median(seconds[s3][1:])


_DRAWS = (Draw("estimation", 0, 0, SAMPLES),)


def _runner(name: str, root: str) -> UnitRunner:
    data: dict[str, Any] = {
        "dataset": {"name": name, "root": root},
        "partition": {"name": "none"},
        "classifiers": [{"architecture": "benchmarks.models:resnet20", "sigma": 0.5}],
        "budget": {"selection": 100, "estimation": SAMPLES},
        "engine": {"device": "cpu", "batch": 125, "images_per_unit": IMAGES_PER_UNIT},
        "output": "unused",
    }
    return UnitRunner(describe_run(parse_config(data), Observer()), 0)


def _write_mnist(root: Path) -> None:
    """Noise in the format of MNIST: a packed row group of 1 MiB has some 1,200 such images."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (MNIST_IMAGES, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, *pixels.shape) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(pixels)) + bytes(len(pixels)))
