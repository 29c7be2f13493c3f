"""Which radii vote counts can give at all: a test of published radii whose counts nobody has seen.

For any sound procedure, not for ours alone. Let it print a radius of at least R for a class that got all n votes of
each of K sub-images. Take half-spaces whose vote probability is Phi(a) in every sub-image. Their true radius is at most
||sigma||_2 a, whatever the vote's weights w: for the probit vote it is a sum_k w_k sigma_k / ||w||_2 (docs/theory.md
4.1), and the mean vote's is no larger. All votes are for the class with probability Phi(a)^(K n). Where R is above
||sigma||_2 a the radius is false, so that this probability must be at most alpha. Hence
R <= ||sigma||_2 Phi^-1(alpha^(1 / (K n))). The pooled rule attains it for equal sigmas.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri_exp
from scipy.stats import binom

from drs_ray.certificates.bounds import QUANTILE_SLACK, lower_quantile
from drs_ray.certificates.radius import Floats

_TOLERANCE = 1e-6  # relative; far above the slack of bounds, far below three digits


def largest_radius(sigmas: Sequence[float], samples: int, alpha: float) -> float:
    """The largest radius that any sound certificate can have, pixel units; see the module.

    Args:
        sigmas: K noise standard deviations, pixel units.
        samples: estimation samples n of each sub-image.
        alpha: failure probability of one certificate, in (0, 1).
    """
    quantile = float(ndtri_exp(np.log(alpha) / (len(sigmas) * samples)))
    return float(np.linalg.norm(sigmas)) * quantile * (1 + _TOLERANCE)


def is_attained(low: Floats, high: Floats, sigma: float, samples: int, alpha: float) -> NDArray[np.bool_]:
    """Whether some count k gives sigma Phi^-1(Clopper-Pearson lower bound of k of n at level alpha) in [low, high].

    That is the radius of Cohen et al. 2019 (K = 1, the class alone); other sound rules have other radii.

    Args:
        low: float64 [N], > 0, pixel units.
        high: float64 [N].
        sigma: noise standard deviation, pixel units.
        samples: estimation samples n.
        alpha: failure probability of one certificate, in (0, 1).
    """
    low, high = low * (1 - _TOLERANCE), high * (1 + _TOLERANCE)
    # The bound of k is at least p where P(X >= k | p) <= alpha; the count may be off by one in floating point.
    first: Floats = np.asarray(binom.isf(alpha, samples, ndtr(low / sigma))) + 1
    counts = np.clip(first[:, None] + [-1, 0, 1], 1, samples)
    radius = sigma * (lower_quantile(counts, samples, alpha) + QUANTILE_SLACK)
    return np.asarray(((radius >= low[:, None]) & (radius <= high[:, None])).any(axis=1), np.bool_)
