"""A reduced run of a million images: reading it, its curve, and what leaves drs-ray; importing its log again.

All in a process of its own, so that the peak memory is its own; the run is made before. `python -m benchmarks.export
IMAGES` runs it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.records import make_record
from drs_ray.certificates.rule import Rule
from drs_ray.counts.schema import CERTIFICATES, CERTIFICATES_KEY, CURVE_KEY, RUN_KEY, with_metadata
from drs_ray.published.imported_run import import_log, read_reported_run
from drs_ray.report.export import export
from drs_ray.report.figure import certified_accuracy_figure, figure_bytes
from drs_ray.results.tables import curve_table, parquet_bytes, table_of
from drs_ray.storage import Store, open_store

IMAGES = 1_000_000
SAMPLES = 100_000
SIGMA = 0.36
ALPHA = 0.001
RULE = Rule("probit", "staircase", rivals=True, pooled=True)
RADII = [0.25 * step for step in range(9)]


def measure() -> Iterator[tuple[str, str, str]]:
    command = [sys.executable, "-m", __name__, str(IMAGES)]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    for line in found:
        what, measured, aim = line.split("|")
        yield what, measured, aim


def _all(images: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store, log = open_store(f"{directory}/run"), open_store(f"{directory}/log")
        _write(store, images)
        before = _peak_gib()

        def row(what: str, job: Callable[[], Any], aim: str) -> Any:
            started = time.perf_counter()
            found = job()
            print(f"{what}, {images:,} images", f"{time.perf_counter() - started:.1f} s", aim, sep="|")
            return found

        run = row("read a reduced run", lambda: read_reported_run(store), "seconds")
        row("its curve", lambda: curve_table(run.certificates, "x", RADII, ALPHA, RULE.name), "seconds")
        row("its figure, SVG", lambda: figure_bytes(certified_accuracy_figure([run]), "svg"), "seconds")
        row("export as markdown", lambda: export([run], "markdown"), "seconds")
        text = row("export as tsv", lambda: export([run], "tsv"), "seconds")
        row("export as csv", lambda: export([run], "csv"), "seconds")
        stated: dict[str, Any] = {"dataset": "mnist5k", "sigmas": [SIGMA] * 2, "estimation": SAMPLES}
        row("import the tsv", lambda: import_log(log, text.encode(), "log.tsv", **stated), "")
        print("export: peak memory", f"{_peak_gib():.2f} GiB, {before:.2f} GiB to make the run", "", sep="|")


def _write(store: Store, images: int) -> None:
    """Certificates such as reduce writes, with random numbers: half of the images at most are easy."""
    rng = np.random.default_rng(0)
    label = rng.integers(10, size=images)
    radius = np.maximum(rng.normal(0.6, 0.7, images), 0.0)
    prediction = np.where(radius > 0, np.where(rng.random(images) < 0.9, label, (label + 1) % 10), -1)
    pair = rng.random((images, 2))
    votes = (pair * SAMPLES).astype(np.int64)
    columns = {
        "image_id": np.arange(images),
        "label": label,
        "prediction": prediction,
        "correct": prediction == label,
        "radius": radius,
        "selected_class": label,
        "stage": np.zeros(images),
        "runner_up": (label + 1) % 10,
        "samples": np.full(images, 2 * (SAMPLES + 100)),
        "estimation_samples": np.full((images, 2), SAMPLES),
        "class_votes": votes,
        "runner_up_votes": SAMPLES - votes,
        "p_lower": pair,
        "rival_upper": 1 - pair,
        "margin": pair - 0.5,
        "rule": np.full(images, RULE.name_of_boxes, object),
        "alpha": np.full(images, ALPHA),
    }
    record = make_record(images, sigma=SIGMA, budget={"selection": 100, "estimation": SAMPLES})
    certificates = table_of(columns, with_metadata(CERTIFICATES, record.run_id, table="certificates", rule=RULE.name))
    store.put(RUN_KEY, record.model_dump_json().encode())
    store.put(CERTIFICATES_KEY, parquet_bytes(certificates))
    store.put(CURVE_KEY, parquet_bytes(curve_table(certificates, record.run_id, RADII, ALPHA, RULE.name)))


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    _all(int(sys.argv[1]))
