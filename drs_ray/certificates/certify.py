"""Counts to certificates: bounds in every box of levels, a radius in every box, and the least of them.

With rivals, a box spends 3/4 of each level on the selected class and the rest on its C - 1 rivals; without, all of it.
Where no selection vote of an image went against its class, the pooled rule takes the boxes' place: which of the two an
image gets is fixed before its estimation votes are seen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from drs_ray.certificates.bounds import DistinctCounts
from drs_ray.certificates.confidence import level_boxes
from drs_ray.certificates.fixed_radius import log_e_values
from drs_ray.certificates.radius import Floats, cross_pairing_radius, margins, mean_radius, probit_radius
from drs_ray.certificates.votes import Integers, Rivals

VOTES = ("probit", "mean")
CLASS_SHARE = 0.75
"""Share of a level that goes to the selected class where rivals are bounded too."""


@dataclass(frozen=True)
class Rule:
    """How counts become a radius. Fixed before the estimation votes are seen; its name stands in every certificate.

    vote: probit or mean. confidence: a rule of `confidence.CONFIDENCE_RULES`. weights: of the probit vote, None: all
    1. rivals: bound the rivals too. pooled: use the pooled rule for images whose selection votes are unanimous.
    radius: None, or certify this radius (pixel units) or nothing, by an e-value instead of bounds.
    """

    vote: str = "probit"
    confidence: str = "bonferroni"
    weights: tuple[float, ...] | None = None
    rivals: bool = False
    pooled: bool = False
    radius: float | None = None

    def __post_init__(self) -> None:
        """Refuse a vote without a radius, and weights that the mean vote or the pooled rule would ignore."""
        if self.vote not in VOTES:
            raise ValueError(f"vote must be one of {', '.join(VOTES)}, got '{self.vote}'")
        if self.vote == "mean" and self.weights is not None:
            raise ValueError(f"weights apply to the probit vote, not to mean; got {self.weights}")
        if self.pooled and self.weights is not None and len(set(self.weights)) > 1:
            raise ValueError(f"the pooled rule needs equal weights, got {self.weights}")
        if self.radius is not None and (self.confidence, self.rivals, self.pooled) != ("bonferroni", False, False):
            raise ValueError("a rule for a fixed radius has no bounds: no rivals, no pooling, and no sharing of alpha")

    @property
    def name(self) -> str:
        """For example `probit rivals staircase`, with ` or pooled` where some images may get the pooled rule."""
        return self.name_of_boxes + (" or pooled" if self.pooled else "")

    @classmethod
    def named(cls, name: str) -> Rule:
        """The rule that has this `name`.

        Raises:
            ValueError: no rule has it.
        """
        boxes, pooled = name.removesuffix(" or pooled"), name.endswith(" or pooled")
        vote, bounded, confidence, *rest = [*boxes.split(" "), "", "", ""]
        if confidence == "e-value" and rest[0].startswith("r="):
            radius, confidence, rest = float(rest[0].removeprefix("r=")), "bonferroni", rest[1:]
        else:
            radius = None
        weights = tuple(map(float, rest[0].removeprefix("w=").split(","))) if rest[0].startswith("w=") else None
        rule = cls(vote, confidence, weights, bounded == "rivals", pooled, radius)
        if rule.name != name:
            raise ValueError(f"no rule is named '{name}'")
        return rule

    @property
    def name_of_boxes(self) -> str:
        """The name that stands in the certificate of an image whose boxes were used."""
        weights = "" if self.weights is None else f" w={','.join(map(repr, self.weights))}"
        if self.radius is not None:
            return f"{self.vote} p_A e-value r={self.radius!r}{weights}"
        return f"{self.vote} {'rivals' if self.rivals else 'p_A'} {self.confidence}{weights}"

    @property
    def name_of_pooled(self) -> str:
        """The name that stands in the certificate of an image that got the pooled rule."""
        return f"{self.vote} p_A pooled"


@dataclass(frozen=True, eq=False)
class CertifiedRadii:
    """Radii of N images and the bounds, in the box that decides, that they follow from.

    radius: float64 [N], pixel units, 0 where nothing is certified. a_lower: float64 [N, K], quantile of the selected
    class's lower bound. b_upper: float64 [N, K], quantile of the deciding rival's upper bound. margin: float64 [N, K],
    pixel units, signed. With the pooled rule all sub-images share one bound, on their mean failure probability. A rule
    for a fixed radius makes no bounds: -inf, inf and -inf stand in their place.
    rival: int64 [N], class of the deciding rival, -1 where it is one without votes or where rivals are not bounded.
    """

    radius: Floats
    a_lower: Floats
    b_upper: Floats
    margin: Floats
    rival: Integers

    @property
    def p_lower(self) -> Floats:
        """Lower bounds of the selected class's probability: float64 [N, K]."""
        return np.asarray(np.nextafter(ndtr(self.a_lower), 0.0))  # ndtr rounds to nearest: step to the safe side

    @property
    def rival_upper(self) -> Floats:
        """Upper bounds of the deciding rival's probability: float64 [N, K]."""
        return np.asarray(np.nextafter(ndtr(self.b_upper), 1.0))


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
        rule: how bounds are made and joined.
        alpha: failure probability of one image's whole certificate.
        rivals: the other classes' votes, needed by rules with rivals.
        unanimous: bool [N], no selection vote of any sub-image went against the class; needed by pooled rules.
        share: the stage's share w_j of every level, in (0, 1]; 1 for a fixed number of samples. Not used by rules for a
            fixed radius, which need none.

    Raises:
        ValueError: votes outside [0, samples], a rule that does not fit K or the sigmas, alpha outside (0, 1).
    """
    if rule.radius is not None:
        return _at_fixed_radius(class_votes, samples, sigmas, rule, rule.radius, alpha)
    in_boxes = radii_in_boxes(class_votes, samples, sigmas, rule, alpha, rivals=rivals, share=share)
    least = functools.reduce(_lesser, (radii for _, radii in in_boxes))
    if rule.pooled:
        if unanimous is None:
            raise ValueError(f"rule '{rule.name}' needs to know where the selection votes are unanimous")
        chosen = pooled_images(unanimous, samples)
        least = _where(chosen, _pooled(class_votes, samples, sigmas, alpha * share), least)
    return replace(least, radius=np.fmax(least.radius, 0.0))


def _at_fixed_radius(
    class_votes: Integers, samples: Integers, sigmas: Sequence[float], rule: Rule, radius: float, alpha: float
) -> CertifiedRadii:
    """`radius` where its e-value has reached 1 / alpha, else 0; at every stage, for looks cost nothing."""
    log_e = log_e_values(class_votes, samples, sigmas, radius, vote=rule.vote, weights=rule.weights)
    no_bound = np.full(class_votes.shape, -np.inf)
    nobody = np.full(len(log_e), -1)
    return CertifiedRadii(np.where(log_e >= -math.log(alpha), radius, 0.0), no_bound, -no_bound, no_bound, nobody)


def radii_in_boxes(
    class_votes: Integers,
    samples: Integers,
    sigmas: Sequence[float],
    rule: Rule,
    alpha: float,
    *,
    rivals: Rivals | None = None,
    share: float = 1.0,
) -> Iterator[tuple[Floats, CertifiedRadii]]:
    """Each box of the rule: its levels [K], and the radii where all its bounds hold. They may be negative.

    What `certified_radii` takes the least of; see there.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be in (0, 1], got {share}")
    if rule.rivals and rivals is None:
        raise ValueError(f"rule '{rule.name}' needs the rivals' votes")
    bounded = rivals if rule.rivals and rivals is not None and rivals.count > 1 else None
    boxes = level_boxes(rule.confidence, alpha, class_votes.shape[-1]) * share
    counts = DistinctCounts(class_votes, samples)
    against = (
        None if bounded is None else DistinctCounts(samples[bounded.image] - bounded.votes, samples[bounded.image])
    )
    for levels in boxes:
        yield levels, _in_box(counts, against, bounded, sigmas, rule, levels)


