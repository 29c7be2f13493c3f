"""Does a rival beat the prediction? An exact test of the smoothed classifier's vote on fresh samples (theory 11)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, ndtr

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.confidence import level_region
from drs_ray.certificates.radius import margins, probit_radius
from drs_ray.certificates.rule import Rule

_SLACK = 1e-9  # betainc is accurate to 1e-13, sums of ndtr to 1e-15: on the safe side of both


def rival_wins(
    votes: NDArray[np.int64],
    prediction: int,
    rival: int,
    sigmas: tuple[float, ...],
    rule: Rule,
    level: float,
) -> bool:
    """Whether the rival scores more than the prediction, confirmed at a level.

    If it does not, True is returned with probability at most `level` over the samples. K = 1: one-sided binomial test
    of the two classes' votes. K > 1: in each box of levels the rival's probabilities are bounded from below and the
    prediction's from above; the rival must win in every box.

    Args:
        votes: int64 [K, C], of samples that had no part in choosing the image, the prediction or the rival.
        prediction: class that is said to win.
        rival: another class.
        sigmas: K noise standard deviations, pixel units.
        rule: its vote and weights say which smoothed classifier.
        level: chance of a wrong True, in (0, 1).
    """
    theirs, ours, samples = votes[:, rival], votes[:, prediction], votes.sum(axis=1)
    if len(sigmas) == 1:
        tail = betainc(max(int(theirs[0]), 1), int(ours[0]) + 1, 0.5)  # P(Binomial(theirs + ours, 1/2) >= theirs)
        return bool(theirs[0] > ours[0] and tail * (1 + _SLACK) <= level)
    confidence = "staircase" if len(sigmas) == 2 else "bonferroni"  # the boxes of more sub-images are too many
    boxes = level_region(confidence, level, len(sigmas)).boxes(len(sigmas))
    if votes.shape[1] == 2:  # p_A = 1 - p_B: one bound is both
        lower = lower_quantile(theirs, samples, boxes)
        upper = -lower
    else:
        lower = lower_quantile(theirs, samples, boxes / 2)
        upper = np.minimum(-lower_quantile(samples - ours, samples, boxes / 2), -lower)
    if rule.vote == "mean":
        return bool(np.all((ndtr(lower) - ndtr(upper)).sum(axis=1) > _SLACK))
    return bool(np.all(probit_radius(margins(lower, upper, sigmas), rule.weights) > 0))
