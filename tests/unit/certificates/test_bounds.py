"""Clopper-Pearson quantiles against exact binomial tails; nothing is tolerated on the unsafe side."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from scipy.stats import binom

from drs_ray.certificates.bounds import QUANTILE_SLACK, lower_quantile, quantile_table

steady = settings(derandomize=True, deadline=None, database=None, max_examples=100)

# docs/theory.md 10: k, n, level, 1 - p_lower, a = Phi^-1(p_lower); computed elsewhere in 40-digit arithmetic.
CHECK_VALUES = [
    (100, 100, 0.001, "0.066745699203009", "1.50047502412"),
    (60, 100, 0.001, "0.5590157347787", "-0.148474219315"),
    (990, 1000, 0.001, "0.023963812844689", "1.97800958214"),
    (900, 1000, 0.0005, "0.13477499825522", "1.10409945768"),
    (350, 1000, 0.0005, "0.69884347734797", "-0.521077125211"),
    (99_000, 100_000, 0.0005, "0.011077920227376", "2.2876855388"),
    (100_000, 100_000, 0.001, "6.9075166990607e-5", "3.81145656339"),
    (100_000, 100_000, 0.0005, "7.6006135982698e-5", "3.78775886594"),
    (999_999_990, 1_000_000_000, 0.001, "2.4133970974863e-8", "5.45757568892"),
]


def tail(k: int, n: int, quantile: float) -> mpmath.mpf:
    """P(X >= k) for X ~ Binomial(n, Phi(quantile)), in 60 digits: summed, or as a beta integral."""
    with mpmath.workdps(60):
        p, q = mpmath.ncdf(quantile), mpmath.ncdf(-quantile)  # each on its own: 1 - q loses the digits that matter

        def weight(j: int) -> mpmath.mpf:
            return mpmath.binomial(n, j) * p**j * q ** (n - j)

        if n - k <= 1000:
            return mpmath.fsum(weight(j) for j in range(k, n + 1))
        return mpmath.betainc(k, n - k + 1, 0, p, regularized=True)


@pytest.mark.parametrize(("k", "n", "level", "failure", "quantile"), CHECK_VALUES)
def test_check_values_are_met_from_below(k: int, n: int, level: float, failure: str, quantile: str) -> None:
    value = float(lower_quantile(k, n, level))
    with mpmath.workdps(30):
        exact = float(mpmath.findroot(lambda a: mpmath.ncdf(-a) - mpmath.mpf(failure), float(quantile)))
    assert exact == pytest.approx(float(quantile), abs=1e-10)  # the two columns of the table agree
    assert value <= exact
    assert value <= float(quantile)
    assert value >= exact - 2e-8


@pytest.mark.parametrize("level", [1e-100, 1e-30, 1e-12, 1e-6, 0.0005, 0.001, 0.05, 0.5])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 51, 100])
def test_at_the_bound_so_many_successes_have_at_most_the_level(n: int, level: float) -> None:
    for k in sorted({1, 2, n // 2, n // 2 + 1, n - 1, n} & set(range(1, n + 1))):
        value = float(lower_quantile(k, n, level))
        assert tail(k, n, value) <= level, (k, n)  # so p below p_lower are all excluded at this level
        assert tail(k, n, value + 2 * QUANTILE_SLACK) > level, (k, n)  # and not by more than the slack


@pytest.mark.parametrize(
    ("k", "n", "level"),
    [(99_990, 100_000, 1e-3), (100_000, 100_000, 5e-4), (999_999_998, 10**9, 1e-3), (10**9, 10**9, 1e-9)],
)
def test_many_samples_keep_their_digits(k: int, n: int, level: float) -> None:
    value = float(lower_quantile(k, n, level))
    assert tail(k, n, value) <= level
    assert tail(k, n, value + 2 * QUANTILE_SLACK) > level


def test_the_middle_where_the_two_branches_meet() -> None:
    n = 1000
    k = np.arange(540, 560)  # p_lower passes 1/2 here
    around = lower_quantile(k, n, 0.001)
    assert around[0] < 0 < around[-1]
    assert np.all(np.abs(np.diff(around, 2)) < 1e-6)  # no jump between the lower and the upper formula
    for at, value in zip(k, around, strict=True):
        assert tail(int(at), n, float(value)) <= 0.001


def test_no_success_says_nothing() -> None:
    assert lower_quantile(0, 100, 0.001) == -np.inf
    assert lower_quantile(0, 0, 0.001) == -np.inf  # no samples at all


def test_all_successes_in_closed_form() -> None:
    value = lower_quantile(1, 1, 0.25)  # p_lower = level^(1/n) = 1/4
    exact = float(mpmath.sqrt(2) * mpmath.erfinv(mpmath.mpf(-0.5)))
    assert exact - 2e-8 <= value < exact


def test_arguments_broadcast() -> None:
    k = np.array([[10, 90], [50, 100]])
    levels = np.array([0.001, 0.01])
    together = lower_quantile(k, 100, levels)
    assert together.shape == (2, 2)
    assert together.dtype == np.float64
    for (row, column), value in np.ndenumerate(together):
        assert value == lower_quantile(k[row, column], 100, levels[column])


@pytest.mark.parametrize(
    ("k", "n", "level", "message"),
    [
        (-1, 10, 0.1, "successes"),
        (11, 10, 0.1, "successes"),
        (np.nan, 10, 0.1, "successes"),
        (1, 10, 0.0, "level"),
        (1, 10, 1e-300, "level"),  # scipy would answer, with a bound that is too high
        (1, 10, 1.0, "level"),
        (1, 10, np.nan, "level"),
    ],
)
def test_impossible_arguments_are_refused(k: float, n: float, level: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lower_quantile(k, n, level)


@steady
@given(n=st.integers(2, 10**9), share=st.floats(0, 1), level=st.floats(1e-12, 0.5))
def test_more_successes_or_a_weaker_level_never_lower_the_bound(n: int, share: float, level: float) -> None:
    k = min(int(share * n), n - 1)
    here = lower_quantile(k, n, level)
    assert lower_quantile(k + 1, n, level) > here
    assert lower_quantile(k, n, min(2 * level, 0.999)) >= here
    assert lower_quantile(k, n + 1, level) <= here


@steady
@given(n=st.integers(1, 100_000), share=st.floats(0, 1), level=st.floats(1e-9, 0.5))
def test_the_tail_at_the_bound_is_the_level(n: int, share: float, level: float) -> None:
    k = max(1, round(share * n))
    value = lower_quantile(k, n, level)
    # scipy's own tail is good to about 1e-9 relative; the exact comparisons are above.
    assert binom.sf(k - 1, n, ndtr(value)) <= level * (1 + 1e-9)


@pytest.mark.parametrize("failures", [[0], [10], [0, 10, 2_000_000_000]])
def test_counts_beyond_the_square_root_of_int64_are_not_confused(failures: list[int]) -> None:
    """64 sub-images of 1e9 samples each: count and samples together do not fit into one product."""
    n = 64 * 10**9
    samples = np.full((len(failures), 1), n)
    table, rows = quantile_table(samples - np.array(failures)[:, None], samples, np.array([0.001, 0.01]))
    assert table[rows[:, 0], 0].tolist() == [float(lower_quantile(n - s, n, 0.001)) for s in failures]


def test_a_table_holds_each_count_once_at_every_level() -> None:
    counts, samples = np.array([[5, 9], [9, 5], [10, 9]]), np.array([[10, 10], [10, 10], [10, 20]])
    levels = np.array([0.1, 0.01, 0.001])
    table, rows = quantile_table(counts, samples, levels)
    assert table.shape == (4, 3)  # 9 of 10 is not 9 of 20
    assert table[rows].tolist() == lower_quantile(counts[..., None], samples[..., None], levels).tolist()
    with pytest.raises(ValueError, match="successes"):
        quantile_table(np.array([11]), np.array([10]), levels)


@pytest.mark.parametrize("failures", [0, 1, 10])
def test_the_bound_holds_for_the_samples_of_all_sub_images_together(failures: int) -> None:
    n, level = 64 * 10**9, 0.001
    with mpmath.workdps(60):
        q = mpmath.ncdf(-mpmath.mpf(float(lower_quantile(n - failures, n, level))))
        tail = mpmath.fsum(mpmath.binomial(n, i) * q**i * (1 - q) ** (n - i) for i in range(failures + 1))
        assert tail <= level
