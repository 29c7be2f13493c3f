"""Rules by which votes become a radius, and their names. This module needs neither numpy nor scipy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

VOTES = ("probit", "mean")
CONFIDENCES = ("bonferroni", "staircase")
"""How sub-images share alpha: see `drs_ray.certificates.confidence`."""
RULES_VERSION = 2
"""Must be raised when a config comes to mean another radius: an adaptive run continues only under its own rules."""
_POOLED = " with pooled"

LEAST_ALPHA = 1e-50
"""Smallest allowed failure probability: the tests of bounds and levels go down to it."""


@dataclass(frozen=True)
class Rule:
    """How counts become a radius. It is fixed before the estimation votes are seen; every certificate has its name.

    vote: probit or mean. confidence: one of `CONFIDENCES`. weights: of the probit vote, None: all 1. rivals: bound the
    rivals too. pooled: use the pooled rule too for images whose selection votes are unanimous. radius: None, or the one
    radius (pixel units) at which images are certified or abstain, by an e-value instead of bounds.
    """

    vote: str = "probit"
    confidence: str = "bonferroni"
    weights: tuple[float, ...] | None = None
    rivals: bool = False
    pooled: bool = False
    radius: float | None = None

    def __post_init__(self) -> None:
        """Refuse unknown votes, values of a wrong type, and settings that exclude each other."""
        if self.vote not in VOTES:
            raise ValueError(f"vote must be one of {', '.join(VOTES)}, got '{self.vote}'")
        if not isinstance(self.confidence, str):
            raise ValueError(f"confidence must be the name of a rule, got a {type(self.confidence).__name__}")
        if self.weights is not None and not isinstance(self.weights, tuple):
            raise ValueError(f"weights must be None or a tuple of numbers, got a {type(self.weights).__name__}")
        if not isinstance(self.rivals, bool) or not isinstance(self.pooled, bool):
            raise ValueError(f"rivals and pooled must be True or False, got {self.rivals!r} and {self.pooled!r}")
        if self.radius is not None and not isinstance(self.radius, float | int):
            raise ValueError(f"radius must be None or a number, in pixel units, got a {type(self.radius).__name__}")
        if self.vote == "mean" and self.weights is not None:
            raise ValueError(f"weights apply to the probit vote, not to mean; got {self.weights}")
        if self.pooled and self.weights is not None and len(set(self.weights)) > 1:
            raise ValueError(f"the pooled rule needs equal weights, got {self.weights}")
        if self.radius is not None and (self.confidence, self.rivals, self.pooled) != ("bonferroni", False, False):
            raise ValueError("a rule for a fixed radius has no bounds: no rivals, no pooling, and no sharing of alpha")

    @classmethod
    def resolved(
        cls,
        sigmas: Sequence[float],
        vote: str = "probit",
        confidence: str = "auto",
        weights: tuple[float, ...] | None = None,
        rivals: bool = True,
        pooled: bool | None = None,
        radius: float | None = None,
    ) -> Rule:
        """The rule of these settings for K sub-images, with all automatic choices made.

        Args:
            sigmas: K noise standard deviations, pixel units.
            vote: probit or mean.
            confidence: one of `CONFIDENCES`, or auto: staircase for K > 1, else bonferroni.
            weights: of the probit vote, one per sub-image; None: all 1.
            rivals: whether to bound the rivals too.
            pooled: None: pool if the pooled rule's theorem applies, K > 1 with equal sigmas and equal weights.
            radius: see `Rule`; with a radius, rivals, confidence and pooled are not used.

        Raises:
            ValueError: settings that do not fit K, the sigmas or each other; the message names their key.
        """
        k = len(sigmas)
        if weights is not None and len(weights) != k:
            raise ValueError(f"weights must have one entry per sub-image, of which there are {k}, got {len(weights)}")
        if weights is not None and vote == "mean":
            raise ValueError("weights applies to the probit vote, not to mean; remove it")
        if confidence == "staircase" and k == 1:
            raise ValueError("confidence: staircase is for two or more sub-images, there is 1; use bonferroni or auto")
        if vote == "mean" and k > 2:
            raise ValueError(f"vote: mean has no radius for {k} > 2 sub-images; use probit")
        can_pool = k > 1 and len(set(sigmas)) == 1 and (weights is None or len(set(weights)) == 1)
        if pooled and not can_pool:
            raise ValueError(
                "pooled needs two or more sub-images with equal sigmas and equal weights; set it to false or null"
            )
        if radius is not None:
            return cls(vote, weights=weights, radius=radius)
        if confidence == "auto":
            confidence = "bonferroni" if k == 1 else "staircase"
        return cls(vote, confidence, weights, rivals, can_pool if pooled is None else pooled)

    @property
    def name(self) -> str:
        """For example `probit pairs staircase`, and ` with pooled` if some images get the pooled rule too."""
        return self.name_of_boxes + (_POOLED if self.pooled else "")

    @classmethod
    def named(cls, name: str) -> Rule:
        """The rule that has this `name`.

        Raises:
            ValueError: no rule has this name.
        """
        boxes, pooled = name.removesuffix(_POOLED), name.endswith(_POOLED)
        vote, bounded, confidence, *rest = [*boxes.split(" "), "", "", ""]
        if confidence == "e-value" and rest[0].startswith("r="):
            radius, confidence, rest = float(rest[0].removeprefix("r=")), "bonferroni", rest[1:]
        else:
            radius = None
        weights = tuple(map(float, rest[0].removeprefix("w=").split(","))) if rest[0].startswith("w=") else None
        rule = cls(vote, confidence, weights, bounded == "pairs", pooled, radius)
        if rule.name != name or confidence not in CONFIDENCES:
            raise ValueError(f"no rule is named '{name}'")
        return rule

    @property
    def name_of_boxes(self) -> str:
        """The rule's name in the certificate of an image whose boxes have all of alpha."""
        weights = "" if self.weights is None else f" w={','.join(map(repr, self.weights))}"
        if self.radius is not None:
            return f"{self.vote} p_A e-value r={self.radius!r}{weights}"
        return f"{self.vote} {'pairs' if self.rivals else 'p_A'} {self.confidence}{weights}"
