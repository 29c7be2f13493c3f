"""Radii against an attack search in the half-space model: never above the shortest perturbation that flips the vote.

Bounds are handed to the radius rules with the slack that `lower_quantile` always takes, so that nothing has to be
tolerated: an attack found at exactly the certified length would fail the test.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr

from drs_ray.certificates.bounds import QUANTILE_SLACK
from drs_ray.certificates.radius import cross_pairing_radius, margins, mean_radius, probit_radius
from tests.statistics.half_spaces import shortest_flip

Floats = NDArray[np.float64]
IMAGES = 120
SIGMAS = {1: (0.5,), 2: (0.36, 0.36), 3: (0.25, 0.5, 1.0), 4: (0.5, 0.5, 0.5, 0.5)}


def some_bounds(sub_images: int, rivals: bool, seed: int = 1) -> tuple[Floats, Floats]:
    """a and b [IMAGES, K]: a third alike on all sub-images, a third lopsided, a third with one that votes against A."""
    rng = np.random.default_rng(seed + sub_images)
    a = rng.uniform(-1.5, 3.5, (IMAGES, sub_images))
    third = IMAGES // 3
    a[:third] = rng.uniform(0, 3.5, (third, 1)) + rng.uniform(-0.3, 0.3, (third, sub_images))
    a[third : 2 * third, 0] = rng.uniform(2.5, 3.5, third)
    a[2 * third :, -1] = rng.uniform(-1.5, -0.1, IMAGES - 2 * third)
    b = -a - (rng.exponential(0.7, a.shape) if rivals else 0.0)
    return a, b


def certified(rule: Callable[[Floats, Floats], Floats], a: Floats, b: Floats) -> Floats:
    """The radius that a rule certifies from bounds with their slack, 0 where it abstains."""
    return np.maximum(rule(a - QUANTILE_SLACK, b + QUANTILE_SLACK), 0.0)


@pytest.mark.parametrize("weighted", [False, True], ids=["equal", "weighted"])
@pytest.mark.parametrize("rivals", [False, True], ids=["p_A", "rivals"])
@pytest.mark.parametrize("sub_images", [1, 2, 3, 4])
def test_probit_radius_is_the_shortest_flip(sub_images: int, rivals: bool, weighted: bool) -> None:
    a, b = some_bounds(sub_images, rivals)
    sigmas, weights = SIGMAS[sub_images], np.array([1.0, 3.0, 0.5, 2.0])[:sub_images] if weighted else None
    radius = certified(lambda a, b: probit_radius(margins(a, b, sigmas), weights), a, b)
    true = shortest_flip("probit", a, b, sigmas, weights)
    assert np.all(radius <= true)
    some = radius > 0.01
    assert some.sum() > IMAGES / 4
    assert np.all(true[some] - radius[some] <= 1e-6)  # parallel half-spaces attain it


@pytest.mark.parametrize("sigmas", [(0.5, 0.5), (1.0, 0.25), (0.2, 0.9)], ids=str)
def test_mean_radius_from_p_a_alone_is_the_shortest_flip(sigmas: tuple[float, float]) -> None:
    a, b = some_bounds(2, rivals=False)
    radius = certified(lambda a, b: mean_radius(a, sigmas), a, b)
    true = shortest_flip("mean", a, b, sigmas)
    assert np.all(radius <= true)
    some = radius > 0.01
    assert some.sum() > IMAGES / 4
    assert np.all(true[some] - radius[some] <= 1e-6)


@pytest.mark.parametrize("sigmas", [(0.7,), (0.5, 0.5), (1.0, 0.25), (0.2, 0.9)], ids=str)
def test_cross_pairing_is_never_above_the_shortest_flip(sigmas: tuple[float, ...]) -> None:
    a, b = some_bounds(len(sigmas), rivals=True)
    radius = certified(lambda a, b: cross_pairing_radius(a, b, sigmas), a, b)
    true = shortest_flip("mean", a, b, sigmas)
    assert np.all(radius <= true)
    assert (radius > 0.01).sum() > IMAGES / 4
    b = -a + (a + b)[:, :1]  # a_1 + b_1 = a_2 + b_2: exact there
    radius = certified(lambda a, b: cross_pairing_radius(a, b, sigmas), a, b)
    true = shortest_flip("mean", a, b, sigmas)
    assert np.all(radius <= true)
    some = radius > 0.01
    assert some.sum() > IMAGES / 4
    assert np.all(true[some] - radius[some] <= 1e-6)


def test_for_equal_sigmas_probit_is_at_least_cross_pairing_is_at_least_p_a_alone() -> None:
    a, b = some_bounds(2, rivals=True)
    for sigmas in ((0.5, 0.5), (1.0, 0.25)):
        crossed, alone = cross_pairing_radius(a, b, sigmas), mean_radius(a, sigmas)
        assert np.all(crossed >= alone)
        assert np.any(crossed > 1.1 * np.abs(alone))
    probit, crossed = probit_radius(margins(a, b, (0.5, 0.5))), cross_pairing_radius(a, b, (0.5, 0.5))
    assert np.all(probit >= crossed - 1e-14)
    assert np.any(probit > 1.1 * np.abs(crossed))


# Tests of the test: rules from published code, and formulas used where they do not hold, are caught.


def test_the_square_root_rule_is_caught() -> None:
    """docs/theory.md 9: sqrt(R_1^2 + R_2^2), negative parts clipped or not, by either vote."""
    a, b = some_bounds(2, rivals=False)
    sigmas = SIGMAS[2]
    printed = certified(lambda a, b: np.linalg.norm(np.maximum(margins(a, b, sigmas), 0), axis=-1), a, b)
    for vote in ("probit", "mean"):
        true = shortest_flip(vote, a, b, sigmas)
        assert np.mean(printed > true) > 0.8
        assert np.max(printed - true) > 0.3


def test_clipped_margins_are_caught() -> None:
    """docs/theory.md 9."""
    a, b = some_bounds(2, rivals=False)
    printed = certified(lambda a, b: probit_radius(np.maximum(margins(a, b, SIGMAS[2]), 0)), a, b)
    assert np.max(printed - shortest_flip("probit", a, b, SIGMAS[2])) > 0.3


@pytest.mark.parametrize(("a", "by_attack"), [(2.0, 4.0), (3.0, 5.94), (3.8, 7.33)])
def test_the_linear_rule_for_the_mean_vote_of_four_is_caught(a: float, by_attack: float) -> None:
    """docs/theory.md 10: attacking some of the sub-images is cheaper than the formula's equal parts."""
    bounds = np.full((1, 4), a)
    linear = certified(lambda a, b: a.sum(axis=-1) / np.linalg.norm([1, 1, 1, 1]), bounds, -bounds)[0]
    true = shortest_flip("mean", bounds, -bounds, SIGMAS[4], rounds=20, directions=256)[0] / 0.5
    assert true == pytest.approx(by_attack, abs=5e-3)
    if a > 2:
        assert linear > true


def test_swapping_the_pairs_of_cross_pairing_is_caught() -> None:
    """min(a_k - b_k) instead of min(a_1 - b_2, a_2 - b_1) is no certificate of the mean vote; nor is the maximum."""
    a, b = some_bounds(2, rivals=True)
    cost = np.linalg.norm([2, 2])
    true = shortest_flip("mean", a, b, (0.5, 0.5))
    assert np.any(certified(lambda a, b: (a - b[:, ::-1]).max(axis=1) / cost, a, b) > true)
    assert np.any(certified(lambda a, b: (a - b).max(axis=1) / cost, a, b) > true)


def test_the_search_finds_what_is_known() -> None:
    """One sub-image: the distance to the plane. And half-spaces that A does not win: nothing to flip."""
    a = np.array([[1.3], [-0.2]])
    assert shortest_flip("mean", a, -a, [0.5]) == pytest.approx([0.65, 0.0], abs=1e-12)
    assert ndtr(1.3 - 0.65 / 0.5) == 0.5
