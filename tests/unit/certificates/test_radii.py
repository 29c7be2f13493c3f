"""Counts to certificates: check values, abstention, and what can only make a radius smaller."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.radii import CertifiedRadii, certified_radii
from drs_ray.certificates.rule import Rule

steady = settings(derandomize=True, deadline=None, database=None, max_examples=100)
PROBIT, MEAN = Rule("probit"), Rule("mean")


def certify(
    votes: list[list[int]], n: int, sigmas: list[float], rule: Rule = PROBIT, alpha: float = 1e-3
) -> CertifiedRadii:
    counts = np.array(votes, np.int64)
    return certified_radii(counts, np.full_like(counts, n), sigmas, rule, alpha)


@pytest.mark.parametrize("rule", [PROBIT, MEAN], ids=lambda rule: rule.vote)
@pytest.mark.parametrize(
    ("k_1", "k_2", "n", "joint"),
    [
        (100_000, 100_000, 100_000, 7.5755),
        (99_000, 99_000, 100_000, 4.5754),
        (100_000, 90_000, 100_000, 5.0515),
        (1000, 1000, 1000, 4.8578),
        (900, 350, 1000, 0.5830),
    ],
)
def test_check_values_of_bonferroni(k_1: int, k_2: int, n: int, joint: float, rule: Rule) -> None:
    """docs/theory.md 10: a_1 + a_2 at alpha = 0.001."""
    sigma = 0.5
    radius = certify([[k_1, k_2]], n, [sigma, sigma], rule).radius[0]
    assert radius * np.sqrt(2) / sigma == pytest.approx(joint, abs=6e-5)


@pytest.mark.parametrize(
    ("k", "n", "alpha", "a"),
    [(100, 100, 1e-3, 1.50047502412), (990, 1000, 1e-3, 1.97800958214), (100_000, 100_000, 1e-3, 3.81145656339)],
)
def test_one_sub_image_spends_all_of_alpha(k: int, n: int, alpha: float, a: float) -> None:
    sigma = 0.25
    radius = certify([[k]], n, [sigma], alpha=alpha).radius[0]
    assert radius <= sigma * a
    assert radius >= sigma * (a - 2e-8)


def test_alpha_is_shared_not_spent_twice() -> None:
    """docs/theory.md 9: alpha in full on each half is only 1 - 2 alpha confident."""
    both = certify([[900, 950]], 1000, [1.0, 1.0])
    assert both.a_lower[0].tolist() == lower_quantile([900, 950], 1000, 0.0005).tolist()
    assert both.radius[0] < (lower_quantile([900, 950], 1000, 0.001)).sum() / np.sqrt(2)


def test_where_nothing_is_certified_the_radius_is_zero() -> None:
    result = certify([[60], [50], [0], [61], [100]], 100, [1.0])
    assert result.radius[:4].tolist() == [0, 0, 0, 0]  # 60 of 100: a = -0.148
    assert result.radius[4] > 0
    assert result.margin[2, 0] == -np.inf
    assert not np.isnan(result.margin).any()


def test_a_half_that_votes_against_subtracts() -> None:
    """docs/theory.md 9: clipping at 0 would certify what the good half alone is worth."""
    result = certify([[1000, 350], [1000, 0], [1000, 1000]], 1000, [1.0, 1.0])
    assert result.margin[0, 1] < 0
    assert result.radius[0] == pytest.approx(result.margin[0].sum() / np.sqrt(2), rel=1e-14)
    assert result.radius[0] < result.margin[0, 0] / np.sqrt(2)
    assert result.radius[1] == 0


def test_what_the_radius_follows_from_is_returned() -> None:
    sigmas = [0.5, 0.25]
    result = certify([[990, 900], [800, 700]], 1000, sigmas)
    assert result.a_lower.shape == result.b_upper.shape == result.margin.shape == (2, 2)
    assert result.b_upper.tolist() == (-result.a_lower).tolist()
    assert result.margin == pytest.approx(result.a_lower * sigmas, rel=1e-14)
    assert result.radius == pytest.approx(result.margin.sum(axis=1) / np.sqrt(2), rel=1e-14)


def test_weights_point_the_radius() -> None:
    weights = (3.0, 1.0)
    result = certify([[1000, 700]], 1000, [1.0, 1.0], Rule("probit", weights=weights))
    assert result.radius[0] == pytest.approx((3 * result.margin[0, 0] + result.margin[0, 1]) / np.sqrt(10), rel=1e-14)
    equal = certify([[1000, 700]], 1000, [1.0, 1.0]).radius[0]
    assert result.radius[0] > equal  # the better half weighs more
    assert certify([[700, 1000]], 1000, [1.0, 1.0], Rule("probit", weights=weights)).radius[0] < equal
    assert certify([[1000, 700]], 1000, [1.0, 1.0], Rule("probit", weights=(5.0, 5.0))).radius[0] == pytest.approx(
        equal
    )


def test_many_sub_images() -> None:
    result = certify([[1000] * 4], 1000, [1.0] * 4)
    assert result.radius[0] == pytest.approx(2 * lower_quantile(1000, 1000, 0.001 / 4), rel=1e-14)
    with pytest.raises(ValueError, match="probit"):
        certify([[1000] * 3], 1000, [1.0] * 3, MEAN)


def test_sample_numbers_may_differ() -> None:
    result = certified_radii(np.array([[99, 990]]), np.array([[100, 1000]]), [1.0, 1.0], PROBIT, 0.001)
    assert result.a_lower[0].tolist() == [lower_quantile(99, 100, 0.0005), lower_quantile(990, 1000, 0.0005)]


def test_names_say_everything() -> None:
    assert Rule().name == "probit p_A bonferroni"
    assert Rule("mean").name == "mean p_A bonferroni"
    assert Rule("probit", weights=(1.0, 0.5)).name == "probit p_A bonferroni w=1.0,0.5"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule("median"), "vote must be one of probit, mean, got 'median'"),
        (lambda: Rule("mean", weights=(1.0, 1.0)), "weights apply to the probit vote"),
        (lambda: certify([[5, 5]], 10, [1.0, 1.0], Rule("probit", "sidak")), "confidence must be one of"),
        (lambda: certify([[5, 5]], 10, [1.0, 1.0], alpha=1.5), "alpha must be in"),
        (lambda: certify([[11, 5]], 10, [1.0, 1.0]), "successes"),
        (lambda: certify([[5, 5]], 10, [1.0]), "sigmas"),
        (lambda: certify([[5, 5]], 10, [1.0, 1.0], Rule(weights=(1.0,))), "weights"),
    ],
)
def test_what_does_not_fit_is_refused(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


@steady
@given(
    n=st.integers(1, 10**6),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    sigmas=st.lists(st.floats(0.05, 4), min_size=2, max_size=2),
    alpha=st.floats(1e-9, 0.4),
    rule=st.sampled_from([PROBIT, MEAN, Rule(weights=(1.0, 3.0))]),
)
def test_fewer_votes_or_less_risk_never_enlarge_the_radius(
    n: int, shares: list[float], sigmas: list[float], alpha: float, rule: Rule
) -> None:
    votes = [round(share * n) for share in shares]
    here = certify([votes], n, sigmas, rule, alpha).radius[0]
    assert here >= 0
    assert np.isfinite(here)
    for k in range(2):
        fewer = list(votes)
        fewer[k] = max(0, fewer[k] - 1)
        assert certify([fewer], n, sigmas, rule, alpha).radius[0] <= here
    assert certify([votes], n, sigmas, rule, alpha / 2).radius[0] <= here
    swapped = certify([votes[::-1]], n, sigmas[::-1], rule, alpha).radius[0]
    if rule.weights is None:
        assert swapped == pytest.approx(here, rel=1e-12, abs=1e-12)


@steady
@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=8))
def test_an_image_is_certified_by_its_own_votes(votes: list[tuple[int, int]]) -> None:
    together = certify([list(row) for row in votes], 100, [0.5, 1.0]).radius
    assert together.tolist() == [certify([list(row)], 100, [0.5, 1.0]).radius[0] for row in votes]
