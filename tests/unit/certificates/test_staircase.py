"""The staircase: its missed area in exact arithmetic, its check values from below, and its limit."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from scipy.optimize import brentq

from drs_ray.certificates import confidence
from drs_ray.certificates.certify import Rule, certified_radii
from drs_ray.certificates.confidence import Boxes, level_boxes, missed_area

ALPHAS = [*np.logspace(-50, -4, 24), 1e-3, 0.00137, 0.01, 0.05, 0.1, 0.25, 0.3, 0.4999, 0.5]


def exact_missed_area(*rules: Boxes) -> Fraction:
    """P(two independent uniforms leave the boxes of some rule), as a fraction of the floats as they are.

    By strips of the first uniform: where it lies between two levels, the second must reach the least level of the boxes
    that are open to it, for every rule.
    """
    edges = sorted({Fraction(float(u)) for boxes in rules for u in boxes[:, 0]} | {Fraction(1)})
    covered = Fraction(0)
    for left, right in itertools.pairwise(edges):
        floors = [[Fraction(float(v)) for u, v in boxes if Fraction(float(u)) <= left] for boxes in rules]
        covered += (right - left) * (1 - max(min(floor, default=Fraction(1)) for floor in floors))
    return 1 - covered


@pytest.mark.parametrize("alpha", ALPHAS, ids="{:.3g}".format)
def test_the_missed_area_is_at_most_alpha_exactly(alpha: float) -> None:
    boxes = level_boxes("staircase", alpha, 2)
    area = exact_missed_area(boxes)
    assert area <= Fraction(alpha)
    assert area >= Fraction(alpha) * (1 - Fraction(1, 10**8))  # and nothing is given away
    assert missed_area(boxes) == pytest.approx(float(area), rel=1e-12)
    assert boxes.shape == (confidence.STAIRCASE_BOXES, 2)
    assert np.all((boxes > 0) & (boxes < 1))
    assert np.all(np.diff(boxes[:, 0]) > 0)
    assert np.all(np.diff(boxes[:, 1]) < 0)


@pytest.mark.parametrize("alpha", [1e-50, 1e-3, 0.5])
def test_the_boxes_are_symmetric_up_to_rounding(alpha: float) -> None:
    """v_i = c^((i+1)/J) = u_(J-1-i): swapping the sub-images changes nothing but the last digits."""
    boxes = level_boxes("staircase", alpha, 2)
    assert boxes[::-1, ::-1] == pytest.approx(boxes, rel=1e-12)


@pytest.mark.parametrize("alpha", [1e-20, 1e-3, 0.05, 0.3])
def test_many_boxes_are_fishers_region(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """{U_1 U_2 > c} with c (1 - ln c) = alpha; c = 9.77e-5 at alpha = 0.001."""
    fisher = math.exp(brentq(lambda x: math.exp(x) * (1 - x) - alpha, math.log(alpha) - 20, math.log(alpha)))
    if alpha == 1e-3:
        assert fisher == pytest.approx(9.77e-5, abs=5e-8)
    above = []
    for count in (24, 240, 2400):
        monkeypatch.setattr(confidence, "STAIRCASE_BOXES", count)
        boxes = confidence._staircase.__wrapped__(alpha)
        assert len(boxes) == count
        least = boxes[0, 0]
        assert missed_area(boxes) == pytest.approx(least * (1 + count * (1 - least ** (1 / count))), rel=1e-9)
        above.append(least / fisher - 1)
    assert above[0] > above[1] > above[2] > 0  # corners inside the hyperbola: a larger c than the limit's
    assert above[1] == pytest.approx(above[0] / 10, rel=0.5)
    assert above[2] == pytest.approx(above[1] / 10, rel=0.1)


@pytest.mark.parametrize(
    ("k_1", "k_2", "n", "printed"),
    [
        (100_000, 100_000, 100_000, 7.8100),
        (99_000, 99_000, 100_000, 4.5968),
        (100_000, 90_000, 100_000, 5.0282),
        (1000, 1000, 1000, 5.1942),
        (900, 350, 1000, 0.6669),
    ],
)
@pytest.mark.parametrize("vote", ["probit", "mean"])
def test_check_values_from_below(k_1: int, k_2: int, n: int, printed: float, vote: str) -> None:
    """docs/theory.md 10, a_1 + a_2 at alpha = 0.001; printed with four digits, so known to 5e-5."""
    votes = np.array([[k_1, k_2]])
    found = certified_radii(votes, np.full_like(votes, n), [1.0, 1.0], Rule(vote, "staircase"), 0.001)
    joint = found.radius[0] * math.sqrt(2)
    assert joint == pytest.approx(printed, abs=6e-5)
    assert joint == pytest.approx(found.a_lower[0].sum(), rel=1e-14)
    if k_1 == k_2 == n:  # p_lower = level^(1/n): every box in 40 digits, and ours is not above the least
        with mpmath.workdps(40):
            boxes = level_boxes("staircase", 0.001, 2)
            assert joint <= min(sum(_all_successes(n, level) for level in box) for box in boxes)


def _all_successes(n: int, level: float) -> mpmath.mpf:
    """Phi^-1(level^(1/n)) = -Phi^-1(q) with q = 1 - level^(1/n)."""
    q = -mpmath.expm1(mpmath.log(mpmath.mpf(float(level))) / n)
    return -mpmath.sqrt(2) * mpmath.erfinv(2 * q - 1)


def test_bonferroni_and_staircase_together_are_no_event_of_probability_alpha() -> None:
    """docs/theory.md 5.8, one event: the bounds behind the larger of two rules' radii fail more often than either's."""
    for alpha in (1e-6, 1e-3, 0.05):
        rules = [level_boxes(name, alpha, 2) for name in ("bonferroni", "staircase")]
        assert all(exact_missed_area(boxes) <= Fraction(alpha) for boxes in rules)
        assert exact_missed_area(*rules) > Fraction(alpha) * Fraction(12, 10)
