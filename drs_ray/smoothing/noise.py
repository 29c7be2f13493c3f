"""Keyed Gaussian noise: every block of samples is a pure function of its key, whoever draws it, whenever, how often.

A block is keyed by a hash of (run seed, image id, sub-image, phase, block number), never by `seed + i`: neighbouring
seeds and images then share nothing. On the CPU the stream is numpy's Philox (counter-based), drawn batch by batch; on
CUDA it is torch's 64-bit seeded Philox, drawn a block at a time, for its values depend on the size of the draw.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from drs_ray.smoothing.keys import NoiseKey


def gaussian_batches(
    key: NoiseKey,
    first_sample: int,
    samples: int,
    *,
    values_shape: tuple[int, int],
    block: int,
    batch: int,
    device: torch.device,
) -> Iterator[Tensor]:
    """Standard normal noise for samples [first_sample, first_sample + samples) in fixed slices of each block.

    Slices start at multiples of `batch` within their block of `block` samples, so the batches that a classifier sees
    depend on nothing but the sample numbers. Memory: one batch on the CPU, one block on CUDA.

    Args:
        key: whose noise.
        first_sample: first sample number within the key's stream.
        samples: how many samples.
        values_shape: (C, d_k) of the sub-image's values.
        block: samples per keyed block.
        batch: most samples per slice.
        device: where the noise is made and used.

    Yields:
        float32 [b, C, d_k], b <= batch. A yielded tensor may be overwritten once the next one is asked for.
    """
    end = first_sample + samples
    for number in range(first_sample // block, -(-end // block)):
        start = number * block
        wanted = max(first_sample - start, 0), min(end - start, block)
        digest = key.block_digest(number)
        if device.type == "cpu":
            yield from _philox_slices(digest, wanted, values_shape, batch)
        else:
            yield from _torch_slices(digest, wanted, values_shape, block, batch, device)


def _slices(wanted: tuple[int, int], batch: int) -> Iterator[tuple[int, int, int]]:
    """(slice start, first wanted, end) of every slice of the block that has wanted samples."""
    low, high = wanted
    for start in range(low - low % batch, high, batch):
        yield start, max(start, low), min(start + batch, high)


def _philox_slices(
    digest: bytes, wanted: tuple[int, int], values_shape: tuple[int, int], batch: int
) -> Iterator[Tensor]:
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(digest, "<u8")))
    buffer = np.empty((batch, *values_shape), np.float32)
    drawn = 0
    while drawn < wanted[0]:  # the stream is sequential: what lies before the range is drawn and dropped
        count = min(batch, wanted[0] - drawn)
        generator.standard_normal(out=buffer[:count], dtype=np.float32)
        drawn += count
    for _, first, end in _slices(wanted, batch):
        part = buffer[: end - first]
        generator.standard_normal(out=part, dtype=np.float32)
        yield torch.from_numpy(part)


def _torch_slices(
    digest: bytes,
    wanted: tuple[int, int],
    values_shape: tuple[int, int],
    block: int,
    batch: int,
    device: torch.device,
) -> Iterator[Tensor]:
    generator = torch.Generator(device)
    generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    noise = torch.randn((block, *values_shape), generator=generator, device=device)
    for _, first, end in _slices(wanted, batch):
        yield noise[first:end]
