"""The auditor's radii: against theory 10, against Arb's own incomplete beta function, and against the certificates'."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from flint import arb, ctx
from scipy.sparse import csr_array

from drs_ray.audit.balls import SLACK, AuditedRule, StageVotes, quantile_lower, radius_lower, staircase_level
from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule
from drs_ray.certificates.stages import doubling_schedule
from drs_ray.certificates.votes import rivals_of

CHECK_VALUES = [
    (100, 100, 0.001, 1.50047502412),
    (60, 100, 0.001, -0.148474219315),
    (990, 1000, 0.001, 1.97800958214),
    (350, 1000, 0.0005, -0.521077125211),
    (90_000, 100_000, 0.0005, 1.26376647386),
    (100_000, 100_000, 0.0005, 3.78775886594),
    (999_999_990, 10**9, 0.001, 5.45757568892),
]
RULES = [
    (sub_images, Rule(vote, confidence, weights, rivals, pooled))
    for sub_images in (1, 2, 3, 4)
    for vote in ("probit", "mean")
    for confidence in ("bonferroni", "staircase")
    for weighted in (False, True)
    for rivals in (False, True)
    for pooled in (False, True)
    if not (vote == "mean" and (sub_images > 2 or weighted)) and not (pooled and (sub_images == 1 or weighted))
    for weights in [tuple(1.0 + 0.3 * k for k in range(sub_images)) if weighted else None]
] + [(9, Rule("probit", "staircase", None, True, True))]


@pytest.mark.parametrize(("k", "n", "level", "expected"), CHECK_VALUES)
def test_check_values(k: int, n: int, level: float, expected: float) -> None:
    assert quantile_lower(k, n, level) == pytest.approx(expected, abs=2e-11)


def test_no_votes_have_no_bound() -> None:
    assert quantile_lower(0, 10, 0.001) == -np.inf


@pytest.mark.parametrize("level", [1e-50, 1e-9, 0.001, 0.3, 0.68])
def test_bounds_are_proved_and_close(level: float) -> None:
    """Arb's incomplete beta function, which the auditor does not use: below the level there, above it just past it."""
    rng = np.random.default_rng(1)
    ctx.prec = 256
    for n in (1, 2, 7, 100, 2000):
        for k in {1, n, *map(int, rng.integers(1, n + 1, 4))}:
            a = quantile_lower(k, n, level)
            ctx.prec = 256
            for shift, below in ((0.0, True), (1e-11 * max(1, abs(a)), False)):
                p = (-(arb(a) + shift) / arb(2).sqrt()).erfc() / 2
                tail = p.beta_lower(k, n - k + 1, regularized=True)
                assert tail <= arb(level) if below else tail > arb(level), (k, n, level)


@pytest.mark.parametrize(
    ("sub_images", "q"), [(1, 0.74056846922624), (2, 0.68578296703962), (4, 0.62100664792895), (16, 0.49812110346419)]
)
def test_levels_of_the_staircase(sub_images: int, q: float) -> None:
    assert staircase_level(sub_images, 0.001) == pytest.approx(q * (1 - 1e-10), rel=1e-13)


@pytest.mark.parametrize(("sub_images", "rule"), RULES, ids=lambda value: getattr(value, "name", value))
def test_no_certificate_is_above_its_proof_or_far_below(sub_images: int, rule: Rule) -> None:
    """Random counts, classes, levels, sigmas and shares of stages."""
    rng = np.random.default_rng([sub_images, *rule.name.encode()])
    for _ in range(6):
        images, classes = 6, int(rng.integers(2, 6))
        samples = int(rng.choice([20, 100, 1000, 5000]))
        alpha = float(rng.choice([0.6, 0.05, 0.001, 1e-6]))
        stages = int(rng.integers(1, 4))
        share = doubling_schedule(samples, stages).shares[0]
        exact = Fraction(1) if stages == 1 else Fraction(1, 5 * (stages - 1))
        sigma = rng.uniform(0.1, 1.5)
        sigmas = tuple([sigma] * sub_images if rule.pooled else rng.uniform(0.1, 1.5, sub_images))
        weak = rng.dirichlet(np.ones(classes), (images, sub_images))
        strong = 0.9 ** rng.integers(0, 60, (images, 1, 1))  # most votes go to class 0, of many images all
        votes = rng.multinomial(samples, weak * strong + np.eye(classes)[0] * (1 - strong))
        unanimous = rng.random(images) < 0.5
        counts = [csr_array(votes[:, k]) for k in range(sub_images)]
        stored = certified_radii(
            votes[:, :, 0],
            np.full((images, sub_images), samples),
            sigmas,
            rule,
            alpha,
            rivals=rivals_of(counts, np.zeros(images, np.int64)) if rule.rivals else None,
            unanimous=unanimous,
            share=share,
        ).radius
        audited = AuditedRule.named(rule.name, sigmas)
        for image in range(images):
            by_class = tuple({c: int(v) for c, v in enumerate(mine) if v} for mine in votes[image])
            ball = radius_lower(
                audited, StageVotes(by_class, samples, exact), 0, classes, alpha, bool(unanimous[image])
            )
            documented = max(float(ball.lower()) - SLACK * audited.scale, 0)
            assert ball.lower() >= stored[image]
            assert stored[image] == pytest.approx(documented, abs=1e-11 * audited.scale)


@pytest.mark.parametrize(
    ("name", "sigmas"),
    [
        ("probit p_A guess", [0.5]),
        ("mean p_A staircase", [0.5] * 3),
        ("mean p_A bonferroni w=1.0,2.0", [0.5, 0.5]),
        ("probit pairs staircase with pooled", [0.5, 0.25]),
        ("probit pairs bonferroni with pooled", [0.5]),
        ("probit p_A bonferroni w=1.0", [0.5, 0.5]),
        ("", [0.5]),
    ],
)
def test_rules_without_a_theorem_are_refused(name: str, sigmas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"named|no radius|pooling"):
        AuditedRule.named(name, sigmas)
