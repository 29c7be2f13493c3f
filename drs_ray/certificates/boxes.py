"""Finds the box of levels with the least radius without computing all boxes: K = 9 sub-images have millions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from drs_ray.certificates.radius import Floats, margins, normalised_weights
from drs_ray.certificates.votes import Integers


def least_box(
    a: Floats, b: Floats, sigmas: Sequence[float], vote: str, weights: Sequence[float] | None = None
) -> Integers:
    """The box with the least radius for each of P pairs of a class and a rival.

    A box gives sub-image k the level of index i_k; the indices add up to L - 1 (`confidence.Region`).

    Args:
        a: float64 [P, K, L], lower bounds of Phi^-1(p_A) at every level.
        b: float64 [P, K, L], upper bounds of Phi^-1(p_B).
        sigmas: K noise standard deviations, pixel units.
        vote: probit or mean (K <= 2).
        weights: of the probit vote; None: all 1.

    Returns:
        int64 [P, K], indices of levels.

    Raises:
        ValueError: the mean vote for K > 2, or not K positive sigmas or weights.
    """
    pairs, sub_images, levels = a.shape
    if levels == 1 or sub_images == 1:
        return np.full((pairs, sub_images), levels - 1)
    if vote == "mean":
        if sub_images > 2:
            raise ValueError(f"the mean vote has no radius for K = {sub_images} > 2; use the probit vote")
        crossed = np.minimum(a[:, 0] - b[:, 1, ::-1], a[:, 1, ::-1] - b[:, 0])  # Theorem 6, all 24 boxes
        first = crossed.argmin(axis=1)
        return np.stack([first, levels - 1 - first], axis=1)
    by_level = margins(np.moveaxis(a, 1, 2), np.moveaxis(b, 1, 2), sigmas) * normalised_weights(weights, sub_images)
    return _least_sum(np.ascontiguousarray(by_level.T)).T


def _least_sum(terms: Floats) -> Integers:
    """Indices i_k that add up to L - 1 and make the sum of terms[k, i_k] least: float64 [K, L, P] -> int64 [K, P].

    Computed by a min-plus product, sub-image by sub-image (docs/theory.md 5.4), and by tracing back its minima.
    """
    sub_images, levels, pairs = terms.shape
    least = [terms[0]]  # least[k][j]: the least sum over sub-images 0..k with indices that add up to j
    for term in terms[1:-1]:
        sums = np.full_like(term, np.inf)
        for index in range(levels):
            np.minimum(sums[index:], least[-1][: levels - index] + term[index], out=sums[index:])
        least.append(sums)
    found = np.empty((sub_images, pairs), np.int64)
    left = np.full(pairs, levels - 1)
    for k in range(sub_images - 1, 0, -1):
        rest = left - np.arange(levels)[:, None]
        sums = np.where(rest >= 0, np.take_along_axis(least[k - 1], np.maximum(rest, 0), axis=0) + terms[k], np.inf)
        found[k] = sums.argmin(axis=0)
        left = left - found[k]
    found[0] = left
    return found
