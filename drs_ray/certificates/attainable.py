"""Which radii vote counts can give at all: the largest radius of a rule, and a test of radii published without counts.

The test applies to every certificate that is sound for the selected class, is a function of the estimation votes (a
randomised bound, Voracek 2024, is not, and may give more), and does not fall when votes for that class are added. Let R
be the radius that it gives for all n votes of each of K sub-images; fewer votes give no more. Take half-spaces whose
vote probability is Phi(a) in every sub-image. Shifts of sigma_k a bring each probability to 1/2, so their true radius
is at most ||sigma||_2 a under any vote that turns where all sub-images turn (docs/theory.md 4.1, 4.2). All votes are
for the class with probability Phi(a)^(K n). If R > ||sigma||_2 a, the certificate is then false, so this probability is
at most alpha: R <= ||sigma||_2 Phi^-1(alpha^(1 / (K n))). A pooled bound with all of alpha attains it for equal sigmas.

If each sub-image has a bound of its own at level alpha / K (Bonferroni), Phi^-1((alpha / K)^(1 / n)) takes the place of
the quantile, since sum_k w_k sigma_k a_k / ||w||_2 <= ||sigma||_2 max a_k by Cauchy-Schwarz.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr, ndtri_exp

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.radius import Floats
from drs_ray.certificates.rule import Rule
from drs_ray.certificates.votes import Rivals

_TOLERANCE = 1e-6  # of quantiles, absolute and relative: far above the errors of bounds, far below three digits
_MOST_SAMPLES = 1 << 30


def best_radius(
    rule: Rule, sigmas: Sequence[float], samples: int, alpha: float, num_classes: int, share: float = 1.0
) -> float:
    """The largest radius that a rule can certify: the radius of an image with all votes for one class.

    Args:
        rule: how votes become certificates.
        sigmas: K noise standard deviations, pixel units.
        samples: estimation samples of each sub-image.
        alpha: failure probability of one certificate, in (0, 1).
        num_classes: number of classes.
        share: the stage's share of every level.

    Returns:
        Pixel units; 0 where nothing can be certified.

    Raises:
        ValueError: a rule that does not fit K or the sigmas.
    """
    every = np.full((2, len(sigmas)), samples)  # two images: a pooled rule has other levels if selection is unanimous
    no_votes = Rivals(np.arange(2), np.full(2, -1), np.zeros_like(every), num_classes - 1)
    unanimous = np.array([False, True])
    found = certified_radii(every, every, sigmas, rule, alpha, rivals=no_votes, unanimous=unanimous, share=share)
    return float(found.radius.max())


def least_samples(rule: Rule, sigmas: Sequence[float], alpha: float, num_classes: int, share: float = 1.0) -> int:
    """The fewest estimation samples of each sub-image with which a rule can certify anything; see `best_radius`."""
    low, high = 0, 1
    while high < _MOST_SAMPLES and best_radius(rule, sigmas, high, alpha, num_classes, share) == 0:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (
            (middle, high) if best_radius(rule, sigmas, middle, alpha, num_classes, share) == 0 else (low, middle)
        )
    return high


def largest_radius(sigmas: Sequence[float], samples: int, alpha: float) -> float:
    """The largest radius of a sound certificate from votes alone (see the module), pixel units, rounded up.

    Args:
        sigmas: K noise standard deviations, pixel units.
        samples: estimation samples n of each sub-image.
        alpha: failure probability of one certificate, in (0, 1).
    """
    return _unanimous(sigmas, alpha, len(sigmas) * samples)


def largest_bonferroni_radius(sigmas: Sequence[float], samples: int, alpha: float) -> float:
    """The largest radius if every sub-image has a bound of its own at level alpha / K; see `largest_radius`."""
    return _unanimous(sigmas, alpha / len(sigmas), samples)


def least_alpha(radius: float, sigmas: Sequence[float], samples: int) -> float:
    """The smallest failure probability at which `largest_radius`, without its rounding, reaches a radius; in [0, 1].

    Args:
        radius: > 0, pixel units.
        sigmas: K noise standard deviations, pixel units.
        samples: estimation samples n of each sub-image.
    """
    return float(np.exp(len(sigmas) * samples * _log_unanimous(radius, sigmas)))


def samples_to_reach(radius: float, sigmas: Sequence[float], alpha: float) -> float:
    """The smallest n, not rounded, at which `largest_radius`, without its rounding, reaches a radius; inf if no n does.

    Args: see `least_alpha`; alpha: failure probability of one certificate, in (0, 1).
    """
    share = len(sigmas) * -_log_unanimous(radius, sigmas)
    return float(-np.log(alpha) / share) if share > 0 else float("inf")


def _log_unanimous(radius: float, sigmas: Sequence[float]) -> float:
    """log Phi(R / ||sigma||_2): the log probability of one vote of the half-space with this radius."""
    return float(log_ndtr(radius / np.linalg.norm(sigmas)))


def is_attained(low: Floats, high: Floats, sigma: float, samples: int, alpha: float) -> NDArray[np.bool_]:
    """Whether some count k gives sigma Phi^-1(Clopper-Pearson lower bound of k of n at level alpha) in [low, high].

    That is the radius of Cohen et al. 2019 (K = 1, p_A alone); other sound rules have other radii. In doubt: True.

    Args:
        low: float64 [N], > 0, pixel units.
        high: float64 [N].
        sigma: noise standard deviation, pixel units.
        samples: estimation samples n.
        alpha: failure probability of one certificate, in (0, 1).
    """
    from scipy.stats import binom  # half a second, for imported logs alone

    low, high = low - _TOLERANCE * (low + sigma), high + _TOLERANCE * (high + sigma)
    # The bound of k is at least p where P(X >= k | p) <= alpha; the count may be off by one in floating point.
    first: Floats = np.asarray(binom.isf(alpha, samples, ndtr(low / sigma))) + 1
    counts = np.clip(first[:, None] + [-1, 0, 1], 1, samples)
    radius = sigma * lower_quantile(counts, samples, alpha)
    return np.asarray(((radius >= low[:, None]) & (radius <= high[:, None])).any(axis=1), np.bool_)


def _unanimous(sigmas: Sequence[float], level: float, votes: int) -> float:
    """||sigma||_2 Phi^-1(level^(1 / votes)), from the bound if all votes are for the class; 0 if the bound is < 1/2."""
    quantile = float(ndtri_exp(np.log(level) / votes))
    norm = float(np.linalg.norm(sigmas))
    return norm * max(quantile + _TOLERANCE * (1 + abs(quantile)), 0.0)
