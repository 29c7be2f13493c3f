"""A radius from counts in ball arithmetic, written from docs/theory.md 5.9 and sharing no code with the certificates.

Every number is a ball (python-flint's `arb`, 128 bits) that provably contains the exact value, or a lower bound that a
ball has proved. scipy only guesses quantiles: a wrong guess costs time, but no result is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from flint import arb, ctx
from scipy.special import betainccinv, betaincinv, ndtri

from drs_ray.errors import SoundnessError

BITS = 128
SLACK = 1e-8
"""Subtracted from every quantile bound in stored radii (theory 5.2)."""


@dataclass(frozen=True)
class AuditedRule:
    """A rule by the parts of its name (docs/results.md). sigmas: of the K sub-images; weights: of the probit vote."""

    sigmas: tuple[float, ...]
    weights: tuple[float, ...]
    vote: str
    rivals: bool
    staircase: bool
    pooled: bool

    @classmethod
    def named(cls, name: str, sigmas: Sequence[float]) -> AuditedRule:
        """Read a name such as `probit pairs staircase w=1.0,2.0 with pooled`.

        Raises:
            ValueError: no rule has this name, or it has no theorem for these sub-images.
        """
        boxes, pooled = name.removesuffix(" with pooled"), name.endswith(" with pooled")
        vote, bounded, confidence, *rest = [*boxes.split(" "), "", "", ""]
        if confidence == "e-value":
            raise ValueError("certificates of one fixed radius (theory 12) have no bounds; they are not audited yet")
        weights = tuple(float(w) for w in rest[0].removeprefix("w=").split(",")) if rest[0] else (1.0,) * len(sigmas)
        known = vote in ("probit", "mean") and bounded in ("p_A", "pairs") and confidence in ("bonferroni", "staircase")
        if not known or len(weights) != len(sigmas) or min(*weights, *sigmas) <= 0 or (vote == "mean" and rest[0]):
            raise ValueError(f"no rule for {len(sigmas)} sub-images is named '{name}'")
        if vote == "mean" and len(sigmas) > 2:  # section 4.3
            raise ValueError(f"the mean vote has no radius for {len(sigmas)} sub-images")
        if pooled and (len(sigmas) == 1 or len({*sigmas}) > 1 or len({*weights}) > 1):  # Theorem 12
            raise ValueError(f"pooling needs two or more sub-images with equal sigmas and weights, got {sigmas}")
        return cls(tuple(sigmas), weights, vote, bounded == "pairs", confidence == "staircase", pooled)

    @property
    def scale(self) -> float:
        """Change of the radius if every quantile bound changes by 1, rounded to nearest (Theorems 3, 4, 12)."""
        if self.vote == "mean" and len(self.sigmas) == 2:
            return 2 / math.hypot(*(1 / sigma for sigma in self.sigmas))
        return math.fsum(w * s for w, s in zip(self.weights, self.sigmas, strict=True)) / math.hypot(*self.weights)


@dataclass(frozen=True)
class StageVotes:
    """Estimation votes up to the end of a stage. votes: one dictionary class -> votes for each sub-image.

    samples: n_j. share: w_j, the stage's share of every level.
    """

    votes: tuple[Mapping[int, int], ...]
    samples: int
    share: Fraction = Fraction(1)


def radius_lower(rule: AuditedRule, stage: StageVotes, chosen: int, classes: int, alpha: float, unanimous: bool) -> arb:
    """A ball whose lower end is at most the exact radius of theory 5.9, without the slack of 1e-8; 0 if none is > 0.

    Args:
        rule: how counts become a radius.
        stage: the votes.
        chosen: the class that the selection votes chose.
        classes: C.
        alpha: failure probability of the whole certificate.
        unanimous: all selection votes are for `chosen`.
    """
    ctx.prec = BITS
    share = arb(stage.share.numerator) / stage.share.denominator
    both = rule.pooled and unanimous
    alpha_boxes = alpha / 2 if both else alpha  # halving is exact
    radius = _boxes(rule, stage, chosen, classes, alpha_boxes, share)
    if both:
        radius = radius.max(_pooled(rule, stage, chosen, alpha, share))
    return radius.max(arb(0))


def _boxes(rule: AuditedRule, stage: StageVotes, chosen: int, classes: int, alpha: float, share: arb) -> arb:
    """The least radius over boxes and rivals: Theorems 8 and 9, with 5.5 for rivals and Theorems 3 to 6 for a box."""
    sub_images = len(rule.sigmas)
    against = rule.rivals and classes > 2
    part = share / 2 if against else share
    if rule.staircase:
        q = staircase_level(sub_images, alpha)
        levels = [_low(arb(q) ** (i + 1) * part) for i in range(sub_images + 22)]
    else:
        levels = [_low(arb(alpha) / sub_images * part)]
    n = stage.samples
    lower = [[quantile_lower(votes.get(chosen, 0), n, u) for u in levels] for votes in stage.votes]
    if any(bounds[0] == -math.inf for bounds in lower):  # no vote for the class: a_k is -infinity at every level
        return arb(0)
    least: arb | None = None
    for rival in _strongest(stage.votes, chosen, classes) if against else [None]:
        upper: list[list[float]] = []  # b_k = min(b, -a_k); negating a float is exact
        for votes, bounds in zip(stage.votes, lower, strict=True):
            own = [math.inf] * len(levels)
            if rival is not None:
                own = [-quantile_lower(n - votes.get(rival, 0), n, u) for u in levels]
            upper.append([min(b, -a) for a, b in zip(bounds, own, strict=True)])
        found = _least_box(rule, lower, upper)
        least = found if least is None else least.min(found)
    assert least is not None
    return least


def _least_box(rule: AuditedRule, a: list[list[float]], b: list[list[float]]) -> arb:
    """The least radius against one rival over all compositions of the last index (5.4)."""
    last = len(a[0]) - 1
    if len(a) == 1 or last == 0:
        compositions = [[last] * len(a)]
    elif len(a) == 2:
        compositions = [[i, last - i] for i in range(last + 1)]
    else:
        compositions = []
    if rule.vote == "mean" and len(a) == 2:  # Theorem 6
        norm = sum((1 / arb(sigma) ** 2 for sigma in rule.sigmas), arb(0)).sqrt()
        crossed = [(arb(a[0][i]) - b[1][j]).min(arb(a[1][j]) - b[0][i]) for i, j in compositions]
        return _least(crossed) / norm
    norm = sum((arb(w) ** 2 for w in rule.weights), arb(0)).sqrt()
    terms = [  # w_k m_k = w_k sigma_k (a_k - b_k) / 2, Theorem 5
        [arb(w) * s * (arb(x) - y) / 2 for x, y in zip(a_k, b_k, strict=True)]
        for w, s, a_k, b_k in zip(rule.weights, rule.sigmas, a, b, strict=True)
    ]
    if compositions:
        return (
            _least([sum((term[i] for term, i in zip(terms, box, strict=True)), arb(0)) for box in compositions]) / norm
        )
    sums = terms[0]  # the min-plus product of 5.4
    for term in terms[1:]:
        sums = [_least([sums[j - i] + term[i] for i in range(j + 1)]) for j in range(last + 1)]
    return sums[last] / norm


def _pooled(rule: AuditedRule, stage: StageVotes, chosen: int, alpha: float, share: arb) -> arb:
    """Theorem 12 at level beta = min(alpha / 2, 1/4) times the stage's share."""
    sub_images = len(rule.sigmas)
    level = _low(arb(min(alpha / 2, 0.25)) * share)
    a = quantile_lower(sum(votes.get(chosen, 0) for votes in stage.votes), sub_images * stage.samples, level)
    if a == -math.inf or not _normal(-arb(a)) * sub_images <= arb(1) / 2:  # K Q <= 1/2 must be proved
        return arb(0)
    return arb(rule.sigmas[0]) * arb(sub_images).sqrt() * a


