"""The sampler as a distribution, and through classifiers whose vote probability is known. All seeds are fixed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtri
from torch import Tensor, nn

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.noise import STANDARD_NORMAL, keyed_batches
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler, count_votes

CPU = torch.device("cpu")
RARE = 1e-4  # a fixed seed that fails a test of this level is a fault


def draw(key: NoiseKey, samples: int = 1000, width: int = 50, first: int = 0, block: int = 1000) -> NDArray[np.float32]:
    """Noise of one key: float32 [samples, width]."""
    shape = (1, width)
    batches = keyed_batches(
        STANDARD_NORMAL, key, first, samples, values_shape=shape, block=block, batch=250, device=CPU
    )
    return np.concatenate([batch.numpy().copy() for batch in batches])[:, 0]


def windows(values: NDArray[np.float32]) -> set[bytes]:
    """Every pair of neighbouring values, bit for bit: two streams that overlap anywhere share some."""
    flat = np.ascontiguousarray(values.ravel())
    return {pair.tobytes() for pair in np.lib.stride_tricks.sliding_window_view(flat, 2)}


@pytest.mark.parametrize("seed", [0, 1, 2**62 + 11])
def test_standard_normal(seed: int) -> None:
    values = draw(NoiseKey(seed, 3, 0, "estimation"), samples=4000, width=100).ravel().astype(np.float64)
    n = len(values)
    assert abs(values.mean()) < 4 / np.sqrt(n)
    assert abs(values.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((values**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((values**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert stats.kstest(values, "norm").pvalue > RARE


def test_the_tails_are_there() -> None:
    values = np.abs(draw(NoiseKey(0, 0, 0, "estimation"), samples=20_000, width=100))
    for far in (3.0, 4.0, 4.5):
        seen, p = int((values > far).sum()), 2 * stats.norm.sf(far)
        assert stats.binomtest(seen, values.size, p).pvalue > RARE


def test_samples_and_pixels_are_uncorrelated() -> None:
    values = draw(NoiseKey(7, 1, 1, "estimation"), samples=4000, width=40).astype(np.float64)
    between_pixels = np.corrcoef(values.T)
    np.fill_diagonal(between_pixels, 0)
    assert np.abs(between_pixels).max() < 5.5 / np.sqrt(4000)
    between_samples = (values[:-1] * values[1:]).mean()
    assert abs(between_samples) < 4 / np.sqrt(values[1:].size)
    norms = (values**2).sum(axis=1)  # chi-squared with 40 degrees of freedom, were the pixels independent
    assert stats.kstest(norms, "chi2", args=(40,)).pvalue > RARE


def test_keys_that_differ_in_one_part_share_nothing() -> None:
    here = NoiseKey(5, 10, 0, "estimation")
    streams = {
        "here": draw(here),
        "seed": draw(NoiseKey(6, 10, 0, "estimation")),
        "far seed": draw(NoiseKey(5 + 2**32, 10, 0, "estimation")),
        "image": draw(NoiseKey(5, 11, 0, "estimation")),
        "sub-image": draw(NoiseKey(5, 10, 1, "estimation")),
        "phase": draw(NoiseKey(5, 10, 0, "selection")),
        "block": draw(here, first=1000),
        "seed and image swapped": draw(NoiseKey(10, 5, 0, "estimation")),
        "digits moved": draw(NoiseKey(51, 0, 0, "estimation")),
    }
    seen = {name: windows(values) for name, values in streams.items()}
    for one, other in itertools.combinations(streams, 2):
        assert not seen[one] & seen[other], (one, other)
        correlation = (streams[one].astype(np.float64) * streams[other]).mean()
        assert abs(correlation) < 4.5 / np.sqrt(streams[one].size), (one, other)


def test_adjacent_run_seeds_share_nothing() -> None:
    """`root + i` as a key would give image i of seed s the noise of image i + 1 of seed s - 1."""
    seen: dict[bytes, tuple[int, int, int]] = {}
    for seed, image_id, block in itertools.product(range(4), range(4), range(3)):
        values = draw(NoiseKey(seed, image_id, 0, "estimation"), samples=100, width=20, first=block * 100, block=100)
        for window in windows(values):
            assert window not in seen, (seed, image_id, block, seen[window])
            seen[window] = (seed, image_id, block)


def test_block_digests_are_distinct() -> None:
    parts = itertools.product((0, 1, 11), (0, 1, 11), (0, 1), ("selection", "estimation"), (0, 1, 11))
    digests = [NoiseKey(s, i, k, phase).block_digest(b) for s, i, k, phase, b in parts]  # type: ignore[arg-type]
    assert len(set(digests)) == len(digests) == 3 * 3 * 2 * 2 * 3
    assert len({digest[:8] for digest in digests}) == len(digests)  # CUDA is keyed by these


class Threshold(nn.Module):
    """Class 0 where the first pixel is below a threshold."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, inputs: Tensor) -> Tensor:
        value = self.threshold - inputs[:, 0, 0, 0]
        return torch.stack([value, -value], dim=1)


IMAGES, N, LEVEL = 1500, 200, 0.05


@pytest.fixture(scope="module", params=[0.6, 0.9, 0.97])
def known(request: pytest.FixtureRequest) -> tuple[float, NDArray[np.int64]]:
    """A true p, and how many of N votes each of many images got for that class."""
    p = float(request.param)
    sigma = 0.5
    classifier = Threshold(0.3 + sigma * float(ndtri(p)))
    sampler = Sampler(make_partition("none", 1, 2, "packed"), sigma, block=100, batch=100, device=CPU, law="gaussian")
    image = torch.full((1, 1, 2), 0.3)
    votes = [
        count_votes(classifier, image, sampler, NoiseKey(3, i, 0, "estimation"), 0, N, 2)[0] for i in range(IMAGES)
    ]
    return p, np.array(votes)


def test_votes_are_binomial(known: tuple[float, NDArray[np.int64]]) -> None:
    p, votes = known
    assert stats.binomtest(int(votes.sum()), IMAGES * N, p).pvalue > RARE
    spread = ((votes - N * p) ** 2).sum() / (N * p * (1 - p))  # too even or too uneven between images: shared noise
    assert RARE < stats.chi2.cdf(spread, IMAGES) < 1 - RARE


def test_bounds_cover_as_often_as_they_must(known: tuple[float, NDArray[np.int64]]) -> None:
    """Misses over many images lie in the acceptance region of their exact probability, which is at most the level."""
    p, votes = known
    k = np.arange(N + 1)
    chance = float(stats.binom.pmf(k, N, p)[lower_quantile(k, N, LEVEL) > ndtri(p)].sum())
    assert 0 < chance <= LEVEL
    misses = int((lower_quantile(votes, N, LEVEL) > ndtri(p)).sum())
    low, high = stats.binom.ppf(RARE / 2, IMAGES, chance), stats.binom.ppf(1 - RARE / 2, IMAGES, chance)
    assert low <= misses <= high
