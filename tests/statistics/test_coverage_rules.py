"""Coverage of every rule, summed exactly over all counts of all classes on all sub-images. No sampling, no tolerance.

A certificate misses where its radius is above the true radius of the vote in the half-space model at the true
probabilities. p_A rules see two classes, rivals three; the pooled rule is taken through its selection phase.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import gammaln, ndtr, ndtri, xlogy
from scipy.stats import binom

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.confidence import level_region
from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule
from drs_ray.certificates.votes import Rivals
from drs_ray.counts.history import Counts
from drs_ray.results.selected_votes import selected_votes
from tests.statistics.half_spaces import shortest_flip

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
CLASSES = 3


@functools.cache
def outcomes(n: int, classes: int = CLASSES) -> Integers:
    """All ways to give n votes to the classes: int64 [M, C]."""
    rows = [row for row in itertools.product(range(n + 1), repeat=classes - 1) if sum(row) <= n]
    first = np.array(rows, np.int64).reshape(-1, classes - 1)
    return np.column_stack([first, n - first.sum(axis=1)])


def chances(n: int, p: Floats) -> Floats:
    """Multinomial probabilities of `outcomes` at true p [G, C]: float64 [G, M]."""
    votes = outcomes(n, p.shape[1])
    ways = gammaln(n + 1) - gammaln(votes + 1).sum(axis=1)
    return np.asarray(np.exp(ways + xlogy(votes[None], p[:, None]).sum(axis=-1)))


def all_rivals(votes: Integers) -> Rivals:
    """Votes [N, K, C] with class 0 selected: every other class of every image."""
    images, _, classes = votes.shape
    image, rival = (axis.ravel() for axis in np.mgrid[0:images, 1:classes])
    return Rivals(image, rival, votes[image, :, rival], classes - 1)


def radii_of_all_counts(
    n: Sequence[int], rule: Rule, sigmas: Sequence[float], alpha: float, share: float = 1.0
) -> Floats:
    """Certified radii for every combination of outcomes: float64 [M_1, .., M_K]."""
    each = [outcomes(m) for m in n]
    where = np.stack([axis.ravel() for axis in np.indices([len(part) for part in each])], axis=1)
    votes = np.stack([part[where[:, k]] for k, part in enumerate(each)], axis=1)
    rivals = all_rivals(votes) if rule.rivals else None
    samples = np.broadcast_to(np.asarray(n, np.int64), (len(votes), len(n)))
    found = certified_radii(votes[:, :, 0], samples, sigmas, rule, alpha, rivals=rivals, share=share)
    return found.radius.reshape([len(part) for part in each])


def true_radii(p: Floats, rule: Rule, sigmas: Sequence[float]) -> Floats:
    """Radius of the vote for class 0 at true p [M, K, C], against its nearest rival: [M], by attack for the mean vote.

    The attack may stop a little above the true radius: it is taken down by more than that, which can only find more
    misses.
    """
    a = ndtri(p[..., 0])
    nearest = np.full(len(p), np.inf)
    for rival in range(1, p.shape[-1]):
        b = ndtri(p[..., rival])
        if rule.vote == "probit":
            w = np.array(rule.weights or np.ones(p.shape[1]))
            found = (w * np.array(sigmas) * (a - b) / 2).sum(axis=1) / np.linalg.norm(w)
        else:
            found = shortest_flip("mean", a, b, sigmas, rounds=8, directions=32) * (1 - 1e-6)
        nearest = np.minimum(nearest, found)
    return np.maximum(nearest, 0.0)


def hard_probabilities(n: int, levels: Sequence[float], how_many: int) -> Floats:
    """True p to try on one sub-image: float64 [G, C].

    p_A just below the bounds of some counts, where the most counts miss, and well inside; the rest is one rival's, or
    split evenly, or the most that a rival's bound allows.
    """
    k = np.unique(np.linspace(max(1, n // 3), n, how_many).astype(int))
    just_below = np.concatenate([ndtr(lower_quantile(k, n, level) - 1e-9) for level in levels])
    p_a = np.r_[just_below, 0.9]
    rest = 1 - p_a
    upper = 1 - ndtr(lower_quantile(n - 1, n, levels[0] / 8) - 1e-9)  # above a rival's bound from one vote
    rows = [np.column_stack([p_a, share * rest, (1 - share) * rest]) for share in (1.0, 0.6)]
    rows.append(np.column_stack([p_a, np.minimum(upper, rest), rest - np.minimum(upper, rest)]))
    return np.unique(np.maximum(np.concatenate(rows), 0.0), axis=0)


@functools.cache
def truths(
    n: tuple[int, ...], alpha: float, vote: str, weights: tuple[float, ...] | None, sigmas: tuple[float, ...]
) -> tuple[list[Floats], Integers, Floats]:
    """True p of each sub-image, all their pairs, and the true radii of these."""
    grids = [hard_probabilities(m, (alpha, alpha / 2), 3) for m in n]
    pairs = np.indices([len(p) for p in grids]).reshape(2, -1)
    both = np.stack([grids[0][pairs[0]], grids[1][pairs[1]]], axis=1)
    return grids, pairs, true_radii(both, Rule(vote, weights=weights), sigmas)


RULES = [
    (Rule(vote, confidence, rivals=rivals), sigmas)
    for vote in ("probit", "mean")
    for confidence in ("bonferroni", "staircase")
    for rivals in (False, True)
    for sigmas in ((1.0, 1.0), (1.0, 0.25))
] + [(Rule("probit", "staircase", weights=(1.0, 3.0), rivals=True), (0.5, 0.5))]


@pytest.mark.parametrize("alpha", [0.05, 0.25])
@pytest.mark.parametrize("n", [(8, 8), (6, 11)], ids=str)
@pytest.mark.parametrize(("rule", "sigmas"), RULES, ids=lambda value: getattr(value, "name", str(value)))
def test_two_sub_images(rule: Rule, sigmas: tuple[float, float], n: tuple[int, int], alpha: float) -> None:
    certified = radii_of_all_counts(n, rule, sigmas, alpha)
    grids, pairs, true = truths(n, alpha, rule.vote, rule.weights, sigmas)
    chance = [chances(m, p) for m, p in zip(n, grids, strict=True)]
    miss = np.array(
        [chance[0][i] @ (certified > radius) @ chance[1][j] for i, j, radius in zip(*pairs, true, strict=True)]
    )
    assert miss.max() <= alpha
    assert certified.max() > 0
    assert miss.max() > alpha**2 / 100  # the sum is one that could fail


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("n", [1, 5, 24])
@pytest.mark.parametrize("rivals", [False, True], ids=["p_A", "rivals"])
@pytest.mark.parametrize("vote", ["probit", "mean"])
def test_one_sub_image(vote: str, rivals: bool, n: int, alpha: float) -> None:
    rule, sigmas = Rule(vote, rivals=rivals), (0.5,)
    certified = radii_of_all_counts((n,), rule, sigmas, alpha)
    p = hard_probabilities(n, (alpha, 0.75 * alpha), 12)
    true = true_radii(p[:, None, :], rule, sigmas)
    miss = (chances(n, p) * (certified > true[:, None])).sum(axis=1)
    assert miss.max() <= alpha
    if certified.max() > 0 and not (rivals and n == 1):
        assert miss.max() > alpha / 10


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.25])
@pytest.mark.parametrize("n", [(40, 40), (15, 60)], ids=str)
@pytest.mark.parametrize("vote", ["probit", "mean"])
def test_staircase_of_more_samples(vote: str, n: tuple[int, int], alpha: float) -> None:
    """p_A only, where a count of two classes is enough; p just below the bound of every box that matters."""
    rule, sigmas = Rule(vote, "staircase"), (1.0, 1.0)
    votes = np.indices([m + 1 for m in n]).reshape(2, -1).T
    certified = certified_radii(votes, np.broadcast_to(n, votes.shape), sigmas, rule, alpha).radius
    certified = certified.reshape(n[0] + 1, n[1] + 1)
    grids = []
    for k, m in enumerate(n):
        levels = level_region("staircase", alpha, 2).boxes(2)[::4, k]
        bounds = lower_quantile(np.arange(m // 2, m + 1)[:, None], m, levels) - 1e-9
        grids.append(np.unique(np.r_[ndtr(bounds).ravel()[::5], ndtr(bounds[-1]), 0.5, 1 - 1e-6]))
    chance = [binom.pmf(np.arange(m + 1), m, p[:, None]) for m, p in zip(n, grids, strict=True)]
    sums = np.add.outer(ndtri(grids[0]), ndtri(grids[1])) / np.sqrt(2)
    miss = max(chance[0][i] @ (certified > max(sums[i, j], 0.0)) @ chance[1][j] for i, j in np.ndindex(*sums.shape))
    assert miss <= alpha
    assert miss > alpha / 20


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.3])
@pytest.mark.parametrize("n", [(30, 30), (10, 40)], ids=str)
@pytest.mark.parametrize("confidence", ["bonferroni", "staircase", "all of alpha on each half"])
def test_some_box_holds_the_truth(confidence: str, n: tuple[int, int], alpha: float) -> None:
    """The event behind every radius formula: a box in which both bounds hold (docs/theory.md 9: not (alpha, alpha))."""
    shared = confidence in ("bonferroni", "staircase")
    boxes = level_region(confidence, alpha, 2).boxes(2) if shared else np.full((1, 2), alpha)
    bounds = [lower_quantile(np.arange(m + 1)[:, None], m, boxes[:, k]) for k, m in enumerate(n)]  # [n + 1, J]
    grids = [np.unique(np.r_[ndtr(bound[m // 2 :: 4] - 1e-9).ravel(), ndtr(bound[m] - 1e-9), 0.5])
             for m, bound in zip(n, bounds, strict=True)]  # fmt: skip
    chance = [binom.pmf(np.arange(m + 1), m, p[:, None]) for m, p in zip(n, grids, strict=True)]
    holds = [bound <= ndtri(p)[:, None, None] for bound, p in zip(bounds, grids, strict=True)]  # [G, n + 1, J]
    miss = 0.0
    for i, j in np.ndindex(len(grids[0]), len(grids[1])):
        in_some_box = holds[0][i].astype(float) @ holds[1][j].T.astype(float) > 0
        miss = max(miss, float(chance[0][i] @ ~in_some_box @ chance[1][j]))
    if shared:
        assert miss <= alpha
        assert miss > 0.4 * alpha
    else:
        assert miss > 1.6 * alpha


# The pooled rule


def votes_for_a(n: Sequence[int]) -> Integers:
    """All votes for class 0 on all sub-images: int64 [M, K]."""
    return np.indices([m + 1 for m in n]).reshape(len(n), -1).T


def chance_of_votes(n: Sequence[int], p: Floats) -> Floats:
    """Probability of `votes_for_a` at true p [K]."""
    return functools.reduce(
        np.multiply.outer, [binom.pmf(np.arange(m + 1), m, value) for m, value in zip(n, p, strict=True)]
    ).ravel()


def pooled_bounds(n: int, alpha: float) -> Floats:
    """1 - Q just below the bound, for every number of failures S: where the most counts miss."""
    return np.asarray(ndtr(lower_quantile(np.arange(1, n + 1), n, alpha) - 1e-9))


@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.25])
@pytest.mark.parametrize(("sub_images", "n"), [(2, 3), (2, 25), (3, 8), (4, 5)])
def test_pooled_rule_with_every_image_unanimous(sub_images: int, n: int, alpha: float) -> None:
    rule, sigmas, numbers = Rule("probit", pooled=True), [0.5] * sub_images, [n] * sub_images
    votes = votes_for_a(numbers)
    everyone = np.ones(len(votes), np.bool_)
    certified = certified_radii(votes, np.full_like(votes, n), sigmas, rule, alpha, unanimous=everyone).radius
    worst = 0.0
    for mean in pooled_bounds(n * sub_images, alpha / 2):
        # All alike; spread around the mean; one sub-image bears all the failures, or as many as it can.
        for spread in (0.0, 0.3, 0.9, 1.0):
            q = np.full(sub_images, (1 - mean) * (1 - spread))
            q[0] = sub_images * (1 - mean) - q[1:].sum()
            if q[0] > 1:
                continue
            true = max((0.5 * ndtri(1 - q)).sum() / np.sqrt(sub_images), 0.0) if q.min() > 0 else np.inf
            worst = max(worst, float(chance_of_votes(numbers, 1 - q) @ (certified > true)))
    assert worst <= alpha
    if certified.max() > 0:
        assert worst > alpha / 2 * (1 - 1e-5)  # equal probabilities just below a bound: its half of alpha is spent


def classes_as_votes(n: int, sub_images: int, classes: int) -> tuple[csr_array, ...]:
    """Every combination of outcomes, as the sparse votes of one image each."""
    each = outcomes(n, classes)
    where = np.indices([len(each)] * sub_images).reshape(sub_images, -1)
    return tuple(csr_array(each[where[k]]) for k in range(sub_images))


@pytest.mark.parametrize(
    ("rule", "classes", "n0", "n", "alpha"),
    [
        (Rule("probit", "bonferroni", pooled=True), 2, 4, 20, 0.05),
        (Rule("probit", "staircase", pooled=True), 2, 4, 20, 0.05),
        (Rule("probit", "staircase", pooled=True), 2, 3, 30, 0.001),
        (Rule("mean", "staircase", pooled=True), 2, 3, 12, 0.2),
        (Rule("probit", "staircase", rivals=True, pooled=True), 3, 2, 6, 0.2),
        (Rule("mean", "bonferroni", rivals=True, pooled=True), 3, 2, 6, 0.2),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_from_selection_to_certificate(rule: Rule, classes: int, n0: int, n: int, alpha: float) -> None:
    """Every selection and estimation outcome, through `selected_votes`: the class, unanimity, rivals and the radius.

    The miss is at most alpha overall, and whatever selection said: of the pooled images, of the others, of each class.
    """
    sigmas = (0.5, 0.5)
    selecting, estimating = (classes_as_votes(m, 2, classes) for m in (n0, n))
    first, second = selecting[0].shape[0], estimating[0].shape[0]
    which, what = (axis.ravel() for axis in np.indices((first, second)))
    ids = np.arange(first * second)
    counts = Counts(ids, ids, tuple(v[which] for v in selecting), tuple(v[what] for v in estimating))
    votes = selected_votes(counts, rule)
    certified = certified_radii(
        votes.class_votes,
        votes.samples,
        sigmas,
        rule,
        alpha,
        rivals=votes.rivals,
        unanimous=votes.unanimous,
    ).radius
    assert certified[votes.unanimous].max() > 0
    assert certified[~votes.unanimous].max() > 0

    together = pooled_bounds(2 * n, alpha / 2)
    p_a = np.r_[together[:: max(1, n // 6)], together[-1]]
    few = [1e-9] * (classes - 2)
    p = np.array(
        [
            [[x, *[(1 - x) / (classes - 1)] * (classes - 1)], [y, 1 - y - sum(few), *few]]
            for x in p_a
            for y in (x, 0.5 + x / 2, max(0.0, 1.5 * x - 0.5))
        ]
    )
    groups = [votes.unanimous, ~votes.unanimous]
    groups += [votes.selected == c for c in range(classes)]
    true = np.stack([true_radii(np.roll(p, -c, axis=2), rule, sigmas) for c in range(classes)], axis=1)
    worst = np.zeros(len(groups) + 1)
    for truth, radius in zip(p, true, strict=True):
        prior, chance = (np.multiply.outer(*(chances(m, truth)[k] for k in range(2))).ravel() for m in (n0, n))
        wrong = certified > radius[votes.selected]
        both = prior[which] * chance[what]
        miss = [(both * wrong).sum()]
        for group in groups:
            probability = both[group].sum()
            # A conditional probability of something that all but never happens is rounding.
            miss.append((both * wrong)[group].sum() / probability if probability > 1e-9 else 0.0)
        worst = np.maximum(worst, miss)
    assert worst.max() <= alpha
    assert worst[1] > alpha / 4  # the pooled images' own


# Tests of the test: what is not a certificate exceeds alpha in the same sums.


def test_all_of_alpha_on_each_half_is_caught() -> None:
    """docs/theory.md 9. Both bounds hold with 1 - 2 alpha only: the joint event, and a radius that reads it."""
    n, alpha = 40, 0.05
    bound = lower_quantile(np.arange(n + 1), n, alpha)
    p = ndtr(bound[n] - 1e-9)  # only k = n misses
    missed = float(binom.pmf(n, n, p))
    assert alpha * 0.99 < missed <= alpha
    assert 1 - (1 - missed) ** 2 > 1.9 * alpha
    a = bound[votes_for_a((n, n))]
    printed = np.where(np.isinf(a), -9.0, a).max(axis=1)  # the weight almost all on the half that looks better
    worst = chance_of_votes((n, n), np.array([p, p])) @ (printed > ndtri(p))
    assert worst > 1.9 * alpha


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_the_larger_of_two_rules_with_an_alpha_each_is_caught(alpha: float) -> None:
    """docs/theory.md 5.8, one event: the pooled rule alone spends all of alpha, and the boxes miss elsewhere."""
    n, sigmas = 60, (0.5, 0.5)
    votes = votes_for_a((n, n))
    samples = np.full_like(votes, n)
    a = lower_quantile(votes.sum(axis=1), 2 * n, alpha)
    pooled = np.where(a >= -ndtri(1 / 4), 0.5 * np.sqrt(2) * a, 0.0)
    boxes = certified_radii(votes, samples, sigmas, Rule("probit", "staircase"), alpha).radius
    misses = []
    for p in pooled_bounds(2 * n, alpha)[n:]:
        chance = chance_of_votes((n, n), np.array([p, p]))
        true = max(0.5 * ndtri(p) * np.sqrt(2), 0.0)
        misses.append([chance @ (radius > true) for radius in (pooled, boxes, np.maximum(pooled, boxes))])
    worst = np.max(misses, axis=0)
    assert worst[0] <= alpha
    assert worst[1] <= alpha
    assert worst[2] > 1.004 * alpha  # little, and a broken promise
