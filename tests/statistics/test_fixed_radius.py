"""The e-value for one radius: its expectation and its crossings summed exactly, its supremum against brute force.

Probabilities are those of vote vectors whose radius is at most the one asked for; the worst is looked for by an
optimiser over them. Nothing has a tolerance on the side that could certify too much.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq, minimize_scalar
from scipy.special import gammaln, log_ndtr, ndtr, ndtri
from scipy.stats import binom

from drs_ray.certificates.fixed_radius import largest_fixed_radius, log_e_values
from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.radius import mean_radius, probit_radius
from drs_ray.certificates.rule import Rule

Floats = NDArray[np.float64]

SIGMAS = (0.5, 0.25)
VOTES = [("probit", None), ("probit", (1.0, 3.0)), ("mean", None)]


def normals(vote: str, weights: tuple[float, ...] | None, sigmas: tuple[float, ...]) -> Floats:
    """c such that the radius is c . a: half-spaces (docs/theory.md 4.1, 4.2), written down anew."""
    s, w = np.array(sigmas), np.array(weights or [1.0] * len(sigmas))
    if vote == "mean":
        return np.full(len(s), 1 / np.sqrt(np.sum(1 / s**2)))
    return w * s / np.sqrt(np.sum(w**2))


def worst(value: Callable[[float], float], low: float = -6.0, high: float = 6.0) -> float:
    """The largest value on an interval: a grid, then an optimiser around its three best points."""
    grid = np.linspace(low, high, 121)
    values = [value(float(x)) for x in grid]
    best = max(values)
    for at in np.argsort(values)[-3:]:
        around = (float(grid[max(at - 1, 0)]), float(grid[min(at + 1, len(grid) - 1)]))
        best = max(best, -minimize_scalar(lambda x: -value(x), bounds=around, method="bounded").fun)
    return best


def pmf(n: int, p: float) -> Floats:
    return np.asarray(binom.pmf(np.arange(n + 1), n, p))


def e_values_of_two(n: int, radius: float, vote: str, weights: tuple[float, ...] | None) -> Floats:
    """E of all pairs of counts of n: float64 [n + 1, n + 1]."""
    pairs = np.stack(np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij"), axis=-1).reshape(-1, 2)
    log_e = log_e_values(pairs, np.full_like(pairs, n), SIGMAS, radius, vote=vote, weights=weights)
    return np.exp(log_e).reshape(n + 1, n + 1)


@pytest.mark.parametrize("n", [1, 2, 5, 12, 60])
@pytest.mark.parametrize("radius", [0.05, 0.5, 1.0])
def test_the_expectation_is_at_most_one_for_one_sub_image(n: int, radius: float) -> None:
    votes = np.arange(n + 1)[:, None]
    e = np.exp(log_e_values(votes, np.full_like(votes, n), (0.5,), radius))
    largest = worst(lambda a: pmf(n, ndtr(a)) @ e, high=radius / 0.5)
    assert largest <= 1
    assert largest > (0.02 if n > 1 else 0)


@pytest.mark.parametrize(("vote", "weights"), VOTES)
@pytest.mark.parametrize("n", [1, 3, 10, 25])
def test_the_expectation_is_at_most_one_on_the_boundary_of_two(
    n: int, vote: str, weights: tuple[float, ...] | None
) -> None:
    for radius in (0.05, 0.3):
        c, e = normals(vote, weights, SIGMAS), e_values_of_two(n, radius, vote, weights)
        for inside in (0.0, 0.1, 1.0):
            largest = worst(
                lambda a, r=radius - inside, c=c, e=e: pmf(n, ndtr(a)) @ e @ pmf(n, ndtr((r - c[0] * a) / c[1]))
            )
            assert largest <= 1
            assert inside > 0 or n == 1 or largest > 0.001


def crossing(crossed: list[NDArray[np.bool_]], p: tuple[float, ...]) -> float:
    """Probability that the path of counts is ever in `crossed[n - 1]`, by dynamic programming over all paths."""
    alive, total = np.ones([1] * len(p)), 0.0
    for now in crossed:
        for axis, chance in enumerate(p):
            stay = np.append(np.moveaxis(alive, axis, 0), np.zeros((1, *np.delete(alive.shape, axis))), axis=0)
            alive = np.moveaxis((1 - chance) * stay + chance * np.roll(stay, 1, axis=0), 0, axis)
        total += float(alive[now].sum())
        alive = np.where(now, 0.0, alive)
    return total


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("radius", [0.1, 0.5])
def test_whoever_looks_after_every_sample_is_wrong_with_probability_at_most_alpha(alpha: float, radius: float) -> None:
    crossed = []
    for n in range(1, 301):
        votes = np.arange(n + 1)[:, None]
        certified = certified_radii(votes, np.full_like(votes, n), (0.5,), Rule(radius=radius), alpha).radius
        assert set(certified.tolist()) <= {0.0, radius}
        crossed.append(certified > 0)
    largest = worst(lambda a: crossing(crossed, (float(ndtr(a)),)), high=radius / 0.5)
    assert alpha / 20 < largest <= alpha
    # A bound at the full level, looked at as often, is not anytime-valid: the sum sees it.
    naive = []
    for n in range(1, 301):
        votes = np.arange(n + 1)[:, None]
        naive.append(certified_radii(votes, np.full_like(votes, n), (0.5,), Rule(), alpha).radius > radius)
    assert crossing(naive, (float(ndtr(radius / 0.5)),)) > alpha


@pytest.mark.parametrize(("vote", "weights"), VOTES)
@pytest.mark.parametrize("alpha", [0.01, 0.2])
def test_the_same_for_two_sub_images(vote: str, weights: tuple[float, ...] | None, alpha: float) -> None:
    radius, c = 0.1, normals(vote, weights, SIGMAS)
    crossed = [e_values_of_two(n, radius, vote, weights) >= 1 / alpha for n in range(1, 41)]
    largest = worst(
        lambda a: crossing(crossed, (float(ndtr(a)), float(ndtr((radius - c[0] * a) / c[1])))), low=-3.0, high=3.0
    )
    assert alpha / 100 < largest <= alpha


@pytest.mark.parametrize("sub_images", [2, 3, 9])
@pytest.mark.parametrize("radius", [0.05, 0.7])
def test_no_vote_probabilities_of_that_radius_are_more_likely_than_the_supremum(sub_images: int, radius: float) -> None:
    """Brute force: coordinate moves along the boundary from many starts, and random points inside."""
    rng = np.random.default_rng(sub_images)
    sigmas = tuple(rng.uniform(0.2, 1.0, sub_images))
    c = normals("probit", None, sigmas)
    gaps = []
    for n in (5, 80, 3000):
        p = rng.uniform(0.3, 1.0, (40, sub_images)) ** 0.4
        p[rng.random(p.shape) < 0.3] = 1.0
        votes = rng.binomial(n, p)
        log_e = log_e_values(votes, np.full_like(votes, n), sigmas, radius)
        x, y = votes.astype(float), (n - votes).astype(float)
        mixture = (gammaln(x + 0.5) + gammaln(y + 0.5) - gammaln(n + 1) - np.log(np.pi)).sum(axis=1)
        for image in np.flatnonzero(log_e > -np.inf):
            found = climb(x[image], y[image], c, radius, rng)
            assert log_e[image] <= mixture[image] - found
            gaps.append(mixture[image] - found - log_e[image])
        reachable = (votes > 0).all(axis=1) & (ndtri(np.minimum(votes / n, 1 - 1e-9)) @ c > radius)
        assert np.all(log_e[reachable] > -np.inf)  # the shortcut for what was not found is never taken
    assert len(gaps) > 30
    assert np.max(gaps) < 1e-2  # nothing is given away either (brute force finds less than the supremum, if anything)


def climb(x: Floats, y: Floats, c: Floats, radius: float, rng: np.random.Generator) -> float:
    """The largest log-likelihood found among a with c . a <= radius, by random moves along the boundary."""

    def likelihood(a: Floats) -> Floats:
        return np.asarray((x * log_ndtr(a) + y * log_ndtr(-a)).sum(axis=-1))

    starts = rng.normal(1.0, 1.0, (2000, len(x)))
    starts += (radius - starts @ c)[:, None] * c / (c @ c)
    inside = starts - rng.exponential(0.3, (2000, 1))
    best = starts[np.argmax(likelihood(starts))]
    value = max(likelihood(best), likelihood(inside).max())
    width = 1.0
    for _ in range(400):
        moves = best + width * rng.normal(size=(100, len(x))) * rng.choice([0.05, 1.0], (100, len(x)))
        moves += (radius - moves @ c)[:, None] * c / (c @ c)
        values = likelihood(moves)
        if values.max() > value:
            best, value = moves[np.argmax(values)], values.max()
        else:
            width *= 0.93
    return float(value)


def exact_log_e(votes: tuple[int, ...], samples: int, c: Floats, radius: float) -> mpmath.mpf:
    """In 40 digits; for two sub-images the supremum is where the derivative along the boundary vanishes."""
    with mpmath.workdps(40):

        def log_likelihood(a: tuple[mpmath.mpf, ...]) -> mpmath.mpf:
            return mpmath.fsum(
                x * mpmath.log(mpmath.ncdf(b)) + (samples - x) * mpmath.log(mpmath.ncdf(-b))
                for x, b in zip(votes, a, strict=True)
            )

        mixture = mpmath.fsum(
            mpmath.log(mpmath.beta(x + mpmath.mpf(0.5), samples - x + mpmath.mpf(0.5)) / mpmath.pi) for x in votes
        )
        c_, r = [mpmath.mpf(float(value)) for value in c], mpmath.mpf(radius)
        if len(votes) == 1:
            return mixture - log_likelihood((r / c_[0],))

        def slope(a: float) -> float:
            b = (radius - c[0] * a) / c[1]
            pull = [
                x * np.exp(-(z**2) / 2 - log_ndtr(z)) - (samples - x) * np.exp(-(z**2) / 2 - log_ndtr(-z))
                for x, z in zip(votes, (a, b), strict=True)
            ]
            return float(pull[0] / c[0] - pull[1] / c[1])

        at = mpmath.mpf(brentq(slope, -8, 8, xtol=1e-14))
        return mixture - log_likelihood((at, (r - c_[0] * at) / c_[1]))


@pytest.mark.parametrize("samples", [10, 1000, 10**5, 10**7, 10**9])
def test_rounding_only_ever_lowers_it(samples: int) -> None:
    """Against 40 digits. At other points than the supremum the exact value would be larger still."""
    rng = np.random.default_rng(samples)
    checked = 0
    for sub_images in (1, 2):
        sigmas = SIGMAS[:sub_images]
        for p in (0.7, 0.9, 0.99, 0.9999, 1.0):
            for share in (0.5, 0.9):
                votes = rng.binomial(samples, np.full((1, sub_images), p))
                own = ndtri(np.clip(votes[0] / samples, 1e-9, 1 - 1e-9)) @ normals("probit", None, sigmas)
                if own <= 0:
                    continue
                radius = float(min(share * own, 1.0))
                found = log_e_values(votes, np.full_like(votes, samples), sigmas, radius)[0]
                exact = exact_log_e(tuple(map(int, votes[0])), samples, normals("probit", None, sigmas), radius)
                assert found < exact
                assert found > exact - 1e-5 - 1e-11 * samples
                checked += 1
    assert checked > 10


def test_more_votes_and_a_smaller_radius_are_easier() -> None:
    """What nests the certificates of all radii and all alphas (docs/theory.md, section 12)."""
    n = 200
    votes = np.arange(n + 1)[:, None]
    radii = np.linspace(0.01, 1.2, 40)
    log_e = np.stack([log_e_values(votes, np.full_like(votes, n), (0.5,), radius) for radius in radii])
    assert np.all(log_e[1:] <= log_e[:-1])
    pairs = np.array([[190, 170], [200, 150], [200, 200]])
    log_e = np.stack([log_e_values(pairs, np.full_like(pairs, n), SIGMAS, radius) for radius in radii])
    assert np.all(log_e[1:] <= log_e[:-1])


def test_counts_with_no_evidence_certify_nothing() -> None:
    votes = np.array([[0, 100], [50, 50], [100, 0], [60, 60], [100, 100]])
    log_e = log_e_values(votes, np.full_like(votes, 100), SIGMAS, 0.1)
    assert log_e[:4].max() < 0
    assert log_e[4] > 10
    assert math.isinf(log_e[0])
    with pytest.raises(ValueError, match=r"votes must be in \[0, samples\]"):
        log_e_values(np.array([[101]]), np.array([[100]]), (0.5,), 0.1)


@pytest.mark.parametrize("samples", [100, 1000, 100_000])
@pytest.mark.parametrize("sub_images", [1, 2, 4])
def test_the_largest_radius_is_the_last_that_unanimous_votes_certify(samples: int, sub_images: int) -> None:
    sigmas = (0.5,) * sub_images
    most = largest_fixed_radius(samples, sigmas, 0.001)
    every = np.full((1, sub_images), samples)
    for factor, expected in ((1 - 1e-9, True), (1 + 1e-6, False)):
        found = certified_radii(every, every, sigmas, Rule(radius=most * factor), 0.001).radius[0]
        assert (found > 0) == expected
    assert most < probit_radius(np.array(sigmas) * ndtri(0.001 ** (1 / (sub_images * samples))))
    assert largest_fixed_radius(2, sigmas[:1], 0.001) == 0


def test_the_normals_are_those_of_the_theorems() -> None:
    a = np.array([1.3, -0.4])
    assert normals("mean", None, SIGMAS) @ a == pytest.approx(mean_radius(a, SIGMAS))
    assert normals("probit", (1.0, 3.0), SIGMAS) @ a == pytest.approx(probit_radius(np.array(SIGMAS) * a, (1.0, 3.0)))
