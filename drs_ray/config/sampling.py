"""The noise, and the number of noise samples."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from drs_ray.config.base import Section


class NoiseConfig(Section):
    """The noise law and the key of its streams."""

    law: Literal["lattice", "gaussian"] = Field(
        "lattice",
        description="lattice: exact integer Gaussian noise in steps of 1/255 (8-bit images, which all data sets have); "
        "gaussian: float32 noise.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Part of every noise key of the run.")
    block: int = Field(1000, ge=1, le=1_000_000, description="Samples per keyed block of noise.")


class BudgetConfig(Section):
    """Noise samples per image and sub-image: a fixed number, or adaptive stages that double up to it."""

    selection: int = Field(100, ge=1, le=10**7, description="Samples that choose the class.")
    estimation: int = Field(
        100_000, ge=1, le=10**9, description="Samples that bound its probability; with stages, up to the last stage."
    )
    stages: int = Field(
        1,
        ge=1,
        le=30,
        description="1: a fixed number of samples. More: adaptive; the number of samples doubles from stage to stage "
        "(8 is a good choice, or 11 with certificate.radius).",
    )
    planned: int | None = Field(
        None, ge=1, le=10**9, description="Largest value of estimation to which the run may be extended later."
    )

    @model_validator(mode="after")
    def _stages_fit(self) -> Self:
        planned = self.planned or self.estimation
        if planned < 2 ** (self.stages - 1):
            raise ValueError(
                f"{self.stages} stages that double up to {planned} samples: the first would be empty; use fewer stages"
            )
        allowed = [-(-planned // 2 ** (self.stages - 1 - stage)) for stage in range(self.stages)]
        if self.estimation not in allowed:
            raise ValueError(
                f"estimation must be one of the stages planned up to {planned} ({', '.join(map(str, allowed))}), "
                f"got {self.estimation}"
            )
        return self
