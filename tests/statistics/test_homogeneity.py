"""The exact test of two vote counts, by enumeration: its level for independent and for common noise, and its power."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import gammaln, xlogy
from scipy.stats import binom

from drs_ray.certificates.homogeneity import detectable_shift, homogeneity_p_values

LEVELS = (0.2, 0.05, 0.01, 1e-3, 1e-5)
SHARES = (0.001, 0.02, 0.1, 0.3, 0.5, 0.77, 0.99)


@functools.cache
def table(n: int) -> NDArray[np.float64]:
    """p-values of all pairs of counts of n samples: [n + 1, n + 1]."""
    return np.array(
        [
            [homogeneity_p_values(np.array([x, n - x]), np.array([y, n - y]))[0] for y in range(n + 1)]
            for x in range(n + 1)
        ]
    )


@pytest.mark.parametrize("n", [1, 3, 10, 40])
def test_the_level_is_kept_for_independent_noise(n):
    attained = 0.0
    for level, p in itertools.product(LEVELS, SHARES):
        law = binom.pmf(np.arange(n + 1), n, p)
        rejected = law @ (table(n) <= level) @ law
        assert rejected <= level
        attained = max(attained, rejected / level)
    assert n < 40 or attained > 0.4  # a test that never rejects would keep any level


def pairs_of_counts(n: int, both: float, one: float) -> NDArray[np.float64]:
    """The law of (X, Y) for n pairs of indicators, both 1 with probability `both`, one or the other with `one` each."""
    law = np.zeros((n + 1, n + 1))
    law[0, 0] = 1.0
    for _ in range(n):
        longer = law * (1 - both - 2 * one)
        longer[1:, 1:] += law[:-1, :-1] * both
        longer[1:] += law[:-1] * one
        longer[:, 1:] += law[:, :-1] * one
        law = longer
    return law


@pytest.mark.parametrize("n", [3, 12, 30])
def test_the_level_is_kept_for_common_noise_and_rejection_is_rarer_the_more_votes_agree(n):
    for level, p in itertools.product(LEVELS, SHARES):
        rejected = [
            float((pairs_of_counts(n, p - one, one) * (table(n) <= level)).sum())
            for one in np.linspace(0, p * (1 - p), 6)  # from equal votes to independent ones
        ]
        assert rejected[0] == 0
        assert max(rejected) <= level
        assert (np.diff(rejected) >= -1e-15).all()


def test_negatively_correlated_votes_are_beyond_the_theorem():
    """The level needs what the docstring asks for: votes that avoid each other break it."""
    n, p = 12, 0.5
    assert (pairs_of_counts(n, 0.0, p) * (table(n) <= 0.01)).sum() > 0.01


@pytest.mark.parametrize("share", [(0.2, 0.3, 0.5), (0.02, 0.08, 0.9), (0.45, 0.1, 0.45)])
def test_all_classes_together_keep_the_level_that_they_share(share):
    n = 9
    counts = np.array([row for row in itertools.product(range(n + 1), repeat=3) if sum(row) == n])
    logs = gammaln(n + 1) - gammaln(counts + 1).sum(axis=1) + xlogy(counts, share).sum(axis=1)
    law = np.exp(logs)
    assert law.sum() == pytest.approx(1)
    least = np.min([table(n)[np.ix_(counts[:, c], counts[:, c])] for c in range(3)], axis=0)
    for level in LEVELS:
        assert law @ (least <= level / 3) @ law <= level


@pytest.mark.parametrize("n", [40, 100, 400])
@pytest.mark.parametrize("level", [1e-2, 1e-4, 1e-6])
def test_the_shift_that_is_said_to_be_found_is_found(n, level):
    """Exact sums over both counts, wherever the two shares lie."""
    shift = detectable_shift(n, level)
    counts = np.arange(n + 1)
    rejects = critical(n, level)
    powers = []
    for low in np.linspace(0, 1 - shift, 9):
        first, second = binom.pmf(counts, n, low), binom.pmf(counts, n, low + shift)
        powers.append(float(first @ rejects @ second))
    assert min(powers) >= 0.95
    assert detectable_shift(n, level) < 1
    smaller = 0.75 * shift  # and it is not much too large
    around = [binom.pmf(counts, n, 0.5 + side * smaller / 2) for side in (-1, 1)]
    assert around[0] @ rejects @ around[1] < 0.95


def critical(n: int, level: float) -> NDArray[np.bool_]:
    """Where the test rejects; only the pairs near the boundary are computed, the p-value falls with the distance."""
    answer = np.zeros((n + 1, n + 1), np.bool_)
    for total in range(2 * n + 1):
        low, high = -(-total // 2), min(n, total) + 1  # least x of this total that is rejected, by bisection
        while low < high:
            middle = (low + high) // 2
            other = total - middle
            value = homogeneity_p_values(np.array([middle, n - middle]), np.array([other, n - other]))[0]
            low, high = (low, middle) if value <= level else (middle + 1, high)
        x = np.arange(low, min(n, total) + 1)
        answer[x, total - x] = answer[total - x, x] = True
    return answer
