"""How the sub-images of one image share its failure probability alpha: sets of boxes of levels.

A confidence rule is an array of levels [J, K]. With probability >= 1 - alpha there is a box j in which every sub-image
k satisfies its Clopper-Pearson bound at level [j, k]; so the least radius over the boxes is certified, whatever the
radius formula. J = 1 is the plain union bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]


def level_boxes(confidence: str, alpha: float, sub_images: int) -> Boxes:
    """The boxes of a rule by name: float64 [J, K] of levels in (0, 1).

    Raises:
        ValueError: unknown rule or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    if confidence not in CONFIDENCE_RULES:
        raise ValueError(f"confidence must be one of {', '.join(CONFIDENCE_RULES)}, got '{confidence}'")
    return CONFIDENCE_RULES[confidence](alpha, sub_images)


def bonferroni(alpha: float, sub_images: int) -> Boxes:
    """One box, alpha / K each: valid for any K by the union bound."""
    return np.full((1, sub_images), alpha / sub_images)


CONFIDENCE_RULES: Mapping[str, Callable[[float, int], Boxes]] = {"bonferroni": bonferroni}
