"""Reading a run's counts at scale: small parts and compacted ones, listing, resuming and reducing.

The run has 20,000 parts in a directory, of blocks of 8 images that end after different stages; times are also given per
100,000 parts. Parts are made from a few templates, so that making them takes less than reading them.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.records import make_record
from drs_ray.counts.compaction import compact_run
from drs_ray.counts.encoding import CountsRow, encode_part
from drs_ray.counts.history import read_counts
from drs_ray.counts.parts import list_parts
from drs_ray.counts.plan import Unit, blocks, stage_units
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.results.reduce import reduce_run
from drs_ray.storage import open_store

PARTS = 20_000
PER_TWO_BLOCKS = 10  # parts: two sub-images of one block that ends at once, and of one that needs all four stages
IMAGES_PER_UNIT, STAGES, SAMPLES, CLASSES = 8, 4, 8000, 10
SHARES = (1.0, 0.0, 0.6)  # votes of an image that is certain, hopeless, or open to the end
_SCALE = 100_000


def measure() -> Iterator[tuple[str, str, str]]:
    directory = Path(tempfile.mkdtemp(prefix="drs-ray-parts-"))
    try:
        store = open_store(str(directory))
        record = make_record(
            PARTS // PER_TWO_BLOCKS * 2 * IMAGES_PER_UNIT,
            classes=CLASSES,
            noise={"block": 100},
            budget={"selection": 100, "estimation": SAMPLES, "stages": STAGES},
            certificate={"radii": [0.0, 0.1, 0.2]},
            engine={"batch": 100, "device": "cpu", "images_per_unit": IMAGES_PER_UNIT},
        )
        parts = _write(directory, record)

        def row(what: str, job: Callable[[], Any], aim: str = "") -> tuple[str, str, str]:
            started = time.perf_counter()
            job()
            seconds = time.perf_counter() - started
            return (
                what,
                f"{seconds / parts * _SCALE:.1f} s per {_SCALE:,} parts ({1000 * seconds / parts:.3f} ms each)",
                aim,
            )

        for how in ("small", "compacted"):
            aims = {"small": "< 40 s", "compacted": "< 10 s"}
            yield row(f"list {how} parts", lambda: list_parts(store, record), "< 5 s")
            yield row(
                f"resume an adaptive run of {how} parts", lambda: RemainingUnits(record, store).missing(), aims[how]
            )
            yield row(f"read all {how} parts", lambda: read_counts(store, record), aims[how])
            yield row(
                f"read and reduce {how} parts", lambda: reduce_run(store, record, record.config.certificate), aims[how]
            )
            if how == "small":
                yield row("compact", lambda: compact_run(store, record))
    finally:
        shutil.rmtree(directory)


def _write(directory: Path, record: RunRecord) -> int:
    """Every other block ends with the first stage; in the others one image goes on to the last. Returns how many."""
    parts = 0
    for number, block in enumerate(blocks(record)):
        for stage in range(STAGES if number % 2 else 1):
            positions = range(block[0], block[1] + 1) if stage == 0 else block[:1]
            for unit in stage_units(record, block, stage, positions):
                path = directory / unit.key
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encode_part(_rows(record, unit, number % 2 == 1), record.run_id, unit.key))
                parts += 1
    return parts


def _rows(record: RunRecord, unit: Unit, has_open: bool) -> Iterator[CountsRow]:
    for position in unit.positions:
        share = SHARES[2] if has_open and position == unit.block[0] else SHARES[position % 2]
        for draw in unit.draws:
            votes = np.zeros(CLASSES, np.int64)
            votes[0] = round(draw.samples * (0.9 if draw.phase == "selection" else share))
            votes[1] = draw.samples - votes[0]
            image_id = record.image_ids[position]
            yield CountsRow(image_id, 0, unit.sub_image, draw.phase, draw.stage, draw.first_sample, draw.samples, votes)
