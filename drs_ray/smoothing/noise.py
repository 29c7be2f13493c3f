"""Keyed random numbers: every block of samples is a pure function of its key.

A block is keyed by a hash of (run seed, data-set digest, image id, sub-image, phase, block number), not by `seed + i`,
so that neighbouring seeds and images share no noise. CPU streams are numpy's Philox (counter-based), drawn by batches.
CUDA streams are torch's 64-bit seeded Philox, drawn by blocks, because its values depend on the size of the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drs_ray.smoothing.keys import NoiseKey

_DRAW = 1 << 24  # values of one draw on CUDA: another size gives other noise; a draw takes memory beside its block


@dataclass(frozen=True)
class Distribution:
    """A distribution of random numbers, from numpy's generators and from torch's; the values of the two differ.

    open: from a block's 128-bit digest, a function that overwrites a contiguous CPU tensor of `dtype` with the block's
    next values, however they are cut. draw: a new tensor of a shape and `dtype`, on the generator's device.
    """

    dtype: torch.dtype
    open: Callable[[bytes], Callable[[Tensor], None]]
    draw: Callable[[tuple[int, ...], torch.Generator], Tensor]


def philox(digest: bytes, stream: int = 0) -> np.random.Philox:
    """The generator keyed by a block's digest; streams of one digest are 2**192 counts apart."""
    return np.random.Philox(key=np.frombuffer(digest, "<u8"), counter=[0, 0, 0, stream])


def keyed_batches(
    distribution: Distribution,
    key: NoiseKey,
    first_sample: int,
    samples: int,
    *,
    values_shape: tuple[int, int],
    block: int,
    batch: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Random numbers for samples [first_sample, first_sample + samples) in fixed slices of each block.

    Slices start at multiples of `batch` within their block of `block` samples, so the batches that a classifier sees
    depend only on the sample numbers. Memory: one batch on the CPU, one block on CUDA.

    Args:
        distribution: distribution of the numbers.
        key: key of the noise.
        first_sample: first sample number within the key's stream.
        samples: number of samples.
        values_shape: (C, d_k) of the sub-image's values.
        block: samples per keyed block.
        batch: most samples per slice.
        device: device on which the numbers are drawn and returned.

    Yields:
        [b, C, d_k] of the distribution's dtype, b <= batch. A yielded tensor may be overwritten once the next one is
        asked for.
    """
    end = first_sample + samples
    for number in range(first_sample // block, -(-end // block)):
        start = number * block
        wanted = max(first_sample - start, 0), min(end - start, block)
        digest = key.block_digest(number)
        if device.type == "cpu":
            yield from _numpy_slices(distribution, digest, wanted, values_shape, batch)
        else:
            yield from _torch_slices(distribution, digest, wanted, values_shape, block, batch, device)


def _slices(wanted: tuple[int, int], batch: int) -> Iterator[tuple[int, int, int]]:
    """(slice start, first wanted, end) of every slice of the block that has wanted samples."""
    low, high = wanted
    for start in range(low - low % batch, high, batch):
        yield start, max(start, low), min(start + batch, high)


def _numpy_slices(
    distribution: Distribution, digest: bytes, wanted: tuple[int, int], values_shape: tuple[int, int], batch: int
) -> Iterator[Tensor]:
    fill = distribution.open(digest)
    buffer = torch.empty((batch, *values_shape), dtype=distribution.dtype, device="cpu")
    drawn = 0
    while drawn < wanted[0]:  # the stream is sequential: values before the range are drawn and dropped
        count = min(batch, wanted[0] - drawn)
        fill(buffer[:count])
        drawn += count
    for _, first, end in _slices(wanted, batch):
        part = buffer[: end - first]
        fill(part)
        yield part


def _torch_slices(
    distribution: Distribution,
    digest: bytes,
    wanted: tuple[int, int],
    values_shape: tuple[int, int],
    block: int,
    batch: int,
    device: torch.device,
) -> Iterator[Tensor]:
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    drawn = torch.empty((block, *values_shape), dtype=distribution.dtype, device=device)
    samples = max(1, _DRAW // (values_shape[0] * values_shape[1]))
    for part in torch.split(drawn, samples):
        part.copy_(distribution.draw((len(part), *values_shape), generator))
    for _, first, end in _slices(wanted, batch):
        yield drawn[first:end]


def _open_normal(digest: bytes) -> Callable[[Tensor], None]:
    generator = np.random.Generator(philox(digest))

    def fill(out: Tensor) -> None:
        generator.standard_normal(out=out.numpy(), dtype=np.float32)

    return fill


def _draw_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    # In float32 torch's numbers end at 6.8 standard deviations, in float64 at 8.6 (docs/theory.md 8).
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float64).float()


STANDARD_NORMAL = Distribution(torch.float32, _open_normal, _draw_normal)
"""float32 standard normal numbers."""
