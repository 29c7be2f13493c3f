"""One-sided Clopper-Pearson bounds, as standard-normal quantiles that are safe to the last bit.

Bounds are expressed as a = Phi^-1(p_lower), because radii are computed from a and because near p = 1 the probability
itself loses all its digits. The conservative direction is down.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betainccinv, betaincinv, ndtri, ndtri_exp

QUANTILE_SLACK = 1e-8
"""Subtracted from every quantile, which betaincinv and betainccinv give to 8.5e-10 up to n = 1e9."""

LEAST_LEVEL = 1e-100
"""betaincinv loses its digits somewhere below this level (at 1e-300 it returns NaN, or bounds that are too high)."""


def lower_quantile(successes: ArrayLike, samples: ArrayLike, level: ArrayLike) -> NDArray[np.float64]:
    """Phi^-1 of the one-sided Clopper-Pearson lower bound of a probability.

    With probability >= 1 - level over the samples, the true probability p satisfies Phi^-1(p) >= the value returned.
    Clopper and Pearson 1934: p_lower = Beta^-1(level; k, n - k + 1). The quantile is computed from the smaller of
    p_lower and 1 - p_lower, so that no digits are lost near 0 or 1; for k = n from p_lower = level^(1/n).

    Args:
        successes: counts k, 0 <= k <= n.
        samples: numbers of trials n >= 1.
        level: error probabilities in [1e-100, 1). All three are broadcast.

    Returns:
        float64, broadcast shape; -inf for k = 0 or n = 0.

    Raises:
        ValueError: counts outside [0, n] or levels outside [1e-100, 1).
    """
    k, n, u = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (successes, samples, level)))
    if not np.all((k >= 0) & (k <= n)):
        raise ValueError("successes must be in [0, samples]")
    if not np.all((u >= LEAST_LEVEL) & (u < 1)):
        raise ValueError(f"level must be in [{LEAST_LEVEL:g}, 1)")
    quantile = np.full(k.shape, -np.inf)
    every = (k == n) & (k > 0)
    some = (k > 0) & ~every
    # P(X >= k) at p = 1/2 tells on which side of 1/2 the bound lies; inverting both tails would take twice as long.
    low = np.zeros(k.shape, np.bool_)
    low[some] = betainc(k[some], n[some] - k[some] + 1, 0.5) > u[some]
    high = some & ~low
    quantile[low] = ndtri(betaincinv(k[low], n[low] - k[low] + 1, u[low]))
    quantile[high] = -ndtri(betainccinv(n[high] - k[high] + 1, k[high], u[high]))
    quantile[every] = ndtri_exp(np.log(u[every]) / n[every])
    return quantile - QUANTILE_SLACK


def quantile_table(
    successes: NDArray[np.int64], samples: NDArray[np.int64], levels: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """`lower_quantile` of many counts, each at all levels, computed once per distinct (count, samples).

    Args:
        successes: int64, any shape, in [0, samples].
        samples: int64, same shape.
        levels: float64 [L].

    Returns:
        The table, float64 [D, L], and the row of each count in it, int64 in the shape of `successes`.

    Raises:
        ValueError: counts outside [0, samples], or levels out of range.
    """
    if not np.all((successes >= 0) & (successes <= samples)):
        raise ValueError("successes must be in [0, samples]")
    counts, trials = successes.ravel(), samples.ravel()
    width = int(trials.max(initial=0)) + 1
    kinds, kind = np.unique(trials, return_inverse=True)  # trials * width would overflow beyond 3e9 samples
    distinct, row = np.unique(kind * width + counts, return_inverse=True)
    table = lower_quantile((distinct % width)[:, None], kinds[distinct // width][:, None], levels)
    return table, row.reshape(successes.shape)
