"""An exact test whether two vote counts are of the same classifier on the same image, and its power.

For one class the votes of two recounts of n samples each are X and Y, binomial with the same vote probability p if the
recount is of the same classifier. Given X + Y, X is then hypergeometric for every p (Fisher 1935): the p-value needs no
estimate of p and no large n. The two recounts have the same number of samples, so the law is symmetric and the
two-sided p-value is twice the smaller tail.

The test keeps its level for independent noise: P(p-value <= a) <= a for every a, n and p. It keeps it for common noise
too (the same samples voted on by two kinds of hardware). Let the class's indicators of the two votes on a sample have
the same mean and no negative correlation. Their joint law is then a mixture of a tied pair (both votes equal) and an
independent pair, and (X, Y) counts independent pairs with tied pairs added. A tied pair never lowers the p-value. Let
x > y be the counts and s = x + y. Of a tied pair's two successes either each recount has one, which leaves the old law
H_n (successes among n drawn of 2n), or one recount has both, either recount with the same chance. So the new tail is a
mean of the old one, P(H_n >= x), and of (P(H_(n-1) >= x - 1) + P(H_(n+1) >= x + 1)) / 2. The latter is not smaller if

    P(H_n = x - 1, last drawn a failure) >= P(H_n = x, next drawn a failure),

which are C(n, x) C(n, y + 1) / (n C(2n, s)) times x and times y + 1. A tied failure is the same with successes and
failures exchanged. It is not proved that two kinds of hardware have exactly the same mean. Their kernels differ in the
last bits of a logit, which moves a vote probability far less than the test can detect.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Integers = NDArray[np.int64]

SLACK = 1e-9
"""Relative, added to every p-value, which is accurate to 2e-11 up to n = 1e9."""

_TERMS = 1 << 20  # summed terms of a tail (60 standard deviations at n = 1e9); a bound replaces all later terms


def homogeneity_p_values(first: Integers, second: Integers) -> NDArray[np.float64]:
    """Per class the exact two-sided p-value of "both counts have the same vote probability"; see the module.

    Args:
        first: votes of one recount, int64 [C], summing to the number of samples n.
        second: votes of the other recount, int64 [C], with the same sum.

    Returns:
        float64 [C] in [0, 1], rounded up.

    Raises:
        ValueError: negative votes, or different numbers of samples.
    """
    samples = int(first.sum())
    if samples != int(second.sum()):
        raise ValueError(f"both counts must be of the same number of samples, got {samples} and {int(second.sum())}")
    if min(first.min(), second.min()) < 0:
        raise ValueError("votes must be >= 0")
    pairs = zip(first.tolist(), second.tolist(), strict=True)
    return np.array([1.0 if x == y else _two_sided(max(x, y), min(x, y), samples) for x, y in pairs])


def detectable_shift(samples: int, level: float, power: float = 0.95) -> float:
    """The smallest difference of two vote probabilities that is found with probability `power`, at most 1.

    Computed by the normal law with a continuity correction, at the largest variance (probabilities around 1/2): a
    difference elsewhere is found more easily.

    Args:
        samples: n of each of the two counts, >= 1.
        level: a difference is found where the p-value is at most this, in (0, 1).
        power: wanted probability, in (0, 1).
    """
    # Given X + Y, X - Y has a variance of at most n^2 / (2n - 1) and steps of 2; 3 covers a step and half a step.
    spread = samples / np.sqrt(2 * samples - 1)
    distance = (ndtri(power) - ndtri(level / 2)) * spread + 3
    return min(1.0, float(distance / samples))


def _two_sided(larger: int, smaller: int, samples: int) -> float:
    """2 P(X >= larger | X + Y = larger + smaller), from the first term and the ratios of the terms."""
    from scipy.stats import binom  # takes half a second: only where votes cannot be compared exactly

    total = larger + smaller
    share = total / (2 * samples)
    term = binom.pmf(larger, samples, share) * binom.pmf(smaller, samples, share) / binom.pmf(total, 2 * samples, share)
    end = min(total, samples)
    x = np.arange(larger, min(end, larger + _TERMS), dtype=np.float64)
    ratios = np.cumprod((samples - x) * (total - x) / ((x + 1) * (samples - total + x + 1)))
    rest = ratios[-1] * (end - x[-1] - 1) if len(x) else 0.0  # the terms decrease; 0 if all of them are summed
    return float(min(1.0, 2 * term * (1 + ratios.sum() + rest) * (1 + SLACK)))
