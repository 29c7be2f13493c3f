"""The worker path end to end (Ray, data, noise, votes, Parquet) beside the bare forward pass of the same classifier."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from benchmarks.models import default_precision, write_images
from drs_ray import certify
from drs_ray.config import DEFAULT_BATCH, parse_config
from drs_ray.counts.plan import Unit
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Outcome

DEVICE: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDS = 3
IMAGES = 16
SECONDS = 4.0
NETWORKS = {
    "resnet20": (3, 32, "folder", 2000, True, ">= 92 %"),
    "digits_cnn": (1, 28, "mnist5k", 6000, False, ">= 75 %"),
}
"""Channels, size, data set, samples of an image, whether it is compiled, and the aim."""

BARE = """
import sys, time, torch
from benchmarks import models
from drs_ray.models.torch_state import fixed_kernels
torch.set_num_threads(1)
name, device, numbers = sys.argv[1], sys.argv[2], sys.argv[3:]
channels, size, batch, compile, seconds = *map(int, numbers[:4]), float(numbers[4])
shape = channels, size, size
network = getattr(models, name)(shape, 10)
model = models.voting(network, shape, batch, models.default_precision(device), bool(compile), device)
with torch.inference_mode(), fixed_kernels(device):
    x = torch.rand(batch, *shape, device=device).contiguous(memory_format=torch.channels_last)
    model(x).cpu()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        for _ in range(4):
            logits = model(x)
        logits.amax().cpu(); done += 4 * batch  # waits for a GPU, as a worker does once an image
print(done / (time.perf_counter() - started))
"""


class _Clock(Observer):
    """When each unit was done."""

    def __init__(self) -> None:
        self.done: list[tuple[float, int]] = []

    def unit_done(self, unit: Unit, outcome: Outcome) -> None:
        self.done.append((time.perf_counter(), unit.samples))

    def samples_per_second(self, workers: int) -> float:
        """Between the first and the last units' ends: starting, loading and an idle worker at the end are no part."""
        steady = self.done[2 * workers - 2 : len(self.done) - workers + 1]  # each worker has done some
        return sum(samples for _, samples in steady[1:]) / (steady[-1][0] - steady[0][0])


def measure() -> Iterator[tuple[str, str, str]]:
    for name, (channels, size, dataset, samples, compiled, aim) in NETWORKS.items():
        bare, path = [], []
        for _ in range(ROUNDS):
            bare.append(_bare(name, channels, size, compiled))
            path.append(_path(name, dataset, samples, compiled, workers=1))
        bare.append(_bare(name, channels, size, compiled))
        ratio = statistics.median(path) / statistics.median(bare)
        where = "1 thread" if DEVICE == "cpu" else torch.cuda.get_device_name()
        how = f"{default_precision(DEVICE)}{', compiled' if compiled else ''}, {where}, batch {DEFAULT_BATCH[DEVICE]}"
        yield (
            f"worker path, {name}, {how}: {statistics.median(path):,.0f} of "
            f"{statistics.median(bare):,.0f} samples/s bare",
            f"{100 * ratio:.0f} %",
            aim,
        )
    if DEVICE == "cuda":  # two workers would need two GPUs
        return
    _, _, dataset, samples, compiled, _ = NETWORKS["resnet20"]
    alone, both = [], []
    for _ in range(ROUNDS):
        alone.append(_path("resnet20", dataset, samples, compiled, workers=1))
        both.append(_path("resnet20", dataset, samples, compiled, workers=2))
    yield (
        "two workers of one thread on two cores against twice one, resnet20",
        f"{100 * statistics.median(both) / (2 * statistics.median(alone)):.0f} %",
        ">= 90 %",
    )


def _bare(name: str, channels: int, size: int, compiled: bool) -> float:
    numbers: Sequence[object] = (channels, size, DEFAULT_BATCH[DEVICE], int(compiled), SECONDS)
    command = [sys.executable, "-c", BARE, name, DEVICE, *map(str, numbers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _path(name: str, dataset: str, samples: int, compiled: bool, workers: int) -> float:
    with tempfile.TemporaryDirectory(prefix="drs-") as directory:
        root = Path(directory)
        if dataset == "folder":
            write_images(root / "images", IMAGES)
        config = parse_config(
            {
                "dataset": {"name": dataset, "images": {"stop": IMAGES}}
                | ({"root": str(root / "images")} if dataset == "folder" else {}),
                "partition": {"name": "none"},
                "classifiers": [{"architecture": f"benchmarks.models:{name}", "sigma": 0.5}],
                "budget": {"selection": 100, "estimation": samples},
                "engine": {"address": "local", "workers": workers, "images_per_unit": 1}
                | {"compile": compiled, "device": DEVICE},
                "output": str(root / "run"),
            }
        )
        clock = _Clock()
        certify(config, clock)
        return clock.samples_per_second(workers)
