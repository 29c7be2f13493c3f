"""Two classifiers on the same images: McNemar's exact test, Holm's correction, and intervals for differences.

All statements are about the population of which the images are a random sample. Each image has a yes or no for each
classifier (is it certified at a radius?), so only images on which the two disagree tell which classifier is better.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import bdtr, stdtr, stdtrit

from drs_ray.certificates.curve import share_interval
from drs_ray.certificates.radius import Floats


def mcnemar_exact(only_first: ArrayLike, only_second: ArrayLike) -> Floats:
    """Two-sided p-values of McNemar's exact test: the smaller of the two numbers is Binomial(their sum, 1/2).

    Args:
        only_first: images with yes for the first classifier and no for the second, int [R].
        only_second: images with no for the first and yes for the second, int [R].

    Returns:
        float64 [R]; 1 where the two agree on every image.
    """
    first, second = np.asarray(only_first, np.int64), np.asarray(only_second, np.int64)
    both_tails = 2 * bdtr(np.minimum(first, second), first + second, 0.5)
    return np.asarray(np.minimum(both_tails, 1.0), np.float64)


def holm(p_values: ArrayLike) -> Floats:
    """p-values adjusted for their number by Holm's step-down (1979): valid under any dependence between the tests.

    Rejecting those that are <= q keeps the probability of any false rejection at or below q. float64, same shape.
    """
    found = np.asarray(p_values, np.float64)
    order = np.argsort(found, axis=None, kind="stable")
    stepped = np.maximum.accumulate(found.ravel()[order] * np.arange(found.size, 0, -1))
    adjusted = np.empty(found.size)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.reshape(found.shape)


def difference_interval(
    only_first: ArrayLike, only_second: ArrayLike, images: int, level: float
) -> tuple[Floats, Floats]:
    """Interval for the share of the second minus that of the first; coverage at least `level`, whatever the shares.

    It is the difference of the two shares of disagreement, each in its Clopper-Pearson interval at (1 + level) / 2:
    both hold at once with probability >= level. Wider than approximate intervals (Tango, Newcombe), never too narrow.

    Returns:
        low and high, float64 [R], in [-1, 1].
    """
    each = (1 + level) / 2
    first_low, first_high = share_interval(only_first, images, each)
    second_low, second_high = share_interval(only_second, images, each)
    return second_low - first_high, second_high - first_low


def mean_difference_interval(differences: ArrayLike, level: float) -> tuple[float, float, float]:
    """Student's t for paired values: an interval for the mean difference, and the two-sided p-value of 0.

    Approximate: the law of the mean is close to a normal law for hundreds of images, also with many equal differences.

    Args:
        differences: of the second value and the first, of each image, float [N], N >= 2.
        level: coverage of the interval.

    Returns:
        low, high, p-value. Without any spread, the interval is one point, and p is 1 where this is 0, else 0.
    """
    values = np.asarray(differences, np.float64)
    freedom, mean = len(values) - 1, float(values.mean())
    error = float(values.std(ddof=1)) / len(values) ** 0.5
    if error == 0:
        return mean, mean, float(mean == 0)
    half = float(stdtrit(freedom, (1 + level) / 2)) * error
    return mean - half, mean + half, float(2 * stdtr(freedom, -abs(mean) / error))
