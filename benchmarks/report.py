"""The report of RS beside DRS over 50,000 images, from their stored counts, with pictures: seconds, memory, size.

`python -m benchmarks.report RUN ... --output PLACE` is `drs-ray report`, and prints the CPU time and memory it took.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.special import softmax

from benchmarks.records import record_of
from drs_ray.config import parse_config
from drs_ray.counts.encoding import CountsRow, encode_part
from drs_ray.counts.plan import Unit, plan_units
from drs_ray.counts.run_record import DatasetRecord, RunRecord, create_or_join
from drs_ray.data.arrays import ArrayDataset
from drs_ray.data.datasets import load_dataset
from drs_ray.data.packing import pack_dataset
from drs_ray.results.reduce import reduce_run
from drs_ray.storage import LocalStore, open_store

IMAGES, CLASSES, SIZE, SAMPLES, IMAGES_PER_UNIT = 50_000, 10, 32, 100_000, 100


def measure() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory(prefix="drs-ray-report-") as directory:
        places = [stored_run(Path(directory), name, IMAGES) for name in ("none", "checkerboard")]
        command = [sys.executable, "-m", __name__, *map(str, places), "--output", directory]
        started = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - started
        size = (Path(directory) / "report.html").stat().st_size
        cpu, peak = map(float, done.stdout.split()[-2:])
        yield (
            f"report of RS beside DRS, {IMAGES:,} images, n = {SAMPLES:,}, {3 * IMAGES // IMAGES_PER_UNIT:,} parts",
            f"{seconds:.0f} s ({cpu:.0f} s of CPU), {peak:.2f} GiB, {size / 1e6:.1f} MB",
            "< 60 s, < 2 GiB, < 10 MB",
        )


def stored_run(directory: Path, partition: str, images: int) -> Path:
    """A reduced run whose images are packed beside it."""
    place, packed = directory / partition, directory / "packed"
    if not packed.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (images, 3, SIZE, SIZE), np.uint8)  # noise: the largest PNGs
        source = ArrayDataset("noise", "test", CLASSES, pixels, np.arange(images) % CLASSES)
        pack_dataset(source, None, LocalStore(packed), lambda done: None)
    record = _record(place, packed, partition, images)
    store = open_store(str(place))
    create_or_join(store, record)
    rng = np.random.default_rng(1)
    logits = 3 * rng.standard_normal((images, CLASSES))
    logits[np.arange(images), np.arange(images) % CLASSES] += 6
    for unit in plan_units(record):
        shares = softmax(logits[list(unit.positions)] + rng.standard_normal((len(unit.positions), CLASSES)), axis=1)
        store.put(unit.key, encode_part(_rows(unit, shares, rng), record.run_id, unit.key))
    reduce_run(store, record, record.config.certificate)
    return place


def _rows(unit: Unit, shares: np.ndarray, rng: np.random.Generator) -> Iterator[CountsRow]:
    for draw in unit.draws:
        votes = rng.multinomial(draw.samples, shares)
        for image_id, mine in zip(unit.positions, votes, strict=True):
            label = image_id % CLASSES
            yield CountsRow(
                image_id, label, unit.sub_image, draw.phase, draw.stage, draw.first_sample, draw.samples, mine
            )


def _record(place: Path, packed: Path, partition: str, images: int) -> RunRecord:
    sub_images = 1 if partition == "none" else 2
    classifier = {"architecture": "resnet20", "checkpoint": "x.safetensors", "sigma": 0.5 / sub_images**0.5}
    config = parse_config(
        {
            "dataset": {"name": "parquet", "root": str(packed)},
            "partition": {"name": partition},
            "classifiers": [classifier] * sub_images,
            "budget": {"selection": 100, "estimation": SAMPLES},
            "engine": {"batch": 1000, "device": "cpu", "images_per_unit": IMAGES_PER_UNIT},
            "output": str(place),
        }
    )
    source = load_dataset("parquet", packed)
    dataset = DatasetRecord(
        name=source.name, digest=source.digest, num_classes=CLASSES, image_shape=(3, SIZE, SIZE), size=images
    )
    return record_of(config, dataset, images)


def _report(arguments: list[str]) -> None:
    from drs_ray.cli import app

    app(["report", *arguments], standalone_mode=False)
    # Not getrusage: its maximum begins with that of the process that started this one.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(time.process_time(), int(status["VmHWM"].split()[0]) / 2**20)


if __name__ == "__main__":
    _report(sys.argv[1:])
