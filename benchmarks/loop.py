"""Packed DRS votes beside a plain Cohen-style loop: one image at a time, masked full-size halves, Python counting."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.models import resnet20
from drs_ray.engine.certify import DEFAULT_BATCH
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
    contestants: dict[str, Callable[[], None]] = {"drs-ray": _drs_ray(image)}
    contestants |= {f"loop at {batch}": _loop(image, batch) for batch in LOOP_BATCHES}
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run()  # warm up
    for _ in range(ROUNDS):
        for name, run in contestants.items():
            started = time.perf_counter()
            run()
            speeds[name].append(PAIRS / (time.perf_counter() - started))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    ours = medians.pop("drs-ray")
    best = max(medians, key=lambda name: medians[name])
    usual = f"loop at {LOOP_BATCHES[-1]}"
    what = f"packed DRS, ResNet-20, {torch.get_num_threads()} threads, {ours:,.0f} pairs/s, against the"
    yield f"{what} {usual} ({medians[usual]:,.0f})", f"{ours / medians[usual]:.2f}x", ">= 4x"
    yield f"{what} {best}, its best ({medians[best]:,.0f})", f"{ours / medians[best]:.2f}x", ">= 2x"


def _drs_ray(image: Tensor) -> Callable[[], None]:
    partition = make_partition("checkerboard", 32, 32, "packed")
    classifiers = [
        resnet20(partition.layout_shape(k, 3), CLASSES).to(memory_format=torch.channels_last) for k in range(2)
    ]
    sampler = Sampler(partition, SIGMA, 1000, DEFAULT_BATCH["cpu"], torch.device("cpu"))

    def run() -> None:
        for k in range(2):
            key = NoiseKey(0, 0, k, "estimation")
            count_votes(classifiers[k], image, sampler, key, 0, PAIRS, CLASSES)

    return run


def _loop(image: Tensor, batch: int) -> Callable[[], None]:
    rows, columns = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    masks = [((rows + columns) % 2 == k).float() for k in range(2)]
    classifiers: list[nn.Module] = [resnet20((3, 32, 32), CLASSES) for _ in range(2)]

    @torch.no_grad()
    def run() -> None:
        counts = [[0] * CLASSES for _ in range(2)]
        left = PAIRS
        while left:
            size = min(batch, left)
            left -= size
            copies = image.repeat(size, 1, 1, 1)
            noisy = copies + torch.randn_like(copies) * SIGMA
            for k in range(2):
                for winner in classifiers[k](noisy * masks[k]).argmax(1).numpy():
                    counts[k][winner] += 1

    return run
