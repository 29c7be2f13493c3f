"""Radii from bounds: the theorem's values, and what published code gets wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from drs_ray.certificates.radius import margins, mean_radius, probit_radius

steady = settings(derandomize=True, deadline=None, database=None, max_examples=200)
quantiles = st.floats(-4, 6)
sigmas_of = st.floats(0.05, 4)


def p_a_only(a: list[float], sigmas: list[float] | None = None, weights: list[float] | None = None) -> float:
    """The probit radius where only the selected class is bounded."""
    bounds = np.array(a)
    return float(probit_radius(margins(bounds, -bounds, sigmas or [1.0] * len(a)), weights))


@pytest.mark.parametrize(("a", "radius"), [([2, -0.5], 1.0607), ([1, 1, 1, 1], 2.0), ([3, 1, 0.5, -0.2], 2.15)])
def test_check_values_of_the_probit_vote(a: list[float], radius: float) -> None:
    assert p_a_only(a) == pytest.approx(radius, abs=5e-5)
    assert p_a_only(a) == pytest.approx(sum(a) / np.sqrt(len(a)), rel=1e-14)


def test_check_value_with_rivals() -> None:
    margin = margins(np.array([1, 0.5]), np.array([-2.0, -1]), [1.0, 1.0])
    assert probit_radius(margin) == pytest.approx(1.5910, abs=5e-5)


def test_one_sub_image_is_cohen() -> None:
    p_a, p_b, sigma = 0.93, 0.04, 0.25
    margin = margins(ndtri(np.array([p_a])), ndtri(np.array([p_b])), [sigma])
    assert probit_radius(margin) == pytest.approx(sigma / 2 * (ndtri(p_a) - ndtri(p_b)), rel=1e-14)
    assert p_a_only([ndtri(p_a)], [sigma]) == pytest.approx(sigma * ndtri(p_a), rel=1e-14)
    assert mean_radius(ndtri(np.array([p_a])), [sigma]) == pytest.approx(sigma * ndtri(p_a), rel=1e-14)


def test_equal_sigmas_give_the_drs_theorem() -> None:
    a, sigma = ndtri(np.array([0.97, 0.81])), 0.5
    theorem = sigma / np.sqrt(2) * a.sum()  # Xia et al. 2024
    assert p_a_only(list(a), [sigma, sigma]) == pytest.approx(theorem, rel=1e-14)
    assert mean_radius(a, [sigma, sigma]) == pytest.approx(theorem, rel=1e-14)


@pytest.mark.parametrize(
    ("p", "true", "square_root", "clipped"),
    [((0.95, 0.6), 1.342, 1.664, 1.342), ((0.99, 0.3), 1.274, 2.326, 1.645)],
)
def test_the_published_rules_are_larger_and_wrong(
    p: tuple[float, float], true: float, square_root: float, clipped: float
) -> None:
    """docs/theory.md 9. Which one is right is decided by an attack on half-spaces, not by a formula."""
    a = ndtri(np.array(p))
    ours = p_a_only(list(a))
    assert ours == pytest.approx(true, abs=5e-4)
    assert np.sqrt((np.maximum(a, 0) ** 2).sum()) == pytest.approx(square_root, abs=5e-4)
    assert np.maximum(a, 0).sum() / np.sqrt(2) == pytest.approx(clipped, abs=5e-4)
    assert ours < square_root
    for factor, survives in ((1 - 1e-9, True), (1 + 1e-9, False)):
        moved = a - factor * ours / np.sqrt(2)  # along the normals, in equal parts
        assert (moved.sum() > 0) == survives  # probit vote
        assert (ndtr(moved).sum() > 1) == survives  # mean vote


def test_a_sub_image_that_votes_against_subtracts() -> None:
    assert p_a_only([2.0, -0.5]) == pytest.approx(1.5 / np.sqrt(2), rel=1e-14)
    assert p_a_only([2.0, -0.5]) < p_a_only([2.0, 0.0])
    assert p_a_only([0.5, -2.0]) < 0
    assert margins(np.array([-0.5]), np.array([0.5]), [2.0])[0] == -1.0
    assert p_a_only([-np.inf, 5.0]) == -np.inf


def test_unequal_sigmas() -> None:
    a = np.array([1.5, 0.8])
    assert p_a_only(list(a), [1.0, 0.5]) == pytest.approx((1.5 + 0.4) / np.sqrt(2), rel=1e-14)
    assert mean_radius(a, [1.0, 0.5]) == pytest.approx(2.3 / np.sqrt(1 + 4), rel=1e-14)


def test_mean_vote_of_three_is_refused() -> None:
    with pytest.raises(ValueError, match=r"K = 3 > 2; use the probit vote"):
        mean_radius(np.array([3.8, 3.8, 3.8]), [1.0, 1.0, 1.0])


def test_mean_vote_formula_would_be_wrong_beyond_two() -> None:
    """K = 4, all a = 3.8: an attack on three sub-images succeeds below the linear formula's 7.6."""
    a = 3.8
    spent = np.sqrt(3) * 7.4 / np.sqrt(3) * np.array([1, 1, 1, 0]) / np.sqrt(3)
    assert np.linalg.norm(spent) < 4 * a / 2
    assert ndtr(a - spent).sum() < 2  # the rival, 1 - p each, has more


