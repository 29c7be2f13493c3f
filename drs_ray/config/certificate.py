"""How counts become certificates."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal, TypedDict

from pydantic import Field, field_validator

from drs_ray.certificates.rule import LEAST_ALPHA, Rule
from drs_ray.config.base import Section


class CertificateConfig(Section):
    """How counts become certificates. No key changes a count; a run can be reduced again with other values."""

    alpha: float = Field(
        0.001, ge=LEAST_ALPHA, lt=1, description="Failure probability of one image's whole certificate, in (0, 1)."
    )
    vote: Literal["probit", "mean"] = Field(
        "probit",
        description="How the votes of sub-images are combined: probit for any number of them, mean (the DRS paper's) "
        "for two.",
    )
    rivals: bool = Field(True, description="Bound the other classes too, not only the selected one.")
    confidence: Literal["auto", "bonferroni", "staircase"] = Field(
        "auto", description="How sub-images share alpha; auto: staircase for two or more sub-images, else bonferroni."
    )
    pooled: bool | None = Field(
        None,
        description="For images with unanimous selection votes, pool the samples of all sub-images too, with half of "
        "alpha; null: if possible, which needs two or more sub-images with equal sigmas and weights.",
    )
    weights: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="Weight of each sub-image in the probit vote; null: all 1."
    )
    radius: float | None = Field(
        None,
        gt=0,
        description="Certify only this radius (pixel units), from fewer samples with budget.stages of 11; replaces "
        "rivals, confidence and pooled. null: certify the largest radius that an image's votes allow.",
    )
    radii: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
        min_length=1,
        description="Radii of the certified-accuracy table, increasing, in pixel units.",
    )

    @field_validator("radii")
    @classmethod
    def _radii_increase(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if any(b <= a for a, b in itertools.pairwise(value)):
            raise ValueError("must be strictly increasing, for example [0, 0.25, 0.5]")
        return value

    def rule(self, sigmas: Sequence[float]) -> Rule:
        """The rule of this section for sub-images with these sigmas (pixel units).

        Raises:
            ValueError: the section does not fit the sigmas.
        """
        settings = self.vote, self.confidence, self.weights, self.rivals, self.pooled, self.radius
        try:
            return Rule.resolved(sigmas, *settings)
        except ValueError as error:
            raise ValueError(f"certificate.{error}") from error

    @property
    def grid(self) -> tuple[float, ...]:
        """The radii of the table; with a fixed radius they end there, since nothing is certified at larger radii."""
        if self.radius is None:
            return self.radii
        return (*(radius for radius in self.radii if radius < self.radius), self.radius)


class CertificateKeys(TypedDict, total=False):
    """The keys of `CertificateConfig` as optional keyword arguments."""

    alpha: float
    vote: str
    rivals: bool
    confidence: str
    pooled: bool | None
    weights: Sequence[float] | None
    radius: float | None
    radii: Sequence[float]
