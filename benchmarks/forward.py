"""What folding, bfloat16 and torch.compile gain for a forward pass, and the forward batch that is fastest."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.models import default_precision, digits_cnn, resnet20, resnet50, resnet110, voting
from drs_ray.config import DEFAULT_BATCH
from drs_ray.models.precision import has_bfloat16

Shape = tuple[int, int, int]

NETWORKS = {
    "ResNet-20, 3x32x16": (resnet20, (3, 32, 16), 125),
    "ResNet-110, 3x32x16": (resnet110, (3, 32, 16), 125),
    "ResNet-50, 3x224x112": (resnet50, (3, 224, 112), 16),
    "the demo's CNN, 1x28x14": (digits_cnn, (1, 28, 14), 125),
}
BATCHES = (32, 64, 125, 250, 500, 1000)
ROUNDS = 3
SECONDS = 1.0
CLASSES = 10


def measure() -> Iterator[tuple[str, str, str]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker with one CPU
    for name, (build, shape, batch) in NETWORKS.items():
        network = build(shape, CLASSES)
        contestants = {
            "folded": voting(network, shape, batch, "float32", False),
            "folded, bfloat16": voting(network, shape, batch, "bfloat16", False),
            "folded, bfloat16, compiled": voting(network, shape, batch, "bfloat16", True),
        }
        eager = network.to(memory_format=torch.channels_last if shape[0] > 1 else torch.contiguous_format)
        rates: dict[str, list[float]] = {way: [] for way in ("eager", *contestants)}
        for _ in range(ROUNDS):
            for way, module in {"eager": eager, **contestants}.items():
                rates[way].append(_rate(module, shape, batch))
        medians = {way: statistics.median(values) for way, values in rates.items()}
        base = medians.pop("eager")
        for way, rate in medians.items():
            yield (
                f"{name}, batch {batch}, 1 thread: {way} ({rate:,.0f} samples/s) against eager float32 ({base:,.0f})",
                f"{rate / base:.2f}x",
                ">= 1x" if way == "folded" or has_bfloat16("cpu") else "report",
            )
    for name in ("ResNet-20, 3x32x16", "the demo's CNN, 1x28x14"):
        yield _best_batch(name)
    yield _unshuffled()
    torch.set_num_threads(threads)


def _best_batch(name: str) -> tuple[str, str, str]:
    """How near the default forward batch is to the best one, for what votes by default."""
    build, shape, _ = NETWORKS[name]
    precision = default_precision()
    make = partial(voting, build(shape, CLASSES), shape, precision=precision, compile=False)
    modules = {batch: make(batch=batch) for batch in BATCHES}
    rates: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for _ in range(ROUNDS):
        for batch, module in modules.items():
            rates[batch].append(_rate(module, shape, batch))
    medians = {batch: statistics.median(values) for batch, values in rates.items()}
    best = max(medians, key=medians.__getitem__)
    every = ", ".join(f"{batch}: {rate:,.0f}" for batch, rate in medians.items())
    chosen = DEFAULT_BATCH["cpu"]
    return (
        f"{name}, {precision}, samples/s by batch ({every}): the default, {chosen}, against the best, {best}",
        f"{medians[chosen] / medians[best]:.2f}x",
        ">= 0.9x",
    )


def _unshuffled() -> tuple[str, str, str]:
    """How much cheaper votes are if squares of 2x2 pixels are stacked before the first convolution."""
    shape, batch, precision = (3, 32, 32), DEFAULT_BATCH["cpu"], default_precision()
    modules = [voting(resnet20(shape, CLASSES, side), shape, batch, precision, True) for side in (1, 2)]
    rates = [[_rate(module, shape, batch) for module in modules] for _ in range(ROUNDS)]
    plain, cheap = (statistics.median(each) for each in zip(*rates, strict=True))
    return (
        f"ResNet-20, 3x32x32, {precision}, compiled, 1 thread: `unshuffle: 2` ({cheap:,.0f} samples/s) against 1 "
        f"({plain:,.0f})",
        f"{cheap / plain:.2f}x",
        ">= 2.5x",
    )


@torch.inference_mode()
def _rate(module: nn.Module, shape: Shape, batch: int) -> float:
    inputs = torch.rand(batch, *shape).contiguous(memory_format=torch.channels_last)
    module(inputs)
    started, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < SECONDS:
        module(inputs)
        done += batch
    return done / passed
