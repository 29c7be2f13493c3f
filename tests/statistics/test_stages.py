"""Adaptive sampling: the miss of the best radius over the stages, under the package's stopping rule and under any.

For tiny stages all trajectories of votes are enumerated. The adversary knows all votes in advance and stops where the
radius is largest: no stopping rule misses more often. For a real schedule, a seeded simulation of a million images.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import gammaln, ndtr, ndtri, xlogy
from scipy.stats import beta

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule
from drs_ray.certificates.stages import Schedule, doubling_schedule, is_open
from tests.statistics.test_coverage_rules import all_rivals

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
TINY = Schedule((2, 4, 8), (0.3, 0.3, 0.4))  # shares that let early stages certify something
GRID = (0.2, 0.5, 0.9)


@functools.cache
def trajectories(ends: tuple[int, ...], classes: int) -> Integers:
    """Every sequence of new votes over the stages of one sub-image: int64 [T, J, C]."""
    steps = np.diff((0, *ends))
    per_stage = [
        [row for row in itertools.product(range(step + 1), repeat=classes) if sum(row) == step] for step in steps
    ]
    return np.array(list(itertools.product(*per_stage)), np.int64)


def chances(ends: tuple[int, ...], p: Floats) -> Floats:
    """Probabilities of `trajectories` at true p [C]."""
    new = trajectories(ends, len(p))
    logs = gammaln(new.sum(axis=2) + 1) - gammaln(new + 1).sum(axis=2) + xlogy(new, p).sum(axis=2)
    return np.asarray(np.exp(logs.sum(axis=1)))


def radii_and_stops(
    votes: Integers, schedule: Schedule, sigmas: Sequence[float], rule: Rule, alpha: float, unanimous: bool
) -> tuple[Floats, Floats]:
    """Cumulative votes [N, J, K, C] -> the radius that the package ends with, and the best that any stopping gets."""
    images = len(votes)
    best, ended, adversary = np.zeros(images), np.zeros(images), np.zeros(images)
    going = np.ones(images, np.bool_)
    everyone = np.full(images, unanimous)
    for stage, (end, share) in enumerate(zip(schedule.samples, schedule.shares, strict=True)):
        now = votes[:, stage]
        rivals = all_rivals(now) if rule.rivals else None
        samples = np.full(now.shape[:2], end)
        found = certified_radii(
            now[:, :, 0], samples, sigmas, rule, alpha, rivals=rivals, unanimous=everyone, share=share
        ).radius
        adversary = np.maximum(adversary, found)
        best = np.where(going, np.maximum(best, found), best)
        ended[going] = end
        if end != schedule.samples[-1]:
            going &= is_open(
                best, now[:, :, 0], samples, sigmas, rule, alpha,
                rivals=rivals, unanimous=everyone, schedule=schedule, radii=GRID,
            )  # fmt: skip
    assert np.all(best <= adversary)
    assert len(np.unique(ended)) > 1  # images end at different stages
    return best, adversary


@pytest.mark.parametrize("alpha", [0.1, 0.25])
@pytest.mark.parametrize(
    ("rule", "sub_images", "schedule", "classes", "unanimous"),
    [
        (Rule(), 1, TINY, 2, False),
        (Rule(rivals=True), 1, TINY, 3, False),
        (Rule("probit", "bonferroni"), 2, TINY, 2, False),
        (Rule("probit", "staircase"), 2, TINY, 2, False),
        (Rule("mean", "staircase"), 2, TINY, 2, False),
        (Rule("probit", "staircase", pooled=True), 2, TINY, 2, True),
        (Rule("probit", "staircase"), 2, doubling_schedule(8, 3), 2, False),
        (Rule("probit", "staircase", rivals=True), 2, Schedule((3, 6), (0.4, 0.6)), 3, False),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_trajectory_of_tiny_stages(
    rule: Rule, sub_images: int, schedule: Schedule, classes: int, unanimous: bool, alpha: float
) -> None:
    sigmas = [1.0] * sub_images
    new = trajectories(schedule.samples, classes)
    where = np.indices([len(new)] * sub_images).reshape(sub_images, -1)
    votes = np.stack([new[index].cumsum(axis=1) for index in where], axis=2)
    ended, adversary = radii_and_stops(votes, schedule, sigmas, rule, alpha, unanimous)
    levels = [alpha * share / part for share in schedule.shares for part in {1, sub_images}]
    p_a = np.unique(
        [ndtr(lower_quantile(n, n, u) - 1e-9) for n in schedule.samples for u in levels]
        + [ndtr(lower_quantile(n - 1, n, u) - 1e-9) for n in schedule.samples for u in levels]
        + [0.5, 0.6, 0.75, 0.9, 0.99]
    )
    rest = [1.0] if classes == 2 else [1.0, 0.5]
    p = np.array([[x, *(share * (1 - x) for share in (part, 1 - part)[: classes - 1])] for x in p_a for part in rest])
    chance = [chances(schedule.samples, row) for row in p]
    worst_ended = worst = 0.0
    for indices in itertools.combinations_with_replacement(range(len(p)), sub_images):
        true = np.inf
        for rival in range(1, classes):  # of the mean vote, too: two classes, equal sigmas
            with np.errstate(divide="ignore"):
                margin = sum(ndtri(p[i, 0]) - ndtri(p[i, rival]) for i in indices) / 2
            true = min(true, margin / np.sqrt(sub_images))
        probability = functools.reduce(np.multiply.outer, [chance[i] for i in indices]).ravel()
        worst_ended = max(worst_ended, float(probability @ (ended > max(true, 0.0))))
        worst = max(worst, float(probability @ (adversary > max(true, 0.0))))
    assert worst_ended <= worst + 1e-15
    assert worst <= alpha
    assert worst > alpha**2 / 100
    if sub_images == 1 and not rule.rivals:
        assert worst > 0.35 * alpha


def test_all_of_alpha_at_every_stage_is_caught() -> None:
    """Looking three times at the full level and keeping the best: more than alpha, by the same enumeration."""
    alpha, schedule = 0.1, Schedule((2, 4, 8), (1.0, 1.0, 1.0))
    votes = trajectories(schedule.samples, 2).cumsum(axis=1)[:, :, None, :]
    radius = np.max(
        [
            certified_radii(votes[:, j, :, 0], np.full((len(votes), 1), n), [1.0], Rule(), alpha).radius
            for j, n in enumerate(schedule.samples)
        ],
        axis=0,
    )
    worst = max(
        chances(schedule.samples, np.array([p, 1 - p])) @ (radius > max(ndtri(p), 0))
        for p in np.linspace(0.5, 0.99, 99)
    )
    assert worst > 1.2 * alpha


TRIALS = 1_000_000


@pytest.mark.parametrize("p", [(0.97, 0.97), (0.995, 0.6)], ids=str)
def test_a_million_images_of_a_real_schedule(p: tuple[float, float]) -> None:
    """K = 2, eight doubling stages up to 10,000, staircase: radii and decisions tabulated by distinct counts."""
    alpha, rule, sigmas = 0.05, Rule("probit", "staircase"), (0.5, 0.5)
    schedule = doubling_schedule(10_000, 8)
    radii = (0.25, 0.5, 0.75, 1.0, 1.25, 1.31)
    true = 0.5 * ndtri(np.array(p)).sum() / np.sqrt(2)
    rng = np.random.default_rng(7)
    votes = np.zeros((TRIALS, 2), np.int64)
    best, adversary = np.zeros(TRIALS), np.zeros(TRIALS)
    going = np.ones(TRIALS, np.bool_)
    open_after = []
    for (_, new), end, share in zip(schedule.ranges(), schedule.samples, schedule.shares, strict=True):
        votes += np.stack([rng.binomial(new, value, TRIALS) for value in p], axis=1)
        _, first, where = np.unique(votes[:, 0] * (end + 1) + votes[:, 1], return_index=True, return_inverse=True)
        distinct = votes[first]
        found = certified_radii(distinct, np.full_like(distinct, end), sigmas, rule, alpha, share=share).radius[where]
        adversary = np.maximum(adversary, found)
        best = np.where(going, np.maximum(best, found), best)
        if end != schedule.samples[-1]:  # the decision depends on the counts and on the next radius of the grid
            step = np.searchsorted(radii, best, side="right") + (best > 0)
            _, first, where = np.unique(where * 8 + step, return_index=True, return_inverse=True)
            distinct = votes[first]
            going &= is_open(
                best[first], distinct, np.full_like(distinct, end), sigmas, rule, alpha,
                rivals=None, unanimous=np.zeros(len(first), np.bool_), schedule=schedule, radii=radii,
            )[where]  # fmt: skip
            open_after.append(int(going.sum()))
    assert open_after == sorted(open_after, reverse=True)
    assert 0 < open_after[-1] < open_after[0]
    for radius in (best, adversary):
        misses = int((radius > true).sum())
        upper = beta.ppf(0.999, misses + 1, TRIALS - misses)  # Clopper-Pearson, one-sided 99.9 %
        assert upper <= alpha
        assert (radius > 0).mean() > 0.99
        assert (radius > 0.8 * true).mean() > (0.9 if radius is adversary else 0.0)


@pytest.mark.parametrize("stages", range(1, 12))
@pytest.mark.parametrize("samples", [1024, 10_000, 99_999, 10**9])
def test_stages_double_and_spend_each_level_once(samples: int, stages: int) -> None:
    schedule = doubling_schedule(samples, stages)
    assert len(schedule.samples) == len(schedule.shares) == stages
    assert schedule.samples[-1] == samples
    assert schedule.samples[0] >= 1
    for earlier, later in itertools.pairwise(schedule.samples):
        assert earlier == -(-later // 2)  # half, rounded up
    assert sum(map(np.longdouble, schedule.shares)) <= 1 + 1e-15  # the quantiles' slack is 1e8 times more
    assert min(schedule.shares) > 0
    ranges = schedule.ranges()
    assert [start for start, _ in ranges] == [0, *schedule.samples[:-1]]
    assert sum(count for _, count in ranges) == samples


def test_fewer_samples_keep_the_planned_shares() -> None:
    schedule = doubling_schedule(800, 4)
    assert schedule.samples == (100, 200, 400, 800)
    assert schedule.up_to(399) == Schedule((100, 200), schedule.shares[:2])
    assert schedule.up_to(50) == Schedule((), ())
    assert schedule.up_to(10**6) == schedule


@pytest.mark.parametrize(("samples", "stages"), [(7, 4), (0, 1), (10, 0), (10, -1)])
def test_stages_without_samples_are_refused(samples: int, stages: int) -> None:
    with pytest.raises(ValueError, match="the first would be empty; use fewer"):
        doubling_schedule(samples, stages)


@pytest.mark.parametrize(("looks", "block"), [(2, 1), (4, 1), (2, 100), (2, 1000)])
def test_looks_refine_the_doublings(looks: int, block: int) -> None:
    plain, fine = doubling_schedule(12_800, 6), doubling_schedule(12_800, 6, looks=looks, block=block)
    assert set(plain.samples) < set(fine.samples)
    assert list(fine.samples) == sorted(set(fine.samples))
    between = sorted(set(fine.samples) - set(plain.samples))
    assert all(end % block == 0 for end in between)
    assert len(between) == (5 * (looks - 1) if block < 1000 else 3)  # 3000, 5000, 10000: no room for more
    if block == 1:
        ratios = [later / earlier for earlier, later in itertools.pairwise(fine.samples)]
        assert max(ratios) < 2 ** (1 / looks) * 1.01
    assert sum(map(np.longdouble, fine.shares)) <= 1 + 1e-15
    assert fine.up_to(3200).samples[-1] == 3200