def _strongest(votes: Sequence[Mapping[int, int]], chosen: int, classes: int) -> list[int]:
    """The rivals that no other one dominates (4.6): a rival with no more votes in any sub-image has no smaller R."""
    by_votes: dict[tuple[int, ...], int] = {}
    for rival in {c for mine in votes for c in mine} - {chosen}:
        by_votes[tuple(mine.get(rival, 0) for mine in votes)] = rival
    front: dict[tuple[int, ...], int] = {}
    for counts in sorted(by_votes, reverse=True):  # dominating rivals come first
        if not any(all(x <= y for x, y in zip(counts, other, strict=True)) for other in front):
            front[counts] = by_votes[counts]
    return list(front.values()) or [next(c for c in range(classes) if c != chosen)]


@lru_cache(maxsize=256)
def staircase_level(sub_images: int, alpha: float) -> float:
    """q of Theorem 9 for M = K + 21, (1 - 1e-10) below the largest whose region a ball proves to have <= alpha.

    Raises:
        SoundnessError: no such q can be proved.
    """
    ctx.prec = BITS
    last = sub_images + 21

    def missed(q: float) -> arb:
        """P(NegBin > M): the probability that no box of levels holds."""
        terms = (arb(math.comb(last + sub_images, j)) * (1 - arb(q)) ** j * arb(q) ** (last + sub_images - j)
                 for j in range(sub_images))  # fmt: skip
        return sum(terms, arb(0))

    low, high = 0.0, 1.0  # `missed(low) <= alpha` stays proved at every step
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if missed(middle) <= arb(alpha) else (low, middle)
    q = low * (1 - 1e-10)
    if not (q > 0 and missed(q) <= arb(alpha)):
        raise SoundnessError(f"no levels of the staircase can be proved for K = {sub_images}, alpha = {alpha}")
    return q


