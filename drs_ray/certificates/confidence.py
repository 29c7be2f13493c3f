"""How the sub-images of one image share its failure probability alpha: boxes of levels, of which one holds.

A confidence rule is a region: levels, and a number that the indices of a box's levels add up to. With probability
>= 1 - alpha there is a box in which every sub-image satisfies its Clopper-Pearson bounds at its level; so the least
radius over the boxes is certified, whatever the radius formula. Proofs: docs/theory.md 5.3, 5.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, betaincinv

EXTRA_LEVELS = 22
"""The staircase has K + 22 levels: more gain little, and each costs time."""


@dataclass(frozen=True, eq=False)
class Region:
    """A box gives sub-image k the level levels[i_k], for every (i_1, ..., i_K) with i_k >= 0 that add up to `total`.

    levels: float64 [total + 1], decreasing, in (0, 1).
    """

    levels: NDArray[np.float64]

    @property
    def total(self) -> int:
        """What the indices of every box add up to."""
        return len(self.levels) - 1

    def count(self, sub_images: int) -> int:
        """Number of boxes."""
        return math.comb(self.total + sub_images - 1, sub_images - 1)

    def boxes(self, sub_images: int) -> NDArray[np.float64]:
        """All boxes one by one: float64 [count, K] of levels. For few sub-images: K = 9 has millions."""
        return np.asarray(self.levels[np.array(list(_compositions(self.total, sub_images)))], np.float64)


def level_region(confidence: str, alpha: float, sub_images: int) -> Region:
    """The region of a rule by name.

    Raises:
        ValueError: unknown rule, or alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    if confidence not in CONFIDENCE_RULES:
        raise ValueError(f"confidence must be one of {', '.join(CONFIDENCE_RULES)}, got '{confidence}'")
    return CONFIDENCE_RULES[confidence](alpha, sub_images)


def bonferroni(alpha: float, sub_images: int) -> Region:
    """One box, alpha / K each: valid for any K by the union bound."""
    return Region(np.array([alpha / sub_images]))


@lru_cache(maxsize=64)
def staircase(alpha: float, sub_images: int) -> Region:
    """Levels q, q^2, ..., q^(M + 1) with M = K + 21: the boxes together miss alpha of K independent uniforms.

    With T_k super-uniform, the number of the first power of q below T_k is at most geometric, and their sum is at most
    M with probability >= 1 - P(NegBin > M) = 1 - I_q(M + 1, K) >= 1 - alpha. M -> infinity is Fisher's product region.
    """
    total = sub_images + EXTRA_LEVELS - 1
    q = _safely_below(float(betaincinv(total + 1, sub_images, alpha)))
    while betainc(total + 1, sub_images, q) > alpha:
        q = _safely_below(q)
    levels = np.power(q, np.arange(1, total + 2, dtype=np.float64))
    levels.flags.writeable = False  # it is shared by everybody who asks
    return Region(levels)


def _safely_below(q: float) -> float:
    return q * (1 - 1e-10)


def _compositions(total: int, parts: int) -> Iterator[tuple[int, ...]]:
    if parts == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _compositions(total - first, parts - 1):
            yield (first, *rest)


CONFIDENCE_RULES: Mapping[str, Callable[[float, int], Region]] = {"bonferroni": bonferroni, "staircase": staircase}
