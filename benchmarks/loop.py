"""Packed DRS votes beside a plain Cohen-style loop: one image at a time, masked full-size halves, Python counting."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.models import default_precision, resnet20, voting
from drs_ray.config import DEFAULT_BATCH, Precision
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler, count_votes

SIGMA = 0.36
CLASSES = 10
PAIRS = 2000
ROUNDS = 3
LOOP_BATCHES = (64, 128, 256, 1000)


def measure() -> Iterator[tuple[str, str, str]]:
    image = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0)) / 255.0
    ours = {
        "float32": _drs_ray(image, "float32", False),
        default_precision(): _drs_ray(image, default_precision(), False),
        f"{default_precision()}, compiled": _drs_ray(image, default_precision(), True),
    }
    contestants = ours | {f"loop at {batch}": plain_loop(image, batch) for batch in LOOP_BATCHES}
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run(PAIRS)  # warm up
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            started = time.perf_counter()
            run(PAIRS)
            speeds[name].append(PAIRS / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    usual = f"loop at {LOOP_BATCHES[-1]}"
    best = max((name for name in medians if name not in ours), key=lambda name: medians[name])
    for name in ours:
        who = f"{name}, {medians[name]:,.0f} pairs/s"
        what = f"packed DRS, ResNet-20, {torch.get_num_threads()} threads, {who}, against the"
        aims = (">= 20x with AMX", ">= 8x with AMX") if name.endswith("compiled") else ("report", "report")
        yield f"{what} {usual} ({medians[usual]:,.0f})", f"{medians[name] / medians[usual]:.2f}x", aims[0]
        yield f"{what} {best}, its best ({medians[best]:,.0f})", f"{medians[name] / medians[best]:.2f}x", aims[1]


def _drs_ray(image: Tensor, precision: Precision, compile: bool) -> Callable[[int], None]:
    partition = make_partition("checkerboard", 32, 32, "packed")
    shapes = [partition.layout_shape(k, 3) for k in range(2)]
    batch = DEFAULT_BATCH["cpu"]
    classifiers = [voting(resnet20(shape, CLASSES), shape, batch, precision, compile) for shape in shapes]
    sampler = Sampler(partition, SIGMA, 1000, batch, torch.device("cpu"), "lattice")

    def run(pairs: int) -> None:
        for k in range(2):
            key = NoiseKey(0, 0, k, "estimation")
            count_votes(classifiers[k], image, sampler, key, 0, pairs, CLASSES)

    return run


def plain_loop(image: Tensor, batch: int) -> Callable[[int], None]:
    """Counts votes of so many pairs of samples as published code does."""
    channels, height, width = image.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    masks = [((rows + columns) % 2 == k).float() for k in range(2)]
    classifiers: list[nn.Module] = [resnet20((channels, height, width), CLASSES) for _ in range(2)]

    @torch.no_grad()
    def run(pairs: int) -> None:
        counts = [[0] * CLASSES for _ in range(2)]
        left = pairs
        while left:
            size = min(batch, left)
            left -= size
            copies = image.repeat(size, 1, 1, 1)
            noisy = copies + torch.randn_like(copies) * SIGMA
            for k in range(2):
                for winner in classifiers[k](noisy * masks[k]).argmax(1).numpy():
                    counts[k][winner] += 1

    return run