@lru_cache(maxsize=2**21)
def quantile_lower(k: int, n: int, level: float) -> float:
    """A number a that is proved to be at most Phi^-1(L_u(k)), and is below it by about 1e-12: Clopper-Pearson, 5.2.

    At p = L_u(k), P(X >= k) = u for X binomial, and P(X >= k) rises with p: so P(X >= k) <= u at p = Phi(a) proves it.
    """
    ctx.prec = BITS
    if k == 0 or level <= 0:
        return -math.inf
    guess = ndtri(betaincinv(k, n - k + 1, level)) if 2 * k <= n else -ndtri(betainccinv(n - k + 1, k, level))
    a = float(guess) if math.isfinite(guess) else 0.0
    below = 5e-13 * max(1.0, abs(a))
    a -= below
    for _ in range(200):
        tail, slope = _upper_tail(k, n, a)
        gap = (math.log(level) - float(tail.log().mid())) / slope  # Newton's step to where the tail is the level
        if tail <= arb(level) and gap < 4 * below:
            return a
        a += max(min(gap, 1.0), -1.0) - (below if abs(gap) < 1e-3 else 0.0)
    raise SoundnessError(f"no bound can be proved for {k} of {n} votes at level {level}")


def _upper_tail(k: int, n: int, a: float) -> tuple[arb, float]:
    """P(X >= k) for X binomial(n, Phi(a)), rounded up by a bound on omitted terms; and, roughly, d log P / da."""
    q = _normal(-arb(a))
    p = _normal(arb(a))
    log_term = arb(n + 1).lgamma() - arb(k + 1).lgamma() - arb(n - k + 1).lgamma() + k * p.log() + (n - k) * q.log()
    first = term = total = log_term.exp()
    odds = p / q
    for j in range(k, n):
        ratio = odds * (n - j) / (j + 1)  # of the next term to this one; it decreases with j
        term = term * ratio
        if j % 16 == 0 and ratio < 0.999 and term < total * 1e-15:  # a geometric series bounds the other terms
            total = total + term / (1 - ratio)
            break
        total = total + term
    slope = first * k / p * (-(arb(a) ** 2) / 2).exp() / (2 * arb.pi()).sqrt() / total
    return total, float(slope.mid())


def _normal(x: arb) -> arb:
    """Phi(x)."""
    return (-x / arb(2).sqrt()).erfc() / 2


def _least(values: Sequence[arb]) -> arb:
    least = values[0]
    for value in values[1:]:
        least = least.min(value)
    return least


def _low(value: arb) -> float:
    """A double at or below the ball: too small a level gives too low a bound, which is safe."""
    return math.nextafter(float(value.lower()), 0.0)
