"""Counts to certificates: bounds in every box of levels, a radius in every box, and the least of them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.confidence import level_boxes
from drs_ray.certificates.radius import Floats, margins, mean_radius, probit_radius

VOTES = ("probit", "mean")


@dataclass(frozen=True)
class Rule:
    """How counts become a radius. Fixed before the estimation votes are seen; its name stands in every certificate."""

    vote: str = "probit"
    confidence: str = "bonferroni"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        """Refuse a vote without a radius, and weights that the mean vote would ignore."""
        if self.vote not in VOTES:
            raise ValueError(f"vote must be one of {', '.join(VOTES)}, got '{self.vote}'")
        if self.vote == "mean" and self.weights is not None:
            raise ValueError(f"weights apply to the probit vote, not to mean; got {self.weights}")

    @property
    def name(self) -> str:
        """For example `probit p_A bonferroni`."""
        weights = "" if self.weights is None else f" w={','.join(map(repr, self.weights))}"
        return f"{self.vote} p_A {self.confidence}{weights}"


@dataclass(frozen=True, eq=False)
class CertifiedRadii:
    """Radii of N images and the bounds, in the box that decides, that they follow from.

    radius: float64 [N], pixel units, 0 where nothing is certified. a_lower: float64 [N, K], quantile of the selected
    class's lower bound. b_upper: float64 [N, K], quantile of the rivals' upper bound. margin: float64 [N, K], pixel
    units, signed.
    """

    radius: Floats
    a_lower: Floats
    b_upper: Floats
    margin: Floats


def certified_radii(
    class_votes: NDArray[np.int64], samples: NDArray[np.int64], sigmas: Sequence[float], rule: Rule, alpha: float
) -> CertifiedRadii:
    """Certify N images; each certificate fails with probability at most alpha over its own estimation samples.

    Args:
        class_votes: int64 [N, K], estimation votes for the class that the selection samples chose.
        samples: int64 [N, K], estimation samples.
        sigmas: K noise standard deviations, pixel units.
        rule: how bounds are made and joined.
        alpha: failure probability of one image's whole certificate.

    Raises:
        ValueError: votes outside [0, samples], a rule that does not fit K, alpha outside (0, 1).
    """
    boxes = level_boxes(rule.confidence, alpha, class_votes.shape[-1])
    least = functools.reduce(_lesser, (_in_box(class_votes, samples, sigmas, rule, levels) for levels in boxes))
    return CertifiedRadii(np.maximum(least.radius, 0.0), least.a_lower, least.b_upper, least.margin)


def _in_box(
    class_votes: NDArray[np.int64],
    samples: NDArray[np.int64],
    sigmas: Sequence[float],
    rule: Rule,
    levels: Floats,
) -> CertifiedRadii:
    """Bounds at one level per sub-image, and the radius where they all hold (it may be negative)."""
    a_lower = lower_quantile(class_votes, samples, levels)
    b_upper = -a_lower  # every rival's p^k_B <= 1 - p^k_A
    margin = margins(a_lower, b_upper, sigmas)
    radius = mean_radius(a_lower, sigmas) if rule.vote == "mean" else probit_radius(margin, rule.weights)
    return CertifiedRadii(radius, a_lower, b_upper, margin)


def _lesser(first: CertifiedRadii, second: CertifiedRadii) -> CertifiedRadii:
    """Per image, the box with the smaller radius."""
    take = second.radius < first.radius
    rows = take[:, None]
    return CertifiedRadii(
        np.where(take, second.radius, first.radius),
        np.where(rows, second.a_lower, first.a_lower),
        np.where(rows, second.b_upper, first.b_upper),
        np.where(rows, second.margin, first.margin),
    )
