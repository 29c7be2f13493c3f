"""The exact test of two vote counts: its p-value against rational arithmetic, rounded up, and its edges."""

from __future__ import annotations

from fractions import Fraction
from math import comb

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drs_ray.certificates.homogeneity import SLACK, detectable_shift, homogeneity_p_values


def exact_p_value(x: int, y: int, n: int) -> Fraction:
    """Twice the smaller tail of the hypergeometric law, in rational numbers."""
    total = x + y
    term = [comb(n, k) * comb(n, total - k) for k in range(max(0, total - n), min(n, total) + 1)]
    at = x - max(0, total - n)
    tail = min(sum(term[: at + 1]), sum(term[at:]))
    return min(Fraction(1), Fraction(2 * tail, comb(2 * n, total)))


def p_value(x: int, y: int, n: int) -> float:
    return float(homogeneity_p_values(np.array([x, n - x]), np.array([y, n - y]))[0])


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20])
def test_every_pair_of_counts_against_rational_numbers(n):
    for x in range(n + 1):
        for y in range(n + 1):
            exact = exact_p_value(x, y, n)
            found = Fraction(p_value(x, y, n))
            assert exact <= found <= exact * (1 + Fraction(2 * SLACK)) or exact == found == 1


@settings(derandomize=True, deadline=None, database=None)
@given(n=st.integers(1, 400), data=st.data())
def test_random_counts_against_rational_numbers(n, data):
    x, y = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    exact = exact_p_value(x, y, n)
    found = Fraction(p_value(x, y, n))
    if exact > Fraction(1, 10**280):  # below, floats end
        assert exact <= found <= exact * (1 + Fraction(2 * SLACK)) or found == 1 <= exact * (1 + Fraction(2 * SLACK))
    else:
        assert found < 1e-270


@pytest.mark.parametrize(
    ("x", "y", "n"),
    [
        (51_000, 50_000, 100_000),
        (99_990, 99_900, 100_000),
        (300, 200, 100_000),
        (100_000, 99_970, 100_000),
        (500_100_000, 499_900_000, 10**9),
        (999_999_000, 999_998_000, 10**9),
        (10, 2, 10**9),
    ],
)
def test_large_counts_against_forty_digits(x, y, n):
    with mpmath.workdps(40):
        total = x + y
        term = mpmath.binomial(n, x) * mpmath.binomial(n, y) / mpmath.binomial(2 * n, total)
        exact, k = mpmath.mpf(0), x
        while term > exact * mpmath.mpf(10) ** -25 and k <= min(n, total):
            exact += term
            term *= mpmath.mpf((n - k) * (total - k)) / ((k + 1) * (n - total + k + 1))
            k += 1
        assert 2 * exact <= p_value(x, y, n) <= 2 * exact * (1 + 2 * SLACK)


def test_a_tail_of_more_terms_than_are_summed_is_bounded_from_above(monkeypatch):
    whole = p_value(1800, 1500, 3000)
    monkeypatch.setattr("drs_ray.certificates.homogeneity._TERMS", 5)
    assert whole < p_value(1800, 1500, 3000)


@settings(derandomize=True, deadline=None, database=None)
@given(n=st.integers(1, 60), data=st.data())
def test_tied_pairs_never_lower_the_p_value(n, data):
    """What the level under common noise rests on, in rational numbers; `successes` of `tied` pairs are successes."""
    x, y = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    tied = data.draw(st.integers(1, 30))
    successes = data.draw(st.integers(0, tied))
    assert exact_p_value(x + successes, y + successes, n + tied) >= exact_p_value(x, y, n)


def test_each_class_is_tested_against_the_others():
    values = homogeneity_p_values(np.array([90, 10, 0, 0]), np.array([60, 10, 30, 0]))
    assert values[0] == pytest.approx(float(exact_p_value(90, 60, 100)))
    assert values[1] == values[3] == 1
    assert values[2] == pytest.approx(2 * comb(170, 70) / comb(200, 100), rel=1e-8)


def test_the_order_of_the_two_counts_does_not_matter():
    first, second = np.array([7, 3, 40]), np.array([20, 1, 29])
    assert (homogeneity_p_values(first, second) == homogeneity_p_values(second, first)).all()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [([3, 1], [3, 2], "the same number of samples, got 4 and 5"), ([5, -1], [3, 1], "votes must be >= 0")],
)
def test_refusals(first, second, message):
    with pytest.raises(ValueError, match=message):
        homogeneity_p_values(np.array(first), np.array(second))


def test_more_samples_find_smaller_shifts_and_smaller_levels_larger_ones():
    shifts = [detectable_shift(n, 1e-6) for n in (10, 100, 1000, 10**4, 10**5, 10**9)]
    assert shifts == sorted(shifts, reverse=True)
    assert shifts[0] == 1
    assert shifts[-1] < 2e-4
    assert detectable_shift(1000, 1e-8) > detectable_shift(1000, 1e-4) > detectable_shift(1000, 1e-4, power=0.5)
