"""Noise laws: how keyed random numbers become noisy copies of a sub-image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from drs_ray.errors import DataError
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.lattice import LEVELS, lattice_integers, lattice_table
from drs_ray.smoothing.noise import STANDARD_NORMAL, Distribution

LawName = Literal["gaussian", "lattice"]


class NoiseLaw(Protocol):
    """A law of noise at one sigma, on one device."""

    @property
    def distribution(self) -> Distribution:
        """The random numbers that the law uses, one per value."""

    def prepare(self, values: Tensor, key: NoiseKey) -> Tensor:
        """Convert the values [C, d_k] of a sub-image, float32 in [0, 1], for `add`; called once per image.

        Raises:
            DataError: values that this law cannot take.
        """

    def add(self, prepared: Tensor, drawn: Tensor) -> Tensor:
        """Random numbers [b, C, d_k] -> noisy values, float32 [b, C, d_k], in new memory."""


def make_law(name: LawName, sigma: float, device: torch.device) -> NoiseLaw:
    """The law `name`; sigma in pixel units."""
    if name == "lattice":
        integers = lattice_integers(lattice_table(sigma).to(device))
        return LatticeLaw(integers, torch.tensor(float(LEVELS), dtype=torch.float32, device=device))
    return GaussianLaw(sigma)


@dataclass(frozen=True)
class GaussianLaw:
    """values + sigma * z in float32: close to the theorem's law, but not the same (docs/theory.md)."""

    sigma: float
    distribution: Distribution = STANDARD_NORMAL

    def prepare(self, values: Tensor, key: NoiseKey) -> Tensor:
        """The values, unchanged."""
        return values

    def add(self, prepared: Tensor, drawn: Tensor) -> Tensor:
        """values + sigma * z."""
        return torch.add(prepared, drawn, alpha=self.sigma)


@dataclass(frozen=True, eq=False)
class LatticeLaw:
    """(pixel + integer noise) / 255: the sum is exact, and the quotient depends on the sum alone.

    levels: float32 255 on the law's device. It is a tensor because CUDA multiplies by the rounded reciprocal of a
    Python number, and the noisy values would then differ from 8-bit pixels that are divided by 255.
    """

    distribution: Distribution
    levels: Tensor

    def prepare(self, values: Tensor, key: NoiseKey) -> Tensor:
        """Pixels as integers 0..255 of the noise's dtype.

        Raises:
            DataError: a value that is not the float32 next to a multiple of 1/255.
        """
        levels = self.levels.to(values.device)
        pixels = (values * levels).round().clamp(0, LEVELS)
        off = pixels / levels != values
        if bool(off.any()):
            raise DataError(
                f"image {key.image_id}: noise.law lattice needs pixels that are multiples of 1/255, but sub-image "
                f"{key.sub_image} has {values[off][0].item():.9g}; use noise.law: gaussian (SmoothedClassifier: "
                'law="gaussian"), or 8-bit images without resizing or normalisation'
            )
        return pixels.to(self.distribution.dtype)

    def add(self, prepared: Tensor, drawn: Tensor) -> Tensor:
        """(pixel + noise) / 255, rounded once."""
        return torch.div(prepared + drawn, self.levels)
