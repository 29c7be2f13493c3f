"""PREDICT of randomized smoothing (K = 1): the smoothed classifier's class without a radius, or abstain."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.special import betainc

from drs_ray.certificates.votes import Integers, most_voted, votes_of

_ROUNDING_UP = 1 + 1e-9  # betainc is accurate to 1e-13


def least_samples(alpha: float) -> int:
    """The fewest votes with which `predicted_classes` can return a class: all votes are for this class."""
    return next(votes for votes in itertools.count(1) if 2 * 0.5**votes * _ROUNDING_UP <= alpha)


def predicted_classes(votes: csr_array, alpha: float) -> Integers:
    """The class with the most votes, if a two-sided binomial test tells it from the runner-up; else -1.

    With probability >= 1 - alpha over the samples the result is -1 or the most probable class, whatever the other
    classes' probabilities (Cohen et al. 2019, Prop. 2; Hung & Fithian 2019, "Rank verification"). Given the n_A + n_B
    votes of the two, p-value = 2 P(Binomial(n_A + n_B, 1/2) >= n_A), at most 1.

    Args:
        votes: int64 [N, C], one sub-image's votes.
        alpha: failure probability of one image's prediction, in (0, 1).

    Returns:
        int64 [N].
    """
    parts: Sequence[csr_array] = [votes]
    everyone = np.arange(votes.shape[0])
    winner = most_voted(votes)
    first = votes_of(parts, everyone, winner)[:, 0]
    second = votes_of(parts, everyone, most_voted(votes, excluding=winner))[:, 0]
    upper_tail = betainc(np.maximum(first, 1), second + 1, 0.5)  # P(Binomial(first + second, 1/2) >= first)
    sure = 2 * upper_tail * _ROUNDING_UP <= alpha
    return np.where(sure & (first > second), winner, -1)
