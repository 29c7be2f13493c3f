"""Integer noise as a distribution, and end to end on 8-bit images where everything is known exactly.

The base classifier of a sub-image says class 0 where the sum of its noisy pixels, in units of 1/255, is at most a
limit. Its probability is a sum over the exact law of the noise, and an 8-bit perturbation matters by its sum alone: the
least one that flips the smoothed class is found by trying all sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.lattice import lattice_integers, lattice_table
from drs_ray.smoothing.noise import keyed_batches
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler, count_votes

CPU = torch.device("cpu")
RARE = 1e-4  # a fixed seed that fails a test of this level is a fault
ALPHA = 0.001
SAMPLES = 200_000
PIXELS = (121, 87, 140, 102)


def exact_law(sigma: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The integers within ten sigma and their probabilities, from the tail that has the digits."""
    top = int(10 * 255 * sigma) + 1
    i = np.arange(-top, 1)
    half = ndtr((i + 0.5) / (255 * sigma)) - ndtr((i - 0.5) / (255 * sigma))
    return np.arange(-top, top + 1), np.concatenate([half, half[-2::-1]])


def batches(sigma: float, samples: int, width: int) -> Iterator[NDArray[np.signedinteger]]:
    """Integer noise by the package's own path: [250, width] at a time, to be used before the next."""
    kind, key = lattice_integers(lattice_table(sigma)), NoiseKey(5, 17, 0, "estimation")
    drawn = keyed_batches(kind, key, 0, samples, values_shape=(1, width), block=1000, batch=250, device=CPU)
    return (batch[:, 0].numpy() for batch in drawn)


def draw(sigma: float, samples: int, width: int) -> NDArray[np.int64]:
    """All of it: [samples, width]."""
    return np.concatenate([batch.astype(np.int64) for batch in batches(sigma, samples, width)])


def counted(noise: Iterable[NDArray[np.signedinteger]], sigma: float) -> NDArray[np.int64]:
    """How often each integer of `exact_law` was drawn."""
    top = len(exact_law(sigma)[0]) // 2
    return sum((np.bincount(one.ravel() + np.int32(top), minlength=2 * top + 1) for one in noise), np.int64(0))


def chi_square_pvalue(seen: NDArray[np.int64], sigma: float) -> float:
    """Of counted integers against their exact law; those of fewer than 20 expected draws are one bin on each side."""
    integers, p = exact_law(sigma)
    low = int(np.flatnonzero(seen.sum() * p.cumsum() >= 20)[0]) - len(p) // 2  # the law is symmetric
    inner = np.clip(integers, low, -low) - low
    expected = seen.sum() * np.bincount(inner, weights=p)
    binned = np.bincount(inner, weights=seen)
    return float(stats.chisquare(binned, expected * (seen.sum() / expected.sum())).pvalue)


@pytest.mark.parametrize("sigma", [0.05, 0.25, 0.5, 2.0])
def test_integers_have_their_exact_probabilities(sigma: float) -> None:
    integers, p = exact_law(sigma)
    assert p.sum() == pytest.approx(1, abs=1e-14)
    noise = draw(sigma, samples=20_000, width=100)
    assert RARE < chi_square_pvalue(counted([noise], sigma), sigma) < 1 - RARE
    n, variance, fourth = noise.size, (p * integers**2).sum(), (p * integers.astype(float) ** 4).sum()
    assert variance == pytest.approx((255 * sigma) ** 2 + 1 / 12, rel=1e-9)
    assert abs(noise.mean()) < 4 * np.sqrt(variance / n)
    assert abs((noise**2).mean() - variance) < 4 * np.sqrt((fourth - variance**2) / n)


