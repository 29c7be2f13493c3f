"""Whether an image is robust at one given radius r: an e-value against the hypothesis "its radius is at most r".

The numerator is a Jeffreys mixture of the votes' likelihoods, the denominator the largest likelihood among the vote
probabilities whose radius is at most r (docs/theory.md, section 12). The e-value may be evaluated after every sample:
if the radius is at most r, then with probability >= 1 - alpha it never reaches 1 / alpha. So these looks cost no
alpha. Values are natural logarithms, and every shortcut makes them smaller.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import betaln, log_ndtr

from drs_ray.certificates.radius import Floats, margins, mean_radius, probit_radius
from drs_ray.certificates.votes import Integers

_NEWTON_STEPS = 60
_CLOSE = 1e-12
_BISECTIONS = 50
_BRACKET = 1e-3  # half width in quantiles; nothing is certified if the slopes at its ends do not show a maximum inside
_SLACK = 1e-6  # subtracted from every logarithm with _SLACK_PER_SAMPLE; rounding is below a hundredth of both together
_SLACK_PER_SAMPLE = 1e-12


def log_e_values(
    class_votes: Integers,
    samples: Integers,
    sigmas: Sequence[float],
    radius: float,
    *,
    vote: str = "probit",
    weights: Sequence[float] | None = None,
) -> Floats:
    """Evidence that N images are robust at `radius`: log E against the hypothesis that their radius is at most this.

    An image is certified at `radius` at level alpha as soon as log E >= log(1 / alpha), after any number of samples.

    Args:
        class_votes: int64 [N, K], estimation votes for the class that the selection samples chose.
        samples: int64 [N, K], estimation samples.
        sigmas: K noise standard deviations, pixel units.
        radius: pixel units.
        vote: probit or mean.
        weights: of the probit vote; None: all 1.

    Returns:
        float64 [N], -inf if the vote shares' own radius is not above `radius` or a sub-image has no vote for the class.

    Raises:
        ValueError: votes outside [0, samples], sigmas or weights that do not fit, the mean vote for K > 2.
    """
    if not np.all((class_votes >= 0) & (class_votes <= samples)):
        raise ValueError("votes must be in [0, samples]")
    against = samples - class_votes
    rows, where = np.unique(np.concatenate([class_votes, against], axis=1), axis=0, return_inverse=True)
    x, y = np.split(rows.astype(np.float64), 2, axis=1)
    found = np.full(len(rows), -np.inf)
    some = (x > 0).all(axis=1)  # without votes for the class p^k = 0 is the most likely, with the radius -inf
    x, y = x[some], y[some]
    mixture = (betaln(x + 0.5, y + 0.5) - math.log(math.pi)).sum(axis=1)
    slack = _SLACK + _SLACK_PER_SAMPLE * (x + y).sum(axis=1)
    found[some] = mixture - _log_likelihood_bound(x, y, _coefficients(sigmas, vote, weights), radius) - slack
    return np.asarray(found[where.ravel()], np.float64)


def largest_fixed_radius(
    samples: int,
    sigmas: Sequence[float],
    alpha: float,
    *,
    vote: str = "probit",
    weights: Sequence[float] | None = None,
) -> float:
    """The largest radius that `samples` of each sub-image can certify at level alpha, if all votes are for one class.

    Pixel units, rounded down; 0 if no radius can be certified.
    """
    every = np.full((1, len(sigmas)), samples, np.int64)
    low, high = 0.0, 10.0 * float(_coefficients(sigmas, vote, weights).sum())
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        reached = log_e_values(every, every, sigmas, middle, vote=vote, weights=weights)[0] >= -math.log(alpha)
        low, high = (middle, high) if reached else (low, middle)
    return low


def _coefficients(sigmas: Sequence[float], vote: str, weights: Sequence[float] | None) -> Floats:
    """c [K], with which the radius from quantiles a is sum_k c_k a_k (Theorems 3 and 4)."""
    one_each = np.eye(len(sigmas))
    if vote == "mean":
        return mean_radius(one_each, sigmas)
    return probit_radius(margins(one_each, -one_each, sigmas), weights)


def _log_likelihood_bound(x: Floats, y: Floats, c: Floats, radius: float) -> Floats:
    """An upper bound of sup { sum_k x_k log Phi(a_k) + y_k log Phi(-a_k) : sum_k c_k a_k <= radius }, float64 [N].

    Newton's method approximates the maximiser. The bound is valid without its convergence: for every multiplier >= 0
    the maximum of the Lagrangian over a bounds the supremum, each of its K terms is concave, and a concave function
    lies below its tangent. The tangent is taken at the point found; its maximum lies within `_BRACKET` or the bound is
    inf.

    Args:
        x: float64 [N, K], votes for the class, > 0.
        y: float64 [N, K], votes against.
        c: float64 [K], > 0.
        radius: of the hypothesis.
    """
    a = np.full_like(x, radius / c.sum())
    with np.errstate(all="ignore"):  # the last line turns overflows into inf
        for _ in range(_NEWTON_STEPS):
            slope, curvature = _slope(x, y, a), _curvature(x, y, a)
            multiplier = (c * slope / curvature).sum(axis=1) / (c * c / curvature).sum(axis=1)
            step = (slope - multiplier[:, None] * c) / curvature
            longest = np.abs(step).max(axis=1, initial=0.0)
            if not (longest > _CLOSE).any():
                break
            a = a + step / np.maximum(longest, 1.0)[:, None]
        multiplier = np.maximum(multiplier, 0.0)
        price = multiplier[:, None] * c
        found = (_slope(x, y, a - _BRACKET) >= price) & (_slope(x, y, a + _BRACKET) <= price)
        terms = x * log_ndtr(a) + y * log_ndtr(-a) - price * a + _BRACKET * np.abs(_slope(x, y, a) - price)
        bound = terms.sum(axis=1) + multiplier * radius
    return np.where(found.all(axis=1) & np.isfinite(bound), bound, np.inf)


def _hazard(a: Floats) -> Floats:
    """phi(a) / Phi(a), the derivative of log Phi."""
    return np.exp(-a * a / 2 - log_ndtr(a)) / math.sqrt(2 * math.pi)


def _slope(x: Floats, y: Floats, a: Floats) -> Floats:
    return x * _hazard(a) - y * _hazard(-a)


def _curvature(x: Floats, y: Floats, a: Floats) -> Floats:
    """Minus the second derivative; positive, since log Phi is strictly concave."""
    lower, upper = _hazard(a), _hazard(-a)
    return x * lower * (lower + a) + y * upper * (upper - a)