def pooled_images(unanimous: NDArray[np.bool_], samples: Integers) -> NDArray[np.bool_]:
    """Which images get the pooled rule: unanimous selection votes, and as many samples of every sub-image."""
    return np.asarray(unanimous & (samples == samples[:, :1]).all(axis=1), np.bool_)


def _in_box(
    counts: DistinctCounts,
    against: DistinctCounts | None,
    rivals: Rivals | None,
    sigmas: Sequence[float],
    rule: Rule,
    levels: Floats,
) -> CertifiedRadii:
    """Bounds at one level per sub-image, and the radius where they all hold (it may be negative)."""
    if rivals is None or against is None:
        a_lower = counts.lower_quantile(levels)
        margin = margins(a_lower, -a_lower, sigmas)  # every rival's p^k_B <= 1 - p^k_A
        radius = mean_radius(a_lower, sigmas) if rule.vote == "mean" else probit_radius(margin, rule.weights)
        return CertifiedRadii(radius, a_lower, -a_lower, margin, np.full(len(a_lower), -1))
    a_lower = counts.lower_quantile(CLASS_SHARE * levels)
    a_there = a_lower[rivals.image]
    b_upper = np.minimum(-against.lower_quantile((1 - CLASS_SHARE) / rivals.count * levels), -a_there)
    margin = margins(a_there, b_upper, sigmas)
    if rule.vote == "mean":
        radius = cross_pairing_radius(a_there, b_upper, sigmas)
    else:
        radius = probit_radius(margin, rule.weights)
    closest = _closest(radius, rivals.image, len(a_lower))
    return CertifiedRadii(radius[closest], a_lower, b_upper[closest], margin[closest], rivals.classes[closest])


