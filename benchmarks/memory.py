"""Peak memory of a worker at two budgets: it must not grow with the number of samples."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

PEAK = """
import resource, sys, torch
from benchmarks.models import resnet20
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler, count_votes
partition = make_partition("none", 32, 32, "packed")
sampler = Sampler(partition, 0.5, 1000, 125, torch.device("cpu"))
model = resnet20((3, 32, 32), 10).to(memory_format=torch.channels_last)
count_votes(model, torch.rand(3, 32, 32).round(), sampler, NoiseKey(0, 0, 0, "estimation"), 0, int(sys.argv[1]), 10)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
SMALL, LARGE = 1_000, 20_000


def measure() -> Iterator[tuple[str, str, str]]:
    small, large = (_peak(samples) for samples in (SMALL, LARGE))
    yield (
        f"peak memory of ResNet-20 votes, n = {LARGE:,} against n = {SMALL:,} ({large:.0f} and {small:.0f} MiB)",
        f"{large / small:.3f}x",
        "1.0x",
    )


def _peak(samples: int) -> float:
    command = [sys.executable, "-c", PEAK, str(samples)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
