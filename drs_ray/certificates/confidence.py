"""How the sub-images of one image share its failure probability alpha: sets of boxes of levels.

A confidence rule is an array of levels [J, K]. With probability >= 1 - alpha there is a box j in which every sub-image
k satisfies its Clopper-Pearson bound at level [j, k]; so the least radius over the boxes is certified, whatever the
radius formula. J = 1 is the plain union bound. Proofs: docs/theory.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Boxes = NDArray[np.float64]

STAIRCASE_BOXES = 24
"""Boxes of the staircase: more gain nothing that can be seen."""


def level_boxes(confidence: str, alpha: float, sub_images: int) -> Boxes:
    """The boxes of a rule by name: float64 [J, K] of levels in (0, 1).

    Raises:
        ValueError: unknown rule, a rule that does not fit K, or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    if confidence not in CONFIDENCE_RULES:
        raise ValueError(f"confidence must be one of {', '.join(CONFIDENCE_RULES)}, got '{confidence}'")
    return CONFIDENCE_RULES[confidence](alpha, sub_images)


def bonferroni(alpha: float, sub_images: int) -> Boxes:
    """One box, alpha / K each: valid for any K by the union bound."""
    return np.full((1, sub_images), alpha / sub_images)


def staircase(alpha: float, sub_images: int) -> Boxes:
    """Boxes (u_i, v_i) below the hyperbola u v = c, K = 2: together they miss alpha of two independent uniforms.

    U_k = P(X >= k_observed | p^k) is super-uniform at the truth and U_1, U_2 are independent, so with probability
    >= 1 - alpha the truth lies in one of the boxes {U_1 >= u_i, U_2 >= v_i}. J -> infinity is Fisher's product region.

    Raises:
        ValueError: K != 2.
    """
    if sub_images != 2:
        raise ValueError(f"the staircase is for K = 2 sub-images, got K = {sub_images}; use bonferroni")
    return _staircase(alpha).copy()


@lru_cache(maxsize=64)
def _staircase(alpha: float) -> Boxes:
    goal = alpha * (1 - 1e-9)  # on the safe side of the solver's tolerance
    log_c = brentq(lambda x: missed_area(_hyperbola(x)) - goal, np.log(alpha) - 20, np.log(alpha), xtol=1e-14)
    while missed_area(_hyperbola(log_c)) > alpha:
        log_c -= 1e-12
    return _hyperbola(log_c)


def _hyperbola(log_c: float) -> Boxes:
    edges = np.exp(log_c * (1 - np.arange(STAIRCASE_BOXES + 1) / STAIRCASE_BOXES))
    return np.stack([edges[:-1], np.exp(log_c) / edges[1:]], axis=1)


def missed_area(boxes: Boxes) -> float:
    """P(two independent uniforms lie in none of the boxes {U_1 >= u_i, U_2 >= v_i}), u increasing, v decreasing."""
    u, v = boxes.T
    return float(u[0] + ((np.append(u[1:], 1.0) - u) * v).sum())


CONFIDENCE_RULES: Mapping[str, Callable[[float, int], Boxes]] = {"bonferroni": bonferroni, "staircase": staircase}
