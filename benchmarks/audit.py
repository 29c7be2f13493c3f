"""The audit of a run of 10,000 images in ball arithmetic, RS and DRS, from their stored counts: seconds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import drs_ray
from benchmarks.report import SAMPLES, stored_run

IMAGES = 10_000


def measure() -> Iterator[tuple[str, str, str]]:
    with tempfile.TemporaryDirectory(prefix="drs-ray-audit-") as directory:
        for partition in ("none", "checkerboard"):
            place = stored_run(Path(directory), partition, IMAGES)
            started = time.perf_counter()
            found = drs_ray.audit(str(place))
            seconds = time.perf_counter() - started
            found.check()
            yield f"audit of {IMAGES:,} images, n = {SAMPLES:,}, {found.rule}", f"{seconds:.0f} s", "< 600 s"
