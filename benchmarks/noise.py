"""Integer noise beside Gaussian noise, per noisy sample, and its share of a ResNet-20 vote."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import torch

from benchmarks.models import resnet20
from drs_ray.engine.certify import DEFAULT_BATCH
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.laws import NoiseLaw, make_law
from drs_ray.smoothing.noise import keyed_batches
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler, count_votes

CPU = torch.device("cpu")
SIGMAS = (0.25, 0.5, 1.0)
CLASSES = 10
SAMPLES = 4000
BATCH = DEFAULT_BATCH["cpu"]
ROUNDS = 7
KEY = NoiseKey(0, 0, 0, "estimation")


def measure() -> Iterator[tuple[str, str, str]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker with one CPU
    image = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0)) / 255.0
    for sigma in SIGMAS:
        gaussian, lattice = make_law("gaussian", sigma, CPU), make_law("lattice", sigma, CPU)
        times = [(_noise_seconds(gaussian, image), _noise_seconds(lattice, image)) for _ in range(ROUNDS)]
        ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
        yield (
            f"noisy copies of a 3x32x32 image, sigma {sigma}, 1 thread: lattice ({1e6 * theirs / SAMPLES:.0f} us a "
            f"sample) against gaussian ({1e6 * ours / SAMPLES:.0f} us)",
            f"{statistics.median(b / a for a, b in times):.2f}x",
            "<= 1.5x",
        )
    yield _share(image)
    torch.set_num_threads(threads)


def _noise_seconds(law: NoiseLaw, image: torch.Tensor) -> float:
    started = time.perf_counter()
    values = law.prepare(image.flatten(1), KEY)
    shape = (3, 32 * 32)
    for drawn in keyed_batches(
        law.distribution, KEY, 0, SAMPLES, values_shape=shape, block=1000, batch=BATCH, device=CPU
    ):
        law.add(values, drawn)
    return time.perf_counter() - started


def _share(image: torch.Tensor) -> tuple[str, str, str]:
    model = resnet20((3, 32, 32), CLASSES).to(memory_format=torch.channels_last)
    sampler = Sampler(make_partition("none", 32, 32, "packed"), 0.5, 1000, BATCH, CPU, "lattice")
    shares = []
    for _ in range(3):
        noise = _noise_seconds(sampler.noise, image)
        started = time.perf_counter()
        count_votes(model, image, sampler, KEY, 0, SAMPLES // 2, CLASSES)
        shares.append(noise / 2 / (time.perf_counter() - started))
    return (
        "share of lattice noise in a ResNet-20 vote, 3x32x32, sigma 0.5, 1 thread",
        f"{100 * statistics.median(shares):.1f} %",
        "<= 5 %",
    )
