"""A group of images with their certificates, and numbers computed from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.curve import average_certified_radius
from drs_ray.certificates.radius import Floats
from drs_ray.certificates.rounding import format_down
from drs_ray.report.summary import SHARE_DIGITS, AtRadius, at_radii


@dataclass(frozen=True, eq=False)
class CertifiedGroup:
    """Images with their certificates. radius: float64 [N], pixel units, 0 where abstaining; correct: bool [N]."""

    failure_probability: float
    radius: Floats
    correct: NDArray[np.bool_]
    abstained: int

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.radius)

    @cached_property
    def acr(self) -> float:
        """ACR, pixel units."""
        return average_certified_radius(self.radius, self.correct)

    @property
    def acr_text(self) -> str:
        """ACR, rounded down."""
        return format_down(self.acr, SHARE_DIGITS)

    def at_radii(self, radii: Sequence[float]) -> tuple[AtRadius, ...]:
        """Certified accuracy, with its interval, at radius 0 and at increasing radii."""
        return at_radii(self, radii)
