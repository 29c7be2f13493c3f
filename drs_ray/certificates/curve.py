"""Certified accuracy over a grid of radii, with its two kinds of uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

from drs_ray.certificates.radius import Floats

CI_LEVEL = 0.95
"""Confidence of the pointwise interval over images."""
RHO = 0.01
"""Probability that more certificates failed than `guaranteed_low` allows for."""


@dataclass(frozen=True, eq=False)
class Curve:
    """Certified accuracy at each radius; all float64 [R].

    ci_low, ci_high: pointwise 95 % Clopper-Pearson interval, valid if the images are a random sample of a population.
    guaranteed_low: with probability >= 99 % over the noise, at least this share of this very test set is correctly
    classified and robust at the radius.
    """

    radii: Floats
    certified_accuracy: Floats
    ci_low: Floats
    ci_high: Floats
    guaranteed_low: Floats


def certified_accuracy_curve(
    radii: ArrayLike, radius: Floats, correct: NDArray[np.bool_], alpha: float, *, planned: int | None = None
) -> Curve:
    """Share of ALL images that are predicted correctly with a certified radius >= r, for each r.

    Args:
        radii: grid [R], pixel units.
        radius: float64 [N], certified radii, 0 where abstaining.
        correct: bool [N], prediction equals label (False where abstaining).
        alpha: failure probability of one certificate.
        planned: number of all certified images, if the N images are only some of them. However the N were chosen, no
            more certificates fail among them than among all.

    Raises:
        ValueError: no images.
    """
    grid = np.asarray(radii, np.float64)
    images = len(radius)
    if images == 0:
        raise ValueError("a certified-accuracy curve needs at least one image")
    ordered = np.sort(radius[correct])
    certified = (len(ordered) - np.searchsorted(ordered, grid, side="left")).astype(np.float64)
    low, high = share_interval(certified, images, CI_LEVEL)
    failed = failed_certificates(planned or images, alpha)
    guaranteed = np.maximum(certified - failed, 0) / images
    return Curve(grid, certified / images, low, high, guaranteed)


def share_interval(successes: ArrayLike, trials: int, level: float) -> tuple[Floats, Floats]:
    """Two-sided Clopper-Pearson interval for the probability of a success: low and high, float64."""
    found = np.asarray(successes, np.float64)
    tail = (1 - level) / 2
    with np.errstate(invalid="ignore"):  # 0 and `trials` successes are set by hand
        low = np.where(found == 0, 0.0, betaincinv(found, trials - found + 1, tail))
        high = np.where(found == trials, 1.0, betaincinv(found + 1, trials - found, 1 - tail))
    return low, high


def band_half_width(images: int, level: float = CI_LEVEL) -> float:
    """Half the width of the simultaneous band, which contains the population's whole curve with confidence `level`.

    Dvoretzky, Kiefer and Wolfowitz with Massart's constant (1990): sup |F_n - F| <= sqrt(ln(2 / (1 - level)) / (2 n)).
    """
    return float(np.sqrt(np.log(2 / (1 - level)) / (2 * images)))


def failed_certificates(images: int, alpha: float, rho: float = RHO) -> int:
    """m*: with probability >= 1 - rho at most m* of independent certificates fail, each with probability alpha."""
    from scipy.stats import binom  # takes half a second: only where a curve is computed

    return int(binom.ppf(1 - rho, images, alpha))


def average_certified_radius(radius: Floats, correct: NDArray[np.bool_]) -> float:
    """ACR: mean over all images of the radius where the prediction is correct, else 0 (Zhai et al. 2020)."""
    return float(np.mean(np.where(correct, radius, 0.0)))
