"""The headline: time to one certified-accuracy curve, beside a plain loop with the paper's rule made sound.

Ours: an adaptive run of ResNet-20 halves, trained on mnist5k, with the default rules. The loop: all samples of every
image at batch 1000, alpha in halves, p_A alone. The loop would take hours: its time is its measured speed on 2,000
pairs times the pairs that it needs. Its curve is computed from all votes of the same images, counted by drs-ray.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loop import plain_loop
from benchmarks.models import trained_config
from drs_ray import certify
from drs_ray.data.datasets import load_dataset

IMAGES = 4
ESTIMATION = 102_400
STAGES = 11
RADII = tuple(i / 4 for i in range(13))
SLICE = 2000


def measure() -> Iterator[tuple[str, str, str]]:
    image = torch.from_numpy(load_dataset("mnist5k").image(0))
    loop = plain_loop(image, 1000)
    loop(SLICE)
    with tempfile.TemporaryDirectory() as folder:
        _run(Path(folder), "warm-up", 1, 1000, {})  # trains, once
        started = time.perf_counter()
        ours = _run(Path(folder), "adaptive", STAGES, ESTIMATION, {"radii": RADII})
        seconds = time.perf_counter() - started
        started = time.perf_counter()
        loop(SLICE)
        a_pair = (time.perf_counter() - started) / SLICE
        loops = IMAGES * (100 + ESTIMATION) * a_pair
        plain = {"radii": RADII, "rivals": False, "confidence": "bonferroni", "pooled": False}
        theirs = _run(Path(folder), "whole", 1, ESTIMATION, plain)
    curves = [
        np.array([(run.certificates["correct"].to_numpy() & (run.radius >= radius)).mean() for radius in RADII])
        for run in (ours, theirs)
    ]
    threads = torch.get_num_threads()
    lower = int((curves[0] < curves[1]).sum())
    yield (
        f"{IMAGES} images to the curve at {len(RADII)} radii, n = {ESTIMATION:,}, ResNet-20 halves of 28x28, "
        f"{threads} threads: drs-ray ({ours.record.arithmetic}, {ours.samples:,} samples, {seconds:.0f} s) "
        f"against the plain loop at batch 1000 ({loops:,.0f} s, extrapolated from {SLICE:,} pairs)",
        f"{loops / seconds:.0f}x",
        ">= 100x with AMX",
    )
    yield (
        f"radii of that curve where the certified accuracy is below the loop's, from all {theirs.samples:,} samples "
        f"(sum over the radii {curves[0].sum():.3f} and {curves[1].sum():.3f})",
        f"{lower} of {len(RADII)}",
        "0",
    )


def _run(folder: Path, name: str, stages: int, estimation: int, certificate: dict[str, Any]) -> Any:
    return certify(
        trained_config(
            folder,
            "resnet20",
            dataset={"name": "mnist5k", "images": {"stop": IMAGES}},
            budget={"estimation": estimation, "stages": stages},
            engine={"address": "inline", "device": "cpu", "cpus_per_worker": torch.get_num_threads()},
            certificate=certificate,
            output=str(folder / name),
        )
    )
