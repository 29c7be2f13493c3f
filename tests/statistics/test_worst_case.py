"""The largest probability that a radius is too large, found by an optimiser over the true probabilities.

A certified radius r that some counts give is wrong where the true radius is below r. So on the surface of true
probabilities at which a rival beats the class just below r, the probability of all counts that give r or more is
maximised; every term is summed exactly. Radii are tested, not bounds: with rivals the bounds need not hold together.
Probit vote, sigma = w = 1; the mean vote's sums are in test_coverage_rules.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, gammaln, ndtr, xlogy

from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule
from tests.statistics.test_coverage_rules import all_rivals, outcomes

Floats = NDArray[np.float64]


def all_radii(n: Sequence[int], classes: int, rule: Rule, alpha: float) -> Floats:
    """Radii of all combinations of outcomes, sigma = 1, selection unanimous: float64 [M_1, ..., M_K]."""
    each = [outcomes(m, classes) for m in n]
    where = np.stack([axis.ravel() for axis in np.indices([len(part) for part in each])], axis=1)
    votes = np.stack([part[where[:, k]] for k, part in enumerate(each)], axis=1)
    samples = np.broadcast_to(np.asarray(n, np.int64), (len(votes), len(n)))
    found = certified_radii(
        votes[:, :, 0],
        samples,
        [1.0] * len(n),
        rule,
        alpha,
        rivals=all_rivals(votes) if rule.rivals else None,
        unanimous=np.ones(len(votes), np.bool_),
    )
    return found.radius.reshape([len(part) for part in each])


def on_the_surface(free: Floats, radius: float, sub_images: int, classes: int) -> Floats:
    """True p [K, C] at which class 1 beats class 0 at distance `radius`, from 3 K - 1 free numbers.

    The margins (a_k - b_k) / 2 add up to radius sqrt(K), and what the two classes leave goes to the others.
    """
    gaps = np.append(free[: sub_images - 1], 2 * radius * np.sqrt(sub_images) - free[: sub_images - 1].sum())
    rest = 0.0 if classes == 2 else free[sub_images - 1 : 2 * sub_images - 1] ** 2  # -(a + b) >= 0: p_a + p_b <= 1
    p_a, p_b = ndtr((gaps - rest) / 2), ndtr((-gaps - rest) / 2)
    left = np.maximum(1 - p_a - p_b, 0.0)
    share = expit(free[2 * sub_images - 1 :])
    others = {2: [], 3: [left], 4: [left * share, left * (1 - share)]}[classes]
    return np.stack([p_a, p_b, *others], axis=1)


def worst_miss(certified: Floats, n: Sequence[int], classes: int, radii: Sequence[float], starts: int = 3) -> float:
    """The largest probability of a radius above the true one, over all p on the surfaces of `radii`."""
    rng = np.random.default_rng(0)
    k, worst = len(n), 0.0
    votes = [outcomes(m, classes) for m in n]
    ways = [gammaln(m + 1) - gammaln(each + 1).sum(axis=1) for m, each in zip(n, votes, strict=True)]

    def chance_of(wrong: Floats, p: Floats) -> float:
        for each, way, truth in zip(votes, ways, p, strict=True):
            wrong = np.tensordot(np.exp(way + xlogy(each, truth).sum(axis=1)), wrong, (0, 0))
        return float(wrong)

    def missed(free: Floats, radius: float, wrong: Floats) -> float:
        return -chance_of(wrong, on_the_surface(free, radius * (1 - 1e-9), k, classes))

    for radius in radii:
        wrong = (certified >= radius).astype(np.float64)
        for start in range(starts):
            gaps = 2 * radius / np.sqrt(k) * (1 + 0.4 * start * rng.standard_normal(k - 1))
            first = np.concatenate([gaps, 0.1 + 0.4 * start * rng.random(k), 3.0 * rng.standard_normal(k)])
            objective = functools.partial(missed, radius=radius, wrong=wrong)
            worst = max(worst, -minimize(objective, first, method="Nelder-Mead", options={"maxfev": 200}).fun)
    return worst


def some_of(certified: Floats, how_many: int) -> Floats:
    """Certified radii from the smallest to the largest, the extremes among them."""
    distinct = np.unique(certified[certified > 0])
    return distinct[np.unique(np.linspace(0, len(distinct) - 1, how_many).astype(int))]


CASES = [
    (Rule("probit", "bonferroni", rivals=True), (20,), 3),
    (Rule("probit", "bonferroni", rivals=True), (10,), 4),
    (Rule("probit", "bonferroni", rivals=True), (9, 9), 3),
    (Rule("probit", "staircase", rivals=True), (9, 9), 3),
    (Rule("probit", "staircase", rivals=True), (5, 12), 3),
    (Rule("probit", "staircase", rivals=True), (6, 6), 4),
    (Rule("probit", "staircase", rivals=True, pooled=True), (9, 9), 3),
    (Rule("probit", "staircase", rivals=True), (8, 8, 8), 3),
    (Rule("probit", "staircase", rivals=True, pooled=True), (8, 8, 8), 3),
    (Rule("probit", "staircase"), (30, 30), 2),
    (Rule("probit", "staircase"), (14, 14, 14), 2),
    (Rule("probit", "staircase", pooled=True), (14, 14, 14), 2),
    (Rule("probit", "staircase"), (8, 8, 8, 8), 2),
    (Rule("probit", "staircase"), (4, 6, 8, 10), 2),
    (Rule("probit", "staircase", pooled=True), (8, 8, 8, 8), 2),
]


@pytest.mark.parametrize("alpha", [0.01, 0.25])
@pytest.mark.parametrize(("rule", "n", "classes"), CASES, ids=lambda value: getattr(value, "name", str(value)))
def test_no_radius_is_too_large_too_often(rule: Rule, n: tuple[int, ...], classes: int, alpha: float) -> None:
    certified = all_radii(n, classes, rule, alpha)
    worst = worst_miss(certified, n, classes, some_of(certified, 6))
    assert worst <= alpha
    assert worst > alpha**2 / 100  # the search finds radii that are too large


@pytest.mark.parametrize("classes", [2, 3])
def test_too_much_of_alpha_is_caught(classes: int) -> None:
    """The same search finds a level above alpha for one sub-image, whose bound spends all of it."""
    n, alpha = (20,), 0.1
    rule = Rule("probit", "bonferroni", rivals=True)
    for spent in (alpha, 1.05 * alpha if classes == 2 else 2.1 * alpha):
        certified = all_radii(n, classes, rule, spent)
        assert (worst_miss(certified, n, classes, some_of(certified, 6)) > alpha) == (spent > alpha)


@pytest.mark.parametrize("sub_images", [2, 3])
def test_bonferroni_levels_that_are_not_shared_are_caught(sub_images: int) -> None:
    """Radii from all of alpha on each sub-image, with the largest margin taken for every one, miss more than alpha."""
    n, alpha = (12,) * sub_images, 0.25
    one = all_radii((12,), 2, Rule("probit"), alpha)
    best = functools.reduce(np.maximum.outer, [one] * sub_images) * np.sqrt(sub_images)  # one margin for all of them
    assert worst_miss(best, n, 2, some_of(best, 6)) > alpha
