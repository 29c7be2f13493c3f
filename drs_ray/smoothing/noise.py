"""Keyed random numbers: every block of samples is a pure function of its key, whoever draws it, whenever, how often.

A block is keyed by a hash of (run seed, image id, sub-image, phase, block number), never by `seed + i`: neighbouring
seeds and images then share nothing. On the CPU the stream is numpy's Philox (counter-based), drawn batch by batch; on
CUDA it is torch's 64-bit seeded Philox, drawn a block at a time, for its values depend on the size of the draw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from drs_ray.smoothing.keys import NoiseKey

UNIFORM_BITS = 62
"""Bits of a uniform integer: as many as leave an int64 room for its sign and for the bound 2**62 itself."""

_PIECE = 1 << 16  # raw integers at a time: what fits the cache, and no second batch in memory


@dataclass(frozen=True)
class Distribution:
    """One kind of random number, from numpy's generators and from torch's; the values of the two differ.

    fill: overwrites a contiguous CPU tensor of `dtype` with the stream's next values, however the stream is cut.
    draw: a new tensor of a shape, on the generator's device.
    """

    dtype: torch.dtype
    fill: Callable[[np.random.Generator, Tensor], None]
    draw: Callable[[tuple[int, ...], torch.Generator], Tensor]


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
    depend on nothing but the sample numbers. Memory: one batch on the CPU, one block on CUDA.

    Args:
        distribution: what is drawn.
        key: whose noise.
        first_sample: first sample number within the key's stream.
        samples: how many samples.
        values_shape: (C, d_k) of the sub-image's values.
        block: samples per keyed block.
        batch: most samples per slice.
        device: where the numbers are made and used.

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
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))
    buffer = torch.empty((batch, *values_shape), dtype=distribution.dtype)
    drawn = 0
    while drawn < wanted[0]:  # the stream is sequential: what lies before the range is drawn and dropped
        count = min(batch, wanted[0] - drawn)
        distribution.fill(generator, buffer[:count])
        drawn += count
    for _, first, end in _slices(wanted, batch):
        part = buffer[: end - first]
        distribution.fill(generator, part)
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
    drawn = distribution.draw((block, *values_shape), generator)
    for _, first, end in _slices(wanted, batch):
        yield drawn[first:end]


def _fill_normal(generator: np.random.Generator, out: Tensor) -> None:
    generator.standard_normal(out=out.numpy(), dtype=np.float32)


def _draw_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _fill_uniform(generator: np.random.Generator, out: Tensor) -> None:
    flat = out.view(-1).numpy()
    for start in range(0, len(flat), _PIECE):
        piece = flat[start : start + _PIECE]
        # numpy promises that raw streams stay as they are; one 64-bit draw per value, so any cut is the same stream.
        piece[:] = generator.bit_generator.random_raw(len(piece)) >> np.uint64(64 - UNIFORM_BITS)


def _draw_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    # torch takes 64 random bits modulo 2**62: no value is more likely than another.
    return torch.randint(0, 1 << UNIFORM_BITS, shape, generator=generator, device=generator.device)


STANDARD_NORMAL = Distribution(torch.float32, _fill_normal, _draw_normal)
"""float32 standard normal numbers."""

UNIFORM_INTEGERS = Distribution(torch.int64, _fill_uniform, _draw_uniform)
"""int64, uniform on 0..2**62 - 1."""
