"""Adaptive sampling: cumulative stages, the share of every level that a stage may spend, and when an image is done.

Valid under any stopping rule: stage j takes every bound at its level times w_j, sum_j w_j <= 1, so that with
probability >= 1 - alpha the radii of all planned stages are true at once, evaluated or not (docs/theory.md 5.7). So a
stopping rule may depend on the data, and the largest radius over the evaluated stages is a certificate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.radius import Floats
from drs_ray.certificates.rule import Rule
from drs_ray.certificates.votes import Integers, Rivals

LAST_SHARE = 0.8
"""Share w_J of the last stage; the earlier stages share the rest equally."""
LOOKS = 2
"""Stages in each doubling of a run at a fixed radius: looks cost no alpha, but every stage costs units of work."""
FORECAST_LEVEL = 0.05
"""Error level of the optimistic forecast. It decides which samples are drawn, never what is certified."""


@dataclass(frozen=True)
class Schedule:
    """Cumulative samples after each stage, increasing, and the share of every level that each stage may spend."""

    samples: tuple[int, ...]
    shares: tuple[float, ...]

    def ranges(self) -> list[tuple[int, int]]:
        """(first sample, number of samples) of each stage."""
        starts = (0, *self.samples[:-1])
        return [(start, end - start) for start, end in zip(starts, self.samples, strict=True)]

    def up_to(self, samples: int) -> Schedule:
        """The stages that end at or before `samples`; their shares stay as planned."""
        count = sum(end <= samples for end in self.samples)
        return Schedule(self.samples[:count], self.shares[:count])


def doubling_schedule(samples: int, stages: int, *, looks: int = 1, block: int = 1) -> Schedule:
    """Stages that double up to `samples`; one stage is a fixed number of samples.

    Args:
        samples: cumulative samples at the last stage.
        stages: number of stages, without those that `looks` adds.
        looks: stages in each doubling, in equal ratios.
        block: the added stages end at multiples of it, rounded up; a stage that does not fit is left out.

    Raises:
        ValueError: fewer than 1 stage, or so many that the first would be empty.
    """
    if stages < 1 or samples < 2 ** (stages - 1):
        raise ValueError(f"{stages} stages that double up to {samples} samples: the first would be empty; use fewer")
    ends = tuple(-(-samples // 2 ** (stages - 1 - stage)) for stage in range(stages))
    if stages == 1:
        return Schedule(ends, (1.0,))
    between = [
        (math.ceil(low * 2 ** (look / looks) / block) * block, high)
        for low, high in itertools.pairwise(ends)
        for look in range(1, looks)
    ]
    ends = tuple(sorted({*ends, *(end for end, high in between if end < high)}))
    early = (1 - LAST_SHARE) / (len(ends) - 1)
    return Schedule(ends, (*([early] * (len(ends) - 1)), LAST_SHARE))


def is_open(
    best_radius: Floats,
    class_votes: Integers,
    samples: Integers,
    sigmas: Sequence[float],
    rule: Rule,
    alpha: float,
    *,
    rivals: Rivals | None,
    unanimous: NDArray[np.bool_],
    schedule: Schedule,
    radii: Sequence[float],
) -> NDArray[np.bool_]:
    """Which images go on to the next stage: those that by a forecast can reach the next radius of the grid.

    The forecast scales optimistic bounds of the votes so far to the last stage. So an image stops when its best
    radius has reached the top of the grid, or when not even a radius > 0 is forecast.

    Args:
        best_radius: float64 [N], the best certified radius so far.
        class_votes: int64 [N, K], estimation votes so far.
        samples: int64 [N, K], estimation samples so far.
        sigmas: K noise standard deviations, pixel units.
        rule: the certificate's rule.
        alpha: failure probability of one image's whole certificate.
        rivals: the other classes' votes so far.
        unanimous: bool [N], see `certified_radii`.
        schedule: all stages.
        radii: the grid, increasing, pixel units.

    Returns:
        bool [N].
    """
    final = np.full_like(samples, schedule.samples[-1])
    hoped = _scaled_up(class_votes, samples, final)
    hoped_rivals = None
    if rivals is not None:
        against = samples[rivals.image] - rivals.votes
        votes = final[rivals.image] - _scaled_up(against, samples[rivals.image], final[rivals.image])
        hoped_rivals = Rivals(rivals.image, rivals.classes, votes, rivals.count)
    forecast = certified_radii(
        hoped, final, sigmas, rule, alpha, rivals=hoped_rivals, unanimous=unanimous, share=schedule.shares[-1]
    ).radius
    grid = np.append(np.asarray(radii, np.float64), np.inf)
    wanted = grid[np.searchsorted(grid, best_radius, side="right")]
    wanted = np.where(best_radius > 0, wanted, np.nextafter(0.0, 1.0))
    return np.asarray(forecast >= wanted, np.bool_)


def _scaled_up(votes: Integers, samples: Integers, final: Integers) -> Integers:
    """Forecast of the votes among `final` samples from the upper 5 % bound of their share, or `final` if unanimous."""
    upper = ndtr(-lower_quantile(samples - votes, samples, FORECAST_LEVEL))
    return np.where(votes == samples, final, np.minimum(np.ceil(final * upper), final)).astype(np.int64)
