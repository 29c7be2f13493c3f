"""Lattice noise beside Gaussian noise (numpy's Philox normals), drawn and as noisy copies, and its share of a vote."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch

from benchmarks.models import resnet20
from drs_ray.config import DEFAULT_BATCH
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.laws import NoiseLaw, make_law
from drs_ray.smoothing.noise import keyed_batches
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler, count_votes

CPU = torch.device("cpu")
SIGMAS = (0.25, 0.5, 1.0)
CLASSES = 10
SAMPLES = 4000
SHAPE = (3, 32 * 32)
BATCH = DEFAULT_BATCH["cpu"]
ROUNDS = 7
KEY = NoiseKey(0, 0, 0, "estimation")


def measure() -> Iterator[tuple[str, str, str]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker with one CPU
    image = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0)) / 255.0
    for sigma in SIGMAS:
        laws = make_law("lattice", sigma, CPU), make_law("gaussian", sigma, CPU)
        for what, copies in (("numbers alone", False), ("noisy copies of a 3x32x32 image", True)):
            rates = [[_rate(law, image, copies) for law in laws] for _ in range(ROUNDS)]
            lattice, gaussian = (statistics.median(column) for column in zip(*rates, strict=True))
            yield (
                f"lattice noise, sigma {sigma}, 1 thread, {what}: {lattice / 1e6:.0f} M values/s, against gaussian "
                f"(Philox normals): {gaussian / 1e6:.0f} M",
                f"{statistics.median(ours / theirs for ours, theirs in rates):.2f}x",
                ">= 3x",
            )
    yield _share(image)
    torch.set_num_threads(threads)


def _rate(law: NoiseLaw, image: torch.Tensor, copies: bool) -> float:
    """Values per second."""
    started = time.perf_counter()
    values = law.prepare(image.flatten(1), KEY)
    for drawn in keyed_batches(
        law.distribution, KEY, 0, SAMPLES, values_shape=SHAPE, block=1000, batch=BATCH, device=CPU
    ):
        if copies:
            law.add(values, drawn)
    return SAMPLES * image.numel() / (time.perf_counter() - started)


def _share(image: torch.Tensor) -> tuple[str, str, str]:
    model = resnet20((3, 32, 32), CLASSES).to(memory_format=torch.channels_last)
    sampler = Sampler(make_partition("none", 32, 32, "packed"), 0.5, 1000, BATCH, CPU)
    shares = []
    for _ in range(3):
        noise = SAMPLES / 2 * image.numel() / _rate(sampler.noise, image, True)
        started = time.perf_counter()
        count_votes(model, image, sampler, KEY, 0, SAMPLES // 2, CLASSES)
        shares.append(noise / (time.perf_counter() - started))
    return (
        "share of lattice noise in a ResNet-20 vote, 3x32x32, sigma 0.5, 1 thread",
        f"{100 * statistics.median(shares):.1f} %",
        "<= 5 %",
    )
