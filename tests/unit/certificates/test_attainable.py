"""Radii that counts can give: never below what any of our own rules gives, and exact where the bound of RS is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from drs_ray.certificates.attainable import (
    best_radius,
    is_attained,
    largest_bonferroni_radius,
    largest_radius,
    least_alpha,
    least_samples,
    samples_to_reach,
)
from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule
from drs_ray.certificates.votes import Rivals

steady = settings(derandomize=True, deadline=None, database=None, max_examples=100)


# docs/theory.md 10: -Phi^-1(Q) of the pooled rule, S = 0, and Phi^-1 of the bound of RS, k = n, at alpha = 0.001.
@pytest.mark.parametrize(
    ("sub_images", "samples", "quantile"),
    [(1, 100, 1.50047502412), (1, 100_000, 3.81145656339), (2, 100_000, 3.97944492416), (4, 100_000, 4.14127220316)],
)
def test_check_values(sub_images: int, samples: int, quantile: float) -> None:
    largest = largest_radius([0.5] * sub_images, samples, 0.001)
    assert largest >= 0.5 * np.sqrt(sub_images) * quantile
    assert largest == pytest.approx(0.5 * np.sqrt(sub_images) * quantile, rel=1e-5)


@pytest.mark.parametrize("sigmas", [[0.25], [0.5, 0.5], [0.2, 0.9, 0.4]], ids=str)
@pytest.mark.parametrize(("samples", "alpha"), [(1000, 0.001), (100_000, 0.01)])
def test_what_allows_a_radius_allows_no_more(sigmas: list[float], samples: int, alpha: float) -> None:
    most = largest_radius(sigmas, samples, alpha)
    assert least_alpha(most, sigmas, samples) == pytest.approx(alpha, rel=1e-3)  # `most` is rounded up
    assert samples_to_reach(most, sigmas, alpha) == pytest.approx(samples, rel=1e-3)
    for radius in (0.9 * most, 1.1 * most):
        assert largest_radius(sigmas, samples, least_alpha(radius, sigmas, samples)) == pytest.approx(radius, rel=1e-4)
        found = samples_to_reach(radius, sigmas, alpha)
        assert largest_radius(sigmas, int(found), alpha) <= radius * (1 + 1e-4)
        assert largest_radius(sigmas, int(found) + 1, alpha) >= radius
    assert samples_to_reach(100.0 * max(sigmas), sigmas, alpha) == np.inf


def test_bonferroni_is_where_the_theory_page_has_it() -> None:
    assert largest_bonferroni_radius([1.0, 1.0], 100_000, 0.001) == pytest.approx(5.3567, abs=1e-4)
    assert largest_bonferroni_radius([0.25], 500, 0.01) == largest_radius([0.25], 500, 0.01)


@steady
@given(
    sigmas=st.lists(st.floats(0.05, 2.0), min_size=1, max_size=4) | st.integers(1, 4).map(lambda k: [0.5] * k),
    samples=st.integers(1, 100_000),
    alpha=st.floats(1e-6, 0.25),
    weighted=st.booleans(),
    data=st.data(),
)
def test_no_counts_under_any_rule_give_more(
    sigmas: list[float], samples: int, alpha: float, weighted: bool, data: st.DataObject
) -> None:
    k = len(sigmas)
    failures = data.draw(st.lists(st.integers(0, min(3, samples)), min_size=k, max_size=k))
    votes = np.array([[samples - failed for failed in failures]])
    drawn = np.full_like(votes, samples)
    weights = tuple(data.draw(st.lists(st.floats(0.1, 3), min_size=k, max_size=k))) if weighted else None
    lost = Rivals(np.array([0, 0]), np.array([1, -1]), np.array([failures, [0] * k]), count=9)
    rules = [Rule("probit", "bonferroni", weights, rivals) for rivals in (False, True)]
    rules += [Rule("probit", "staircase", weights, rivals) for rivals in (False, True)]
    if k == 2:
        rules += [Rule("mean", "bonferroni", rivals=rivals) for rivals in (False, True)]
    if k > 1 and len(set(sigmas)) == 1 and weights is None:
        rules.append(Rule(pooled=True))
    for rule in rules:
        radius = certified_radii(
            votes, drawn, sigmas, rule, alpha, rivals=lost, unanimous=np.array([True]) if rule.pooled else None
        ).radius[0]
        assert radius <= largest_radius(sigmas, samples, alpha)
        if rule.confidence == "bonferroni" and not rule.pooled:
            assert radius <= largest_bonferroni_radius(sigmas, samples, alpha)


def test_where_nothing_can_be_certified() -> None:
    assert largest_radius([1.0], 1, 0.25) == 0.0


@pytest.mark.parametrize("samples", [100, 1000, 100_000])
def test_every_radius_of_a_count_is_attained_and_what_lies_between_is_not(samples: int) -> None:
    sigma, alpha = 0.5, 0.001
    counts = np.unique(np.r_[samples - np.arange(samples // 20), np.arange(samples // 2 + 60, samples, 997)])
    radius = np.sort(sigma * lower_quantile(counts, samples, alpha))
    radius = radius[radius > 0]
    assert is_attained(radius, radius, sigma, samples, alpha).all()
    top = np.sort(sigma * lower_quantile(samples - np.arange(20), samples, alpha))
    between = (top[1:] + top[:-1]) / 2
    assert not is_attained(between, between, sigma, samples, alpha).any()
    assert not is_attained(top[-1:] * 1.01, top[-1:] * 1.02, sigma, samples, alpha).any()


@steady
@given(samples=st.integers(1, 300), alpha=st.floats(1e-6, 0.3), low=st.floats(1e-3, 4), width=st.floats(0, 0.5))
def test_against_all_counts(samples: int, alpha: float, low: float, width: float) -> None:
    radii = lower_quantile(np.arange(1, samples + 1), samples, alpha)
    away = np.abs(np.r_[radii - low, radii - low - width]).min() > 1e-4  # ends in doubt are for the test above
    if away:
        found = is_attained(np.array([low]), np.array([low + width]), 1.0, samples, alpha)[0]
        assert found == ((radii >= low) & (radii <= low + width)).any()


def test_counts_multiplied_are_beyond_what_was_drawn() -> None:
    """200 samples treated as 100,000, as in published code: found where the n that was drawn is stated."""
    claimed = lower_quantile(500 * np.arange(1, 201), 100_000, 0.001)
    most = largest_radius([1.0], 200, 0.001)
    assert most == pytest.approx(norm.ppf(0.001 ** (1 / 200)), rel=1e-5)
    assert (claimed > most).sum() == (claimed > 1.8256815624).sum() > 5


@pytest.mark.parametrize(
    ("rule", "sigmas", "alpha", "least"),
    [
        (Rule(), [0.5], 0.001, 10),  # (1/2)^10 < alpha
        (Rule(), [0.5], 0.01, 7),
        (Rule(rivals=True), [0.5], 0.001, 11),
        (Rule(radius=0.25), [0.5], 0.001, 25),
    ],
)
def test_fewer_samples_than_the_least_certify_nothing(
    rule: Rule, sigmas: list[float], alpha: float, least: int
) -> None:
    found = least_samples(rule, sigmas, alpha, 10)
    assert best_radius(rule, sigmas, found, alpha, 10) > 0
    assert best_radius(rule, sigmas, found - 1, alpha, 10) == 0
    assert found == least


@steady
@given(
    st.sampled_from([([0.5], "bonferroni", False), ([0.5] * 2, "staircase", True), ([0.25, 0.5], "staircase", False)]),
    st.booleans(),
    st.integers(1, 60),
    st.sampled_from([0.001, 0.05]),
    st.data(),
)
def test_no_votes_have_a_larger_radius_than_the_best(case, rivals: bool, samples: int, alpha: float, data) -> None:
    sigmas, confidence, pooled = case
    rule, k = Rule(confidence=confidence, rivals=rivals, pooled=pooled), len(sigmas)
    votes = np.array([data.draw(st.lists(st.integers(samples // 2, samples), min_size=k, max_size=k))])
    every = np.full_like(votes, samples)
    rest = Rivals(np.array([0]), np.array([1]), every - votes, 9)
    for unanimous in (False, True):
        radius = certified_radii(
            votes, every, sigmas, rule, alpha, rivals=rest, unanimous=np.array([unanimous])
        ).radius[0]
        assert radius <= best_radius(rule, sigmas, samples, alpha, 10)
