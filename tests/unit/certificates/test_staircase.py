"""The staircase: its missed area in exact arithmetic, its check values from below, and its limit."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import brentq

from drs_ray.certificates import confidence
from drs_ray.certificates.boxes import least_box
from drs_ray.certificates.confidence import Region, level_region
from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule

Boxes = NDArray[np.float64]
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


def exact_miss(region: Region, sub_images: int) -> Fraction:
    """P(K independent uniforms leave all boxes), as a fraction of the floats as they are, by convolution.

    A uniform between level i and the one before needs an index of at least i; a box has room where these add up to no
    more than the total.
    """
    levels = [Fraction(1), *(Fraction(float(level)) for level in region.levels)]
    needs = [before - level for before, level in itertools.pairwise(levels)]
    sums = [Fraction(1)] + [Fraction(0)] * region.total
    for _ in range(sub_images):
        sums = [sum((sums[j - i] * needs[i] for i in range(j + 1)), Fraction(0)) for j in range(region.total + 1)]
    return 1 - sum(sums)


@pytest.mark.parametrize("alpha", ALPHAS, ids="{:.3g}".format)
def test_the_missed_area_is_at_most_alpha_exactly(alpha: float) -> None:
    boxes = level_region("staircase", alpha, 2).boxes(2)[::-1]
    area = exact_missed_area(boxes)
    assert area <= Fraction(alpha)
    assert area >= Fraction(alpha) * (1 - Fraction(1, 10**7))  # and nothing is given away
    assert boxes.shape == (24, 2)
    assert np.all((boxes > 0) & (boxes < 1))
    assert np.all(np.diff(boxes[:, 0]) > 0)
    assert np.all(np.diff(boxes[:, 1]) < 0)
    assert exact_miss(level_region("staircase", alpha, 2), 2) == area  # two ways to the same number


@pytest.mark.parametrize("alpha", [1e-50, 1e-20, 1e-6, 1e-3, 0.00137, 0.05, 0.5, 0.9])
@pytest.mark.parametrize("sub_images", [1, 3, 4, 9, 16])
def test_the_missed_volume_of_more_sub_images_is_at_most_alpha_exactly(sub_images: int, alpha: float) -> None:
    region = level_region("staircase", alpha, sub_images)
    assert len(region.levels) == sub_images + 22
    assert Fraction(alpha) * (1 - Fraction(1, 10**7)) <= exact_miss(region, sub_images) <= Fraction(alpha)


def test_levels_are_those_of_the_check_values() -> None:
    """docs/theory.md 10, in 40 digits; ours are below by the solver's margin."""
    for sub_images, q in ((1, 0.74056846922624), (2, 0.68578296703962), (4, 0.62100664792895), (9, 0.54353953857946)):
        levels = level_region("staircase", 0.001, sub_images).levels
        assert levels[0] == pytest.approx(q, rel=2e-10)
        assert levels[0] < q * (1 - 0.9e-10)
        assert levels == pytest.approx(levels[0] ** np.arange(1, sub_images + 23), rel=1e-12)


def test_all_boxes_one_by_one() -> None:
    region = Region(np.array([0.5, 0.25, 0.125]))
    assert region.boxes(1).tolist() == [[0.125]]
    assert region.boxes(2).tolist() == [[0.5, 0.125], [0.25, 0.25], [0.125, 0.5]]
    assert region.boxes(3).prod(axis=1).tolist() == [2.0**-5] * region.count(3)
    assert region.count(3) == 6
    assert level_region("staircase", 0.001, 4).count(4) == 3276


@pytest.mark.parametrize("weights", [None, (1.0, 3.0, 0.5, 2.0)], ids=str)
@pytest.mark.parametrize("sub_images", [1, 2, 3, 4])
def test_the_least_box_is_the_least_of_all_boxes(sub_images: int, weights: tuple[float, ...] | None) -> None:
    """The min-plus product against every box, for bounds that fall with the level as bounds do, and for some -inf."""
    rng = np.random.default_rng(sub_images)
    levels, pairs = 7, 50
    a = np.sort(rng.normal(size=(pairs, sub_images, levels)), axis=-1)[..., ::-1].copy()
    b = np.minimum(-a - rng.exponential(0.3, a.shape), -a)
    a[0, 0, 3:], b[0, 0, 3:] = -np.inf, np.inf
    sigmas, weights = (0.5, 1.0, 0.25, 2.0)[:sub_images], weights and weights[:sub_images]
    w = np.array(weights or np.ones(sub_images))
    index = least_box(a, b, sigmas, "probit", weights)
    assert np.all(index.sum(axis=1) == levels - 1)
    every = [i for i in itertools.product(range(levels), repeat=sub_images) if sum(i) == levels - 1]

    def radius(pair: int, box: tuple[int, ...]) -> float:
        m = [sigmas[k] * (a[pair, k, i] - b[pair, k, i]) / 2 for k, i in enumerate(box)]
        return float(w @ m / np.linalg.norm(w))

    for pair in range(pairs):
        least = min(radius(pair, box) for box in every)
        assert radius(pair, tuple(index[pair])) == pytest.approx(least, abs=1e-13)


@pytest.mark.parametrize("alpha", [1e-50, 1e-3, 0.5])
def test_the_boxes_are_symmetric_up_to_rounding(alpha: float) -> None:
    """v_i = c^((i+1)/J) = u_(J-1-i): swapping the sub-images changes nothing but the last digits."""
    boxes = level_region("staircase", alpha, 2).boxes(2)
    assert boxes[::-1, ::-1] == pytest.approx(boxes, rel=1e-12)


@pytest.mark.parametrize("alpha", [1e-20, 1e-3, 0.05, 0.3])
def test_many_boxes_are_fishers_region(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """{U_1 U_2 > c} with c (1 - ln c) = alpha; c = 9.77e-5 at alpha = 0.001."""
    fisher = math.exp(brentq(lambda x: math.exp(x) * (1 - x) - alpha, math.log(alpha) - 20, math.log(alpha)))
    if alpha == 1e-3:
        assert fisher == pytest.approx(9.77e-5, abs=5e-8)
    above = []
    for count in (24, 240, 2400):
        monkeypatch.setattr(confidence, "EXTRA_LEVELS", count - 2)
        levels = confidence.staircase.__wrapped__(alpha, 2).levels
        assert len(levels) == count
        least = levels[-1]
        assert least * (1 + count * (1 - least ** (1 / count))) == pytest.approx(alpha, rel=1e-6)
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
            boxes = level_region("staircase", 0.001, 2).boxes(2)
            assert joint <= min(sum(_all_successes(n, level) for level in box) for box in boxes)


def _all_successes(n: int, level: float) -> mpmath.mpf:
    """Phi^-1(level^(1/n)) = -Phi^-1(q) with q = 1 - level^(1/n)."""
    q = -mpmath.expm1(mpmath.log(mpmath.mpf(float(level))) / n)
    return -mpmath.sqrt(2) * mpmath.erfinv(2 * q - 1)


def test_bonferroni_and_staircase_together_are_no_event_of_probability_alpha() -> None:
    """docs/theory.md 5.8, one event: the bounds behind the larger of two rules' radii fail more often than either's."""
    for alpha in (1e-6, 1e-3, 0.05):
        rules = [level_region(name, alpha, 2).boxes(2) for name in ("bonferroni", "staircase")]
        assert all(exact_missed_area(boxes) <= Fraction(alpha) for boxes in rules)
        assert exact_missed_area(*rules) > Fraction(alpha) * Fraction(12, 10)
