"""From counts to certificates: bounds at every level of a rule, a radius in every box of levels, and the least radius.

With rivals, the selected class and each rival get half of a level: the radius needs the bounds of the class and of one
unknown rival, which does not depend on the votes (docs/theory.md, Theorem 6a). If all selection votes of an image are
for its class, a pooled rule halves alpha between its boxes and the pooled bound and certifies the larger radius.
These images are fixed before their estimation votes are seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from drs_ray.certificates.bounds import quantile_table
from drs_ray.certificates.boxes import least_box
from drs_ray.certificates.confidence import level_region
from drs_ray.certificates.fixed_radius import log_e_values
from drs_ray.certificates.radius import Floats, cross_pairing_radius, margins, probit_radius
from drs_ray.certificates.rule import Rule
from drs_ray.certificates.votes import Integers, Rivals, first_of_most

PAIR_SHARE = 0.5
"""Share of a level that the selected class and each rival get, if rivals are bounded."""
LARGEST_POOLED_LEVEL = 0.25
"""The pooled rule is proved for levels up to this one."""
_CHUNK = 2**18  # numbers in the largest arrays of one step, so that they fit the CPU's cache


@dataclass(frozen=True, eq=False)
class CertifiedRadii:
    """Radii of N images, and the bounds in the deciding box from which they follow.

    radius: float64 [N], pixel units, 0 if nothing is certified. a_lower: float64 [N, K], quantile of the selected
    class's lower bound. b_upper: float64 [N, K], quantile of the deciding rival's upper bound. margin: float64 [N, K],
    pixel units, signed. level: float64 [N, K], level of these bounds. rival: int64 [N], class of the deciding rival, -1
    if it has no votes or rivals are not bounded. pooled: bool [N], the pooled bound decides, one bound on the mean
    failure probability of all sub-images. halved: bool [N], boxes and pooled bound: alpha / 2 each, whichever decides.
    A rule for a fixed radius has no bounds: a_lower, b_upper and margin are -inf, inf and -inf, and level is alpha.
    """

    radius: Floats
    a_lower: Floats
    b_upper: Floats
    margin: Floats
    level: Floats
    rival: Integers
    pooled: NDArray[np.bool_]
    halved: NDArray[np.bool_]

    @property
    def p_lower(self) -> Floats:
        """Lower bounds of the selected class's probability: float64 [N, K]."""
        return np.asarray(np.nextafter(ndtr(self.a_lower), 0.0))  # ndtr rounds to nearest: step to the safe side

    @property
    def rival_upper(self) -> Floats:
        """Upper bounds of the deciding rival's probability: float64 [N, K].

        Each bound has its own level, and the votes decide which rival it is: no statement about all rivals at once.
        """
        return np.asarray(np.nextafter(ndtr(self.b_upper), 1.0))


def rule_names(rule: Rule, halved: NDArray[np.bool_]) -> NDArray[np.object_]:
    """The name of the rule in each certificate: with the pooled rule or without (`CertifiedRadii.halved`)."""
    return np.where(halved, rule.name, rule.name_of_boxes).astype(object)


def certified_radii(
    class_votes: Integers,
    samples: Integers,
    sigmas: Sequence[float],
    rule: Rule,
    alpha: float,
    *,
    rivals: Rivals | None = None,
    unanimous: NDArray[np.bool_] | None = None,
    share: float = 1.0,
) -> CertifiedRadii:
    """Certify N images; each certificate fails with probability at most alpha over its own estimation samples.

    Args:
        class_votes: int64 [N, K], estimation votes for the class that the selection samples chose.
        samples: int64 [N, K], estimation samples.
        sigmas: K noise standard deviations, pixel units.
        rule: how votes become a radius.
        alpha: failure probability of one image's whole certificate.
        rivals: the other classes' votes, needed by rules with rivals.
        unanimous: bool [N], all selection votes of all sub-images are for the class; needed by pooled rules.
        share: the stage's share w_j of every level, in (0, 1]; 1 for one stage; not used by rules for a fixed radius.

    Raises:
        ValueError: votes outside [0, samples], a rule that does not fit K or the sigmas, alpha outside (0, 1).
    """
    if rule.radius is not None:
        return _at_fixed_radius(class_votes, samples, sigmas, rule, rule.radius, alpha)
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    if rule.rivals and rivals is None:
        raise ValueError(f"rule '{rule.name}' needs the rivals' votes")
    against = rivals if rule.rivals and rivals is not None and rivals.count > 1 else None
    if not rule.pooled:
        return _not_negative(_least(class_votes, samples, against, sigmas, rule, alpha, share))
    if unanimous is None:
        raise ValueError(f"rule '{rule.name}' needs to know where the selection votes are unanimous")
    both = unanimous & (samples == samples[:, :1]).all(axis=1)  # the pooled rule needs equal numbers of samples
    pooled = _pooled(class_votes, samples, sigmas, min(alpha / 2, LARGEST_POOLED_LEVEL) * share)
    least = pooled
    for here, level in ((~both, alpha), (both, alpha / 2)):
        rest = None if against is None else against.of(here)
        boxes = _least(class_votes[here], samples[here], rest, sigmas, rule, level, share)
        least = _replaced(least, here, boxes)
    decided = _replaced(least, both & (pooled.radius > least.radius), pooled)
    return _not_negative(replace(decided, halved=both))