def test_the_test_of_the_probabilities_can_fail() -> None:
    """One percent more noise, or rounding down instead of to nearest, is another law."""
    seen = counted(batches(0.05, samples=20_000, width=100), 0.05)
    assert chi_square_pvalue(seen, 0.05) > RARE
    wider = np.pad(seen, (len(exact_law(0.0505)[0]) - len(seen)) // 2)
    assert chi_square_pvalue(wider, 0.0505) < 1e-9
    rounded_down = np.floor(255 * 0.05 * np.random.default_rng(0).standard_normal(2_000_000)).astype(np.int64)
    assert chi_square_pvalue(counted([rounded_down], 0.05), 0.05) < 1e-9


@pytest.mark.parametrize(("sigma", "samples"), [(0.001, 1000), (0.5, 20_000), (8.0, 2000), (100.0, 1000)])
def test_many_millions_of_integers_have_their_exact_probabilities(sigma: float, samples: int) -> None:
    """200 million at sigma 0.5; 10 million at the edges of sigma, and at 8 and 100, where further bits decide many."""
    seen = counted(batches(sigma, samples, width=10_000), sigma)
    assert seen.sum() == samples * 10_000
    assert RARE < chi_square_pvalue(seen, sigma) < 1 - RARE


def test_so_many_notice_thresholds_that_are_not_resolved() -> None:
    """Had the 16 bits alone decided, 1.4 % of the draws would be too low about half the time."""
    sigma = 0.5
    table = lattice_table(sigma)
    look_up = table.look_up.numpy().astype(np.int64)
    coarse = np.where(look_up > table.reach, look_up - (2 * table.reach + 1), look_up)  # the lowest it can be
    integers, p = exact_law(sigma)
    shares = np.bincount(coarse - integers[0], minlength=len(p)) / len(coarse)
    seen = np.random.default_rng(0).multinomial(10**8, shares)
    assert chi_square_pvalue(seen, sigma) < 1e-9


def test_samples_and_pixels_are_uncorrelated() -> None:
    noise = draw(0.25, samples=4000, width=40).astype(np.float64)
    between_pixels = np.corrcoef(noise.T)
    np.fill_diagonal(between_pixels, 0)
    assert np.abs(between_pixels).max() < 5.5 / np.sqrt(4000)
    between_samples = (noise[:-1] * noise[1:]).mean() / noise.var()
    assert abs(between_samples) < 4 / np.sqrt(noise[1:].size)


class SumBelow(nn.Module):
    """Class 0 where the sum of the noisy pixels, in units of 1/255, is at most `limit`."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, inputs: Tensor) -> Tensor:
        lead = self.limit + 0.5 - (inputs.double().flatten(1) * 255).round().sum(1)
        return torch.stack([lead, -lead], dim=1).float()


@dataclass(frozen=True)
class World:
    """A 2x2 image whose sub-images have `distances` (in standard deviations of the summed noise) to their limits."""

    partition_name: str
    sigmas: tuple[float, ...]
    distances: tuple[float, ...]

    @property
    def per_part(self) -> int:
        return len(PIXELS) // len(self.sigmas)

    @property
    def margins(self) -> list[int]:
        """By how much a sub-image's sum may grow before it is beyond its limit."""
        return [
            round(distance * 255 * sigma * self.per_part**0.5)
            for distance, sigma in zip(self.distances, self.sigmas, strict=True)
        ]

    @cached_property
    def distribution_functions(self) -> list[NDArray[np.float64]]:
        """P(summed noise <= m) of each sub-image by exact sums; the middle entry is m = 0."""
        functions = []
        for sigma in self.sigmas:
            _, one = exact_law(sigma)
            summed = one
            for _ in range(self.per_part - 1):
                summed = np.convolve(summed, one)
            functions.append(summed.cumsum())
        return functions

    def probability(self, k: int, grown: int) -> float:
        """Of class 0 on sub-image k once its sum has grown."""
        function = self.distribution_functions[k]
        return float(function[len(function) // 2 + self.margins[k] - grown])

    def lead(self, grown: tuple[int, ...]) -> float:
        """Of class 0 in the smoothed classifier: its sign decides."""
        return sum(
            s * float(ndtri(self.probability(k, g))) for k, (s, g) in enumerate(zip(self.sigmas, grown, strict=True))
        )

    @property
    def flipping(self) -> tuple[float, tuple[int, ...]]:
        """The least l2 norm, in pixel units, of an 8-bit perturbation that flips the class, and its sums."""
        tried = range(300)
        if len(self.sigmas) == 1:
            sums = [(g,) for g in tried if self.lead((g,)) < 0]
        else:
            firsts = [(g, next((h for h in tried if self.lead((g, h)) < 0), None)) for g in tried]
            sums = [(g, h) for g, h in firsts if h is not None]
        least = min(sums, key=self._squared_norm)
        return self._squared_norm(least) ** 0.5 / 255, least

    def _squared_norm(self, grown: tuple[int, ...]) -> int:
        """Of the most even integers with these sums."""
        return sum(
            (self.per_part - left) * each**2 + left * (each + 1) ** 2
            for each, left in (divmod(g, self.per_part) for g in grown)
        )

    def votes(self, grown: tuple[int, ...], image_id: int = 0) -> NDArray[np.int64]:
        """Votes for class 0 on the perturbed image, by the package's own path: int64 [K]."""
        partition = make_partition(self.partition_name, 2, 2, "packed")
        pixels = torch.tensor(PIXELS, dtype=torch.int64).reshape(1, 2, 2)
        own = [partition.extract(pixels, k) for k in range(len(self.sigmas))]
        moved = []
        for values, g in zip(own, grown, strict=True):
            each, left = divmod(g, self.per_part)
            moved.append(values + each + (torch.arange(self.per_part) < left))
        image = partition.merge(moved) / 255.0
        counts = []
        for k, sigma in enumerate(self.sigmas):
            classifier = SumBelow(int(own[k].sum()) + self.margins[k])
            sampler = Sampler(partition, sigma, block=20_000, batch=20_000, device=CPU, law="lattice")
            counts.append(
                count_votes(classifier, image, sampler, NoiseKey(5, image_id, k, "estimation"), 0, SAMPLES, 2)[0]
            )
        return np.array(counts, np.int64)

    def radius_lower(self, votes: NDArray[np.int64]) -> float:
        """The certificate from these votes."""
        samples = np.full((1, len(votes)), SAMPLES)
        return float(certified_radii(votes[None], samples, self.sigmas, Rule("probit"), ALPHA).radius[0])


WORLDS = [
    World("none", (0.25,), (1.5,)),
    World("none", (0.05,), (2.0,)),
    World("checkerboard", (0.25, 0.25), (1.4, 1.0)),
    World("checkerboard", (0.25, 0.12), (1.6, -0.2)),  # one half votes the other way
]


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_votes_have_the_exact_probability(world: World) -> None:
    still = (0,) * len(world.sigmas)
    for image_id, grown in enumerate((still, world.flipping[1])):
        for k, count in enumerate(world.votes(grown, image_id)):
            assert stats.binomtest(int(count), SAMPLES, world.probability(k, grown[k])).pvalue > RARE


@pytest.mark.parametrize("world", WORLDS, ids=str)
def test_no_8_bit_perturbation_within_the_certificate_flips_the_class(world: World) -> None:
    """Below the least perturbation that flips, and close: nothing is lost to rounding but the last step of 1/255."""
    still = (0,) * len(world.sigmas)
    assert world.lead(still) > 0
    truth, _ = world.flipping
    radius = world.radius_lower(world.votes(still))
    assert radius <= truth
    assert radius >= 0.97 * truth - 1 / 255
