"""McNemar's exact test, Holm's adjustment, the interval of a difference, the simultaneous band: against their laws."""

from __future__ import annotations

from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, kstwo, multinomial, ttest_rel

from drs_ray.certificates.curve import band_half_width, share_interval
from drs_ray.certificates.paired import difference_interval, holm, mcnemar_exact, mean_difference_interval


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue if first + second else 1.0
    assert mcnemar_exact(first, second) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("disagree", [1, 5, 6, 20, 101])
@pytest.mark.parametrize("level", [0.05, 0.01])
def test_mcnemar_never_rejects_more_often_than_its_level(disagree: int, level: float) -> None:
    first = np.arange(disagree + 1)
    rejected = mcnemar_exact(first, disagree - first) <= level
    assert binom.pmf(first, disagree, 0.5)[rejected].sum() <= level


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
def test_holm_is_the_closed_test_of_bonferroni(p_values: list[float]) -> None:
    """Its adjusted p-value is the largest Bonferroni p-value of all sets of hypotheses that this one is in."""
    indices = range(len(p_values))
    sets = list(chain.from_iterable(combinations(indices, size) for size in range(1, len(p_values) + 1)))
    for index, adjusted in enumerate(holm(p_values)):
        mine = [len(some) * min(p_values[i] for i in some) for some in sets if index in some]
        assert adjusted == pytest.approx(min(1.0, max(mine)), abs=1e-12)


def test_holm_keeps_the_shape() -> None:
    assert holm([[0.01, 0.04], [0.03, 0.005]]).tolist() == [[0.03, 0.06], [0.06, 0.02]]


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.05, 0.05), (0.2, 0.1), (0.5, 0.5), (0.0, 0.9), (0.33, 0.6)])
def test_the_interval_of_a_difference_covers_it(shares: tuple[float, float]) -> None:
    """Summed over all outcomes of 25 images."""
    images, level = 25, 0.95
    first, second = (axis.ravel() for axis in np.mgrid[: images + 1, : images + 1])
    possible = first + second <= images
    first, second = first[possible], second[possible]
    chance = multinomial.pmf(np.stack([first, second, images - first - second], 1), images, [*shares, 1 - sum(shares)])
    low, high = difference_interval(first, second, images, level)
    covers = (low <= shares[1] - shares[0]) & (shares[1] - shares[0] <= high)
    assert chance.sum() == pytest.approx(1)
    assert chance[covers].sum() >= level
    assert (low >= -1).all()
    assert (high <= 1).all()
    assert (low <= high).all()


@pytest.mark.parametrize("images", [1, 2, 10, 200, 10_000])
def test_the_band_holds_the_whole_curve(images: int) -> None:
    """Kolmogorov's exact law of the largest deviation of a continuous distribution, which is the worst case."""
    assert kstwo.cdf(min(band_half_width(images), 1.0), images) >= 0.95


@pytest.mark.parametrize("level", [0.95, 0.975, 1 - 0.05 / 7])
def test_intervals_at_other_levels_are_clopper_pearson(level: float) -> None:
    low, high = share_interval(np.arange(31), 30, level)
    for successes in range(31):
        exact = binomtest(successes, 30).proportion_ci(level, method="exact")
        assert (low[successes], high[successes]) == pytest.approx((exact.low, exact.high), abs=1e-12)


@pytest.mark.parametrize("level", [0.95, 0.99])
def test_the_interval_of_a_mean_difference_is_that_of_the_paired_t_test(level: float) -> None:
    draw = np.random.default_rng(1)
    first, second = draw.random(40), draw.random(40) + 0.1
    expected = ttest_rel(second, first)
    low, high, p_value = mean_difference_interval(second - first, level)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval(level)), rel=1e-9)
    assert p_value == pytest.approx(expected.pvalue, rel=1e-9)


def test_the_interval_of_a_mean_difference_of_radii_covers_it_nearly_as_often_as_it_says() -> None:
    """Radii of a grid, as skewed as those of certificates: most images are alike, few differ by much."""
    steps, chances = np.array([-0.5, -0.25, 0.0, 0.25, 0.5, 1.0]), [0.01, 0.04, 0.82, 0.09, 0.03, 0.01]
    draws = np.random.default_rng(2).choice(steps, (2000, 500), p=chances)
    found = np.array([mean_difference_interval(one, 0.95) for one in draws])
    covers = (found[:, 0] <= steps @ chances) & (steps @ chances <= found[:, 1])
    assert 0.93 < covers.mean() < 0.97


@pytest.mark.parametrize(("shift", "p_value"), [(0.0, 1.0), (0.25, 0.0)])
def test_a_difference_without_spread_is_one_point(shift: float, p_value: float) -> None:
    assert mean_difference_interval(np.full(50, shift), 0.95) == (shift, shift, p_value)