def _at_fixed_radius(
    class_votes: Integers, samples: Integers, sigmas: Sequence[float], rule: Rule, radius: float, alpha: float
) -> CertifiedRadii:
    """`radius` if its e-value has reached 1 / alpha, else 0. No stage needs a share of alpha."""
    log_e = log_e_values(class_votes, samples, sigmas, radius, vote=rule.vote, weights=rule.weights)
    no_bound = np.full(class_votes.shape, -np.inf)
    return CertifiedRadii(
        np.where(log_e >= -math.log(alpha), radius, 0.0),
        a_lower=no_bound,
        b_upper=-no_bound,
        margin=no_bound,
        level=np.full(class_votes.shape, alpha),
        rival=np.full(len(log_e), -1),
        pooled=np.zeros(len(log_e), np.bool_),
        halved=np.zeros(len(log_e), np.bool_),
    )


def _least(
    class_votes: Integers,
    samples: Integers,
    rivals: Rivals | None,
    sigmas: Sequence[float],
    rule: Rule,
    alpha: float,
    share: float,
) -> CertifiedRadii:
    """The least radius over the boxes and the rivals, which may be negative, with its bounds."""
    images, sub_images = class_votes.shape
    region = level_region(rule.confidence, alpha, sub_images)
    levels = region.levels * share * (1.0 if rivals is None else PAIR_SHARE)
    if rivals is None:  # every rival's p^k_B <= 1 - p^k_A
        table, of_class = quantile_table(class_votes, samples, levels)
        image, classes, of_rival = np.arange(images), np.full(images, -1), None
    else:
        image, classes = rivals.image, rivals.classes
        trials = np.concatenate([samples, samples[image]])
        table, rows = quantile_table(np.concatenate([class_votes, trials[images:] - rivals.votes]), trials, levels)
        of_class, of_rival = rows[:images], rows[images:]
    a_lower, b_upper, level = (np.empty((len(image), sub_images)) for _ in range(3))
    step = max(_CHUNK // (sub_images * len(levels)), 1)
    for start in range(0, len(image), step):
        here = slice(start, start + step)
        a = table[of_class[image[here]]]
        b = -a if of_rival is None else np.minimum(-table[of_rival[here]], -a)
        index = least_box(a, b, sigmas, rule.vote, rule.weights)
        a_lower[here], b_upper[here] = (np.take_along_axis(x, index[..., None], axis=2)[..., 0] for x in (a, b))
        level[here] = levels[index]
    margin = margins(a_lower, b_upper, sigmas)
    radius = (
        cross_pairing_radius(a_lower, b_upper, sigmas) if rule.vote == "mean" else probit_radius(margin, rule.weights)
    )
    closest = image if rivals is None else first_of_most(-radius, image, images)
    return CertifiedRadii(
        radius[closest],
        a_lower[closest],
        b_upper[closest],
        margin[closest],
        level[closest],
        classes[closest],
        pooled=np.zeros(images, np.bool_),
        halved=np.zeros(images, np.bool_),
    )


def _pooled(class_votes: Integers, samples: Integers, sigmas: Sequence[float], level: float) -> CertifiedRadii:
    """R = sigma sqrt(K) (-Phi^-1(Q)), Q the upper bound on the mean failure probability of all sub-images.

    The number S of failures in all K n samples is a sum of Bernoullis with unequal probabilities. Up to its mean minus
    1, its lower tail is at most that of the binomial with the same mean (Hoeffding 1956, Theorem 4), and level <= 1/4
    keeps the counts at which the bound misses there (docs/theory.md, Lemma 11). If K Q <= 1/2, every failure
    probability is <= 1/2, -Phi^-1 is convex there, and Jensen's inequality gives the radius; else nothing is certified.

    Raises:
        ValueError: one sub-image, or unequal sigmas.
    """
    sub_images = class_votes.shape[-1]
    if sub_images == 1 or len(set(sigmas)) > 1:
        raise ValueError(f"the pooled rule needs two or more sub-images with equal sigmas, got {list(sigmas)}")
    table, rows = quantile_table(class_votes.sum(axis=1), samples.sum(axis=1), np.array([level]))
    a_mean = table[rows]
    a_lower = np.where(a_mean >= -ndtri(1 / (2 * sub_images)), a_mean, -np.inf)
    a_lower = np.repeat(a_lower, sub_images, axis=1)
    margin = margins(a_lower, -a_lower, sigmas)
    images = len(a_lower)
    return CertifiedRadii(
        probit_radius(margin),
        a_lower,
        -a_lower,
        margin,
        np.full_like(a_lower, level),
        np.full(images, -1),
        pooled=np.ones(images, np.bool_),
        halved=np.ones(images, np.bool_),
    )


def _replaced(radii: CertifiedRadii, where: NDArray[np.bool_], other: CertifiedRadii) -> CertifiedRadii:
    """`radii` with the images of `where` taken from `other`, which has all images or only those."""

    def merged(name: str) -> Any:
        values, new = getattr(radii, name).copy(), getattr(other, name)
        values[where] = new[where] if len(new) == len(where) else new
        return values

    return CertifiedRadii(*(merged(field.name) for field in fields(CertifiedRadii)))


def _not_negative(radii: CertifiedRadii) -> CertifiedRadii:
    return replace(radii, radius=np.fmax(radii.radius, 0.0))  # a NaN certifies nothing
