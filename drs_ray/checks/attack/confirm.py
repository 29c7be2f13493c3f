"""An exact test, on fresh samples, whether a rival beats the prediction in the smoothed vote (docs/theory.md 11)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, ndtr

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.confidence import level_region
from drs_ray.certificates.radius import margins, probit_radius
from drs_ray.certificates.rule import Rule

_SLACK = 1e-9  # betainc is accurate to 1e-13, sums of ndtr to 1e-15


def rival_wins(
    votes: NDArray[np.int64],
    prediction: int,
    rival: int,
    sigmas: tuple[float, ...],
    rule: Rule,
    level: float,
) -> bool:
    """Whether the rival's score is confirmed, at a level, to be above the prediction's.

    If it is not above, True is returned with probability at most `level` over the samples. K = 1: one-sided binomial
    test of the two classes' votes. K > 1: in each box of levels the rival's probabilities are bounded from below and
    the prediction's from above; the rival must win in every box.

    Args:
        votes: int64 [K, C], of samples that had no part in choosing the image, the prediction or the rival.
        prediction: the certified class.
        rival: another class.
        sigmas: K noise standard deviations, pixel units.
        rule: its vote and weights define the smoothed classifier.
        level: upper limit of the probability of a wrong True, in (0, 1).
    """
    theirs, ours, samples = votes[:, rival], votes[:, prediction], votes.sum(axis=1)
    if len(sigmas) == 1:
        tail = betainc(max(int(theirs[0]), 1), int(ours[0]) + 1, 0.5)  # P(Binomial(theirs + ours, 1/2) >= theirs)
        return bool(theirs[0] > ours[0] and tail * (1 + _SLACK) <= level)
    confidence = "staircase" if len(sigmas) == 2 else "bonferroni"  # K > 2 would have too many boxes
    boxes = level_region(confidence, level, len(sigmas)).boxes(len(sigmas))
    if votes.shape[1] == 2:  # p_A = 1 - p_B: one bound gives both
        lower = lower_quantile(theirs, samples, boxes)
        upper = -lower
    else:
        lower = lower_quantile(theirs, samples, boxes / 2)
        upper = np.minimum(-lower_quantile(samples - ours, samples, boxes / 2), -lower)
    if rule.vote == "mean":
        return bool(np.all((ndtr(lower) - ndtr(upper)).sum(axis=1) > _SLACK))
    return bool(np.all(probit_radius(margins(lower, upper, sigmas), rule.weights) > 0))