@pytest.mark.parametrize("weights", [[2.0], [1.0, 1.0, 1.0], [1.0, 0.0], [1.0, -1.0], [1.0, np.inf], [1.0, np.nan]])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    """One weight for two sub-images would broadcast, and make the radius sqrt 2 too large."""
    with pytest.raises(ValueError, match="weights must be 2 positive numbers"):
        probit_radius(np.array([1.0, 1.0]), weights)


@pytest.mark.parametrize("sigmas", [[1.0], [1.0, 1.0, 1.0], [1.0, 0.0], [1.0, -1.0]])
def test_sigmas_that_do_not_fit_are_refused(sigmas: list[float]) -> None:
    a = np.array([1.0, 1.0])
    with pytest.raises(ValueError, match="sigmas must be 2 positive numbers"):
        margins(a, -a, sigmas)
    with pytest.raises(ValueError, match="sigmas must be 2 positive numbers"):
        mean_radius(a, sigmas)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e-3, 7.0, 1e170, 1e300])
def test_the_length_of_the_weights_does_not_matter(scale: float) -> None:
    margin = np.array([1.3, -0.4])
    assert probit_radius(margin, [scale, 2 * scale]) == pytest.approx(probit_radius(margin, [1, 2]), rel=1e-14)


@steady
@given(st.lists(st.tuples(quantiles, quantiles, sigmas_of, st.floats(0.1, 10)), min_size=1, max_size=6), st.randoms())
def test_order_of_the_sub_images_does_not_matter(parts: list[tuple[float, ...]], random: object) -> None:
    def radius(rows: list[tuple[float, ...]]) -> float:
        a, b, sigmas, weights = (np.array(column) for column in zip(*rows, strict=True))
        return float(probit_radius(margins(a, b, sigmas), weights))

    shuffled = list(parts)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert radius(shuffled) == pytest.approx(radius(parts), rel=1e-12, abs=1e-12)


@steady
@given(st.lists(st.tuples(quantiles, sigmas_of, st.floats(0.1, 10)), min_size=1, max_size=6), st.floats(0, 2))
def test_radius_grows_with_every_bound(parts: list[tuple[float, ...]], more: float) -> None:
    a, sigmas, weights = (np.array(column) for column in zip(*parts, strict=True))
    here = probit_radius(margins(a, -a, sigmas), weights)
    for k in range(len(a)):
        better = a.copy()
        better[k] += more
        assert probit_radius(margins(better, -better, sigmas), weights) >= here
        assert probit_radius(margins(better, -a, sigmas), weights) >= here  # a rival's bound left as it was


@steady
@given(st.lists(st.tuples(quantiles, sigmas_of, st.floats(0.1, 10)), min_size=1, max_size=6), st.integers(0, 2**32 - 1))
def test_no_perturbation_inside_the_radius_flips_half_spaces(parts: list[tuple[float, ...]], seed: int) -> None:
    """Half-spaces attain the Neyman-Pearson bounds: the lead after the worst split of a norm, by random search."""
    a, sigmas, weights = (np.array(column) for column in zip(*parts, strict=True))
    radius = float(probit_radius(margins(a, -a, sigmas), weights))
    assume(radius > 1e-6)
    directions = np.abs(np.random.default_rng(seed).standard_normal((500, len(a))))
    directions = np.vstack([directions, weights])  # the last is the worst
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def lead(length: float) -> np.ndarray:
        return ((a - length * directions / sigmas) * sigmas * weights).sum(axis=1)

    assert np.all(lead(radius * (1 - 1e-9)) > 0)
    assert lead(radius * (1 + 1e-9))[-1] < 0


@steady
@given(quantiles, quantiles, sigmas_of, sigmas_of, st.integers(0, 2**32 - 1))
def test_no_perturbation_inside_the_mean_radius_flips_half_spaces(
    a_1: float, a_2: float, sigma_1: float, sigma_2: float, seed: int
) -> None:
    a, sigmas = np.array([a_1, a_2]), np.array([sigma_1, sigma_2])
    radius = float(mean_radius(a, sigmas))
    assume(radius > 1e-6)
    directions = np.abs(np.random.default_rng(seed).standard_normal((500, 2)))
    directions = np.vstack([directions, 1 / sigmas])
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def wins(length: float) -> np.ndarray:
        after = a - length * directions / sigmas
        return ndtr(after[:, 0]) > ndtr(-after[:, 1])  # p_1 + p_2 > 1 without the rounding of the sum

    assert wins(radius * (1 - 1e-9)).all()
    assert not wins(radius * (1 + 1e-9))[-1]


@steady
@given(quantiles, quantiles, sigmas_of)
def test_both_votes_agree_for_equal_sigmas(a_1: float, a_2: float, sigma: float) -> None:
    a = np.array([a_1, a_2])
    assert mean_radius(a, [sigma, sigma]) == pytest.approx(p_a_only([a_1, a_2], [sigma, sigma]), rel=1e-12, abs=1e-12)


def test_images_are_independent_rows() -> None:
    a = np.array([[1.0, 2.0], [-1.0, 0.5], [3.0, 3.0]])
    together = probit_radius(margins(a, -a, [0.5, 1.0]), [1.0, 2.0])
    assert together.shape == (3,)
    assert [p_a_only(list(row), [0.5, 1.0], [1.0, 2.0]) for row in a] == pytest.approx(list(together), rel=1e-14)
