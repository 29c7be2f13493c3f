"""How the sub-images of one image share its failure probability alpha: by boxes, which give each of them a level.

A confidence rule is a region: levels, and the sum of the level indices of every box. With probability >= 1 - alpha
there is a box in which every sub-image satisfies its Clopper-Pearson bounds at its level; so the least radius over the
boxes is certified, whatever the radius formula. Proofs: docs/theory.md 5.3, 5.4.
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
"""The staircase has K + 22 levels: more levels gain little, and each costs time."""


@dataclass(frozen=True, eq=False)
class Region:
    """A box gives sub-image k the level levels[i_k], for every (i_1, ..., i_K) with i_k >= 0 that add up to `total`.

    levels: float64 [total + 1], decreasing, in (0, 1).
    """

    levels: NDArray[np.float64]

    @property
    def total(self) -> int:
        """The sum of the level indices of every box."""
        return len(self.levels) - 1

    def count(self, sub_images: int) -> int:
        """Number of boxes."""
        return math.comb(self.total + sub_images - 1, sub_images - 1)

    def boxes(self, sub_images: int) -> NDArray[np.float64]:
        """The levels of all boxes: float64 [count, K]. For few sub-images: K = 9 has millions of boxes."""
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
    """Levels q, q^2, ..., q^(M + 1) with M = K + 21: K independent uniforms lie in no box with probability <= alpha.

    For independent super-uniform T_k let G_k be the largest integer i with T_k <= q^i. G_k is stochastically at most
    geometric, and the sum of the G_k is at most M with probability >= 1 - P(NegBin > M) = 1 - I_q(M + 1, K)
    >= 1 - alpha (docs/theory.md, Theorem 9). For M -> infinity the boxes fill Fisher's product region.
    """
    total = sub_images + EXTRA_LEVELS - 1
    q = _safely_below(float(betaincinv(total + 1, sub_images, alpha)))
    while betainc(total + 1, sub_images, q) > alpha:
        q = _safely_below(q)
    levels = np.power(q, np.arange(1, total + 2, dtype=np.float64))
    levels.flags.writeable = False  # the cache returns the same array to every caller
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
