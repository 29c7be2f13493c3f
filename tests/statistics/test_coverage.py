"""The promise itself: how often a certificate exceeds the truth, summed exactly over all counts. No sampling.

The model is a half-space classifier on each sub-image. Its true radius is known, and it attains every bound that the
radius formulas use, so that no true p is harder.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule

Floats = NDArray[np.float64]


def hard_probabilities(n: int, level: float) -> Floats:
    """True p to try: an even grid, tiny and huge ones, and those just below a bound, where the most counts miss."""
    just_below = ndtr(lower_quantile(np.arange(1, n + 1), n, level) - 1e-9)
    few = just_below[:: max(1, n // 25)]
    return np.unique(np.r_[1e-6, np.linspace(0.02, 0.98, 25), 0.5, 1 - 1e-6, few, just_below[-1]])


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("n", [1, 2, 10, 50, 200])
@pytest.mark.parametrize("vote", ["probit", "mean"])
def test_one_sub_image(n: int, alpha: float, vote: str) -> None:
    sigma = 0.5
    votes = np.arange(n + 1)[:, None]
    certified = certified_radii(votes, np.full_like(votes, n), [sigma], Rule(vote), alpha).radius
    p = hard_probabilities(n, alpha)
    true_radius = np.maximum(sigma * ndtri(p), 0)
    wrong = certified[None, :] > true_radius[:, None]
    miss = (binom.pmf(votes[:, 0][None, :], n, p[:, None]) * wrong).sum(axis=1)
    assert miss.max() <= alpha
    if alpha ** (1 / n) > 0.5:  # some count certifies at all
        assert miss.max() > alpha / 20  # and the test is one that could fail


@pytest.mark.parametrize("alpha", [0.001, 0.05])
@pytest.mark.parametrize("n", [(20, 20), (50, 50), (10, 80)], ids=str)
@pytest.mark.parametrize(
    ("rule", "sigmas"),
    [
        (Rule("probit"), (1.0, 1.0)),
        (Rule("probit"), (1.0, 0.25)),
        (Rule("probit", weights=(1.0, 3.0)), (0.5, 0.5)),
        (Rule("mean"), (1.0, 1.0)),
        (Rule("mean"), (1.0, 0.25)),
    ],
    ids=str,
)
def test_two_sub_images(n: tuple[int, int], alpha: float, rule: Rule, sigmas: tuple[float, float]) -> None:
    votes = np.stack(np.meshgrid(np.arange(n[0] + 1), np.arange(n[1] + 1), indexing="ij"), axis=-1).reshape(-1, 2)
    certified = certified_radii(votes, np.broadcast_to(n, votes.shape), sigmas, rule, alpha).radius
    certified = certified.reshape(n[0] + 1, n[1] + 1)
    grids = [hard_probabilities(m, alpha / 2) for m in n]
    chance = [binom.pmf(np.arange(m + 1)[None, :], m, p[:, None]) for m, p in zip(n, grids, strict=True)]
    true_radius = true_radii(grids, rule, sigmas)
    miss = np.empty_like(true_radius)
    for i, j in np.ndindex(true_radius.shape):
        miss[i, j] = chance[0][i] @ (certified > max(true_radius[i, j], 0.0)) @ chance[1][j]
    assert miss.max() <= alpha
    assert certified.max() > 0
    assert miss.max() > alpha**2 / 10  # both bounds missing at once is enough; Bonferroni is loose, not empty


@pytest.mark.parametrize("sub_images", [1, 2])
def test_the_simultaneous_bounds_hold(sub_images: int) -> None:
    """Whatever formula reads them: all bounds of an image are below the truth with probability 1 - alpha."""
    n, alpha = 60, 0.01
    p = hard_probabilities(n, alpha / sub_images)
    bounds = certified_radii(
        np.repeat(np.arange(n + 1)[:, None], sub_images, axis=1),
        np.full((n + 1, sub_images), n),
        [1.0] * sub_images,
        Rule(),
        alpha,
    ).a_lower
    holds = [
        (binom.pmf(np.arange(n + 1)[None, :], n, p[:, None]) * (bounds[:, k][None, :] <= ndtri(p)[:, None])).sum(axis=1)
        for k in range(sub_images)
    ]
    # Independent sub-images; 1 - prod(1 - miss_k) <= sum of the misses, which is what the rule adds up.
    missed = sum((1 - h).max() for h in holds)
    assert missed <= alpha
    assert functools.reduce(np.multiply.outer, holds).min() >= 1 - alpha


def test_published_shortcuts_do_miss() -> None:
    """The same sum catches alpha spent in full on both halves, and clipped negative margins (docs/theory.md 9)."""
    n, alpha = 100, 0.05
    a = lower_quantile(np.arange(n + 1), n, alpha)
    clipped = np.add.outer(np.maximum(a, 0), np.maximum(a, 0)) / np.sqrt(2)
    p = np.array([0.9, 0.35])
    chance = [binom.pmf(np.arange(n + 1), n, value) for value in p]
    true_radius = ndtri(p).sum() / np.sqrt(2)
    assert chance[0] @ (clipped > true_radius) @ chance[1] > 0.5
    both = 1 - (1 - chance_of_a_miss(a, n, alpha)) ** 2
    assert both > alpha


def chance_of_a_miss(a: Floats, n: int, level: float) -> float:
    """Largest probability, over true p, that one bound at `level` is too high."""
    p = hard_probabilities(n, level)
    wrong = a[None, :] > ndtri(p)[:, None]
    return float((binom.pmf(np.arange(n + 1)[None, :], n, p[:, None]) * wrong).sum(axis=1).max())


def true_radii(grids: list[Floats], rule: Rule, sigmas: tuple[float, float]) -> Floats:
    """Exact radius of the smoothed half-spaces for all pairs of p; computed from distances, not by the package."""
    a_1, a_2 = np.meshgrid(*(ndtri(p) for p in grids), indexing="ij")
    if rule.vote == "mean":
        return (a_1 + a_2) / np.sqrt(sigmas[0] ** -2 + sigmas[1] ** -2)
    w_1, w_2 = rule.weights or (1.0, 1.0)
    return (w_1 * sigmas[0] * a_1 + w_2 * sigmas[1] * a_2) / np.hypot(w_1, w_2)
