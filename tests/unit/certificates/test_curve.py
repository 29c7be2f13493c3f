"""Certified accuracy over a grid: counting, ties, intervals, the guaranteed share, ACR."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
from scipy.stats import binomtest

from drs_ray.certificates.curve import (
    RHO,
    average_certified_radius,
    certified_accuracy_curve,
    failed_certificates,
)

RADIUS = np.array([0.0, 0.3, 0.5, 0.5, 0.9, 1.2])
CORRECT = np.array([False, True, True, True, False, True])


def test_counting_by_hand() -> None:
    curve = certified_accuracy_curve([0.0, 0.3, 0.4, 0.5, 0.51, 1.2, 1.3], RADIUS, CORRECT, 1e-9)
    assert curve.radii.tolist() == [0.0, 0.3, 0.4, 0.5, 0.51, 1.2, 1.3]
    assert (curve.certified_accuracy * 6).tolist() == pytest.approx([4, 4, 3, 3, 1, 1, 0], abs=1e-12)
    assert curve.guaranteed_low.tolist() == curve.certified_accuracy.tolist()  # m* = 0 at this alpha


def test_a_radius_on_the_grid_counts_and_one_just_below_does_not() -> None:
    grid = 0.5
    on = certified_accuracy_curve([grid], np.array([grid]), np.array([True]), 0.001)
    below = certified_accuracy_curve([grid], np.array([np.nextafter(grid, 0)]), np.array([True]), 0.001)
    assert (on.certified_accuracy[0], below.certified_accuracy[0]) == (1, 0)


def test_the_order_of_images_and_radii_does_not_matter() -> None:
    shuffle = np.array([3, 5, 0, 2, 4, 1])
    one = certified_accuracy_curve([0.5, 0.0], RADIUS[shuffle], CORRECT[shuffle], 0.001)
    other = certified_accuracy_curve([0.0, 0.5], RADIUS, CORRECT, 0.001)
    assert one.certified_accuracy.tolist() == other.certified_accuracy.tolist()[::-1]


@pytest.mark.parametrize("images", [1, 2, 7, 200])
def test_intervals_are_clopper_pearson(images: int) -> None:
    for certified in sorted({0, 1, images // 2, images - 1, images}):
        correct = np.arange(images) < certified
        curve = certified_accuracy_curve([0.1], np.where(correct, 1.0, 0.0), correct, 0.001)
        exact = binomtest(certified, images).proportion_ci(0.95, method="exact")
        assert curve.ci_low[0] == pytest.approx(exact.low, abs=1e-12)
        assert curve.ci_high[0] == pytest.approx(exact.high, abs=1e-12)
        assert curve.ci_low[0] <= curve.certified_accuracy[0] <= curve.ci_high[0]


def test_edges_of_the_interval_are_exact() -> None:
    none = certified_accuracy_curve([2.0], RADIUS, CORRECT, 0.001)
    every = certified_accuracy_curve([0.0], RADIUS, np.ones(6, bool), 0.001)
    assert none.ci_low[0] == 0
    assert none.ci_high[0] == pytest.approx(1 - 0.025 ** (1 / 6), abs=1e-14)
    assert every.ci_high[0] == 1
    assert every.ci_low[0] == pytest.approx(0.025 ** (1 / 6), abs=1e-14)


@pytest.mark.parametrize(
    ("images", "alpha"),
    [(0, 0.1), (1, 1e-3), (9, 1e-50), (10, 1e-3), (11, 1e-3), (200, 1e-3), (500, 1e-3), (10_000, 1e-3), (500, 0.05)],
)
def test_allowed_failures_are_the_fewest_that_suffice(images: int, alpha: float) -> None:
    allowed = failed_certificates(images, alpha)
    with mpmath.workdps(40):
        p = mpmath.mpf(alpha)
        terms = [mpmath.binomial(images, j) * p**j * (1 - p) ** (images - j) for j in range(allowed + 1)]
        assert mpmath.fsum(terms) >= 1 - mpmath.mpf(RHO)
        assert mpmath.fsum(terms[:-1]) < 1 - mpmath.mpf(RHO)


def test_guaranteed_share_takes_them_off_and_stops_at_zero() -> None:
    images, alpha = 500, 0.001
    allowed = failed_certificates(images, alpha)
    assert allowed == 3
    radius = np.where(np.arange(images) < 400, 1.0, 0.0)
    radius[:2] = 2.0
    curve = certified_accuracy_curve([0.5, 1.5, 2.5], radius, radius > 0, alpha)
    assert curve.guaranteed_low.tolist() == [397 / 500, 0, 0]


def test_average_certified_radius_counts_wrong_images_as_zero() -> None:
    assert average_certified_radius(RADIUS, CORRECT) == pytest.approx((0.3 + 0.5 + 0.5 + 1.2) / 6, rel=1e-15)
    assert average_certified_radius(RADIUS, np.zeros(6, bool)) == 0


def test_acr_is_the_area_under_the_curve() -> None:
    grid = np.linspace(0, 1.5, 15_001)
    curve = certified_accuracy_curve(grid, RADIUS, CORRECT, 0.001)
    area = np.trapezoid(curve.certified_accuracy, grid)
    assert area == pytest.approx(average_certified_radius(RADIUS, CORRECT), abs=2e-4)


def test_the_curve_never_rises() -> None:
    rng = np.random.default_rng(0)
    radius = rng.exponential(size=300)
    curve = certified_accuracy_curve(np.linspace(0, 4, 50), radius, rng.random(300) < 0.8, 0.001)
    for column in (curve.certified_accuracy, curve.ci_low, curve.ci_high, curve.guaranteed_low):
        assert np.all(np.diff(column) <= 0)


def test_no_images_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        certified_accuracy_curve([0.0], np.empty(0), np.empty(0, bool), 0.001)