def _closest(radius: Floats, image: Integers, images: int) -> Integers:
    """Per image, the entry of the rival with the smallest radius."""
    starts = np.searchsorted(image, np.arange(images))
    least = np.minimum.reduceat(radius, starts)
    at_least = np.flatnonzero(radius == least[image])
    return at_least[np.searchsorted(image[at_least], np.arange(images))]


def _pooled(class_votes: Integers, samples: Integers, sigmas: Sequence[float], level: float) -> CertifiedRadii:
    """R = sigma sqrt(K) (-Phi^-1(Q)), Q the bound on the mean failure probability of all sub-images.

    The failures S of all K n samples are a sum of Bernoullis with unequal probabilities; below its mean, its lower tail
    is at most that of the binomial with the same mean (Hoeffding 1956, Theorem 4; level <= 1/4 keeps S there). Where
    K Q <= 1/2 every failure probability is <= 1/2, -Phi^-1 is convex there, and Jensen's inequality gives the radius.
    Where K Q > 1/2 nothing is certified.

    Raises:
        ValueError: unequal sigmas, or a level above 1/4 (the theorem is proved up to there).
    """
    sub_images = class_votes.shape[-1]
    if len(set(sigmas)) > 1:
        raise ValueError(f"the pooled rule needs equal sigmas, got {list(sigmas)}")
    if level > 0.25:
        raise ValueError(f"the pooled rule needs alpha <= 1/4, got {level}")
    together = DistinctCounts(class_votes.sum(axis=1, keepdims=True), samples.sum(axis=1, keepdims=True))
    a_mean = together.lower_quantile(np.array([level]))
    a_lower = np.where(a_mean >= -ndtri(1 / (2 * sub_images)), a_mean, -np.inf)
    a_lower = np.broadcast_to(a_lower, class_votes.shape)
    margin = margins(a_lower, -a_lower, sigmas)
    return CertifiedRadii(probit_radius(margin), a_lower, -a_lower, margin, np.full(len(a_lower), -1))


def _lesser(first: CertifiedRadii, second: CertifiedRadii) -> CertifiedRadii:
    """Per image, the box with the smaller radius."""
    return _where((second.radius < first.radius) | np.isnan(second.radius), second, first)  # a NaN certifies nothing


def _where(take: NDArray[np.bool_], first: CertifiedRadii, second: CertifiedRadii) -> CertifiedRadii:
    """Per image the first where `take`, else the second."""
    rows = take[:, None]
    return CertifiedRadii(
        np.where(take, first.radius, second.radius),
        np.where(rows, first.a_lower, second.a_lower),
        np.where(rows, first.b_upper, second.b_upper),
        np.where(rows, first.margin, second.margin),
        np.where(take, first.rival, second.rival),
    )
