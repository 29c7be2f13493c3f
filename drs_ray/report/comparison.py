"""Several runs over the same images: paired differences of shares and of mean radii, and the envelope of the runs.

The runs were certified on the same images (`test_sets.check_same_test_set`); rows are matched by image id.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.curve import CI_LEVEL, RHO, failed_certificates, share_interval
from drs_ray.certificates.paired import difference_interval, holm, mcnemar_exact, mean_difference_interval
from drs_ray.certificates.rounding import exact_text, format_down, format_ratio_down, format_up
from drs_ray.published.imported_run import ReportedRun
from drs_ray.report.summary import SHARE_DIGITS, run_names
from drs_ray.results.reduce import RunResult

ALL_PAIRS = 4
"""Up to this number of runs and comparisons, every pair is compared; of more, the first with each of the others."""
FEWEST_DIFFERENT = 20
"""Where the radii of fewer images differ, the normal approximation to the difference of two mean radii is not used."""
SMALLEST_P = 0.0001
"""Smaller p-values are shown as `< 0.0001`."""


@dataclass(frozen=True, kw_only=True)
class _Tested:
    """A difference of two runs: the interval [low, high] that it lies in, and the p-value of no difference."""

    low: float
    high: float
    p_value: float

    @property
    def interval_text(self) -> str:
        """The interval, both ends rounded outwards."""
        return _interval_text(self.low, self.high)

    @property
    def p_text(self) -> str:
        """p-value of this test alone, rounded up."""
        return p_text(self.p_value)


@dataclass(frozen=True, kw_only=True)
class PairAtRadius(_Tested):
    """Numbers of images certified at a radius (pixel units) by both runs, by one only, and by neither.

    low, high: interval for the share of the second minus that of the first, 95 % at least, for this radius alone.
    p_value: McNemar's exact test, two-sided. p_holm: the same, adjusted for all tests made together.
    """

    radius: float
    both: int
    only_first: int
    only_second: int
    neither: int
    p_holm: float

    @property
    def radius_text(self) -> str:
        """The radius in full."""
        return exact_text(self.radius)

    @property
    def difference_text(self) -> str:
        """Share of the second minus share of the first, rounded to nearest, with its sign."""
        images = self.both + self.only_first + self.only_second + self.neither
        return f"{(self.only_second - self.only_first) / images:+.{SHARE_DIGITS}f}"

    @property
    def p_holm_text(self) -> str:
        """Adjusted p-value, rounded up."""
        return p_text(self.p_holm)

    @property
    def differs(self) -> bool:
        """Whether the difference is significant at 5 % after the adjustment."""
        return self.p_holm <= 1 - CI_LEVEL


@dataclass(frozen=True, kw_only=True)
class PairInMean(_Tested):
    """Difference of two runs' mean radius (pixel units): mean of the second minus mean of the first, with its interval.

    Radii count as 0 where a run is wrong or abstains. on_grid: radii are rounded down to the grid of radii. p_value:
    Student's t for paired values, two-sided; approximate, as the interval (95 %).
    """

    on_grid: bool
    difference: float

    @classmethod
    def of(cls, differences: NDArray[np.float64], *, on_grid: bool) -> PairInMean:
        """From the difference of each image's radii, float64 [N], N >= 2."""
        low, high, p_value = mean_difference_interval(differences, CI_LEVEL)
        return cls(on_grid=on_grid, difference=float(differences.mean()), low=low, high=high, p_value=p_value)

    @property
    def name(self) -> str:
        """Its name in tables."""
        return "ACR on the grid" if self.on_grid else "ACR"

    @property
    def difference_text(self) -> str:
        """The difference, rounded to nearest, with its sign."""
        return f"{self.difference:+.{SHARE_DIGITS}f}"


@dataclass(frozen=True)
class Pair:
    """Two runs or comparisons, by position and name, compared image by image. same_counts: from the same votes.

    in_mean: empty if one of them has no radii or only one, or if fewer images than `FEWEST_DIFFERENT` differ.
    """

    first: int
    second: int
    first_name: str
    second_name: str
    same_counts: bool
    at_radii: tuple[PairAtRadius, ...]
    in_mean: tuple[PairInMean, ...]

    @property
    def verdict(self) -> str:
        """Which run is ahead at which radii after the adjustment, in words."""
        ahead = {
            self.first_name: [row for row in self.at_radii if row.differs and row.only_first > row.only_second],
            self.second_name: [row for row in self.at_radii if row.differs and row.only_second > row.only_first],
        }
        found = [
            f"{name} ahead at radius {', '.join(row.radius_text for row in rows)}"
            for name, rows in ahead.items()
            if rows
        ]
        return "; ".join(found) or "no difference at any radius that stands at 5 %"


@dataclass(frozen=True)
class EnvelopeAtRadius:
    """The run with the largest certified accuracy at a radius (pixel units).

    best: positions and names of all runs that have this accuracy. The intervals allow for the choice: they hold for all
    runs at once. ci_low, ci_high: Clopper-Pearson of the chosen run at 1 - 0.05 / runs. guaranteed: the largest number
    of images over the runs, without the certificates that may have failed, at probability 0.01 / runs each.
    """

    radius: float
    best: tuple[tuple[int, str], ...]
    images: int
    certified: int
    ci_low: float
    ci_high: float
    guaranteed: int

    @property
    def radius_text(self) -> str:
        """The radius in full."""
        return exact_text(self.radius)

    @property
    def accuracy_text(self) -> str:
        """Certified accuracy, rounded down."""
        return format_ratio_down(self.certified, self.images, SHARE_DIGITS)

    @property
    def interval_text(self) -> str:
        """The interval, both ends rounded outwards."""
        return _interval_text(self.ci_low, self.ci_high)

    @property
    def guaranteed_text(self) -> str:
        """Guaranteed share of these images, rounded down."""
        return format_ratio_down(self.guaranteed, self.images, SHARE_DIGITS)


def paired_differences(results: Sequence[ReportedRun], radii: Sequence[float]) -> tuple[Pair, ...]:
    """Pairs of runs and comparisons, tested at every radius; Holm's adjustment is over all pairs and radii together.

    A pair with a log of predictions, which has no radii, is tested only at radius 0.

    Args:
        results: runs over one test set, in any order of images.
        radii: increasing, pixel units; radius 0 compares accuracies.
    """
    names = run_names(results)
    held = [_certified(result, radii) for result in results]
    every = range(len(results))
    pairs = list(combinations(every, 2)) if len(results) <= ALL_PAIRS else [(0, other) for other in every[1:]]
    if not pairs:
        return ()
    tests = [
        (pair, at)
        for pair, ends in enumerate(pairs)
        for at, radius in enumerate(radii)
        if radius == 0 or all(results[end].has_radii for end in ends)
    ]
    first, second = (np.array([held[pairs[pair][end]][at] for pair, at in tests]) for end in (0, 1))
    only_first, only_second = (first & ~second).sum(axis=1), (second & ~first).sum(axis=1)
    both = (first & second).sum(axis=1)
    images = results[0].images
    low, high = difference_interval(only_first, only_second, images, CI_LEVEL)
    p_values = mcnemar_exact(only_first, only_second)
    adjusted = holm(p_values)

    def rows(pair: int) -> Iterator[PairAtRadius]:
        for here, (of, at) in enumerate(tests):
            if of != pair:
                continue
            alone = int(only_first[here]), int(only_second[here])
            yield PairAtRadius(
                radius=radii[at],
                both=int(both[here]),
                only_first=alone[0],
                only_second=alone[1],
                neither=images - int(both[here]) - sum(alone),
                low=float(low[here]),
                high=float(high[here]),
                p_value=float(p_values[here]),
                p_holm=float(adjusted[here]),
            )

    return tuple(
        Pair(
            first=a,
            second=b,
            first_name=names[a],
            second_name=names[b],
            same_counts=(results[a].uri, results[a].record.run_id) == (results[b].uri, results[b].record.run_id),
            at_radii=tuple(rows(index)),
            in_mean=tuple(_in_mean(results[a], results[b])),
        )
        for index, (a, b) in enumerate(pairs)
    )


def envelope(results: Sequence[ReportedRun], radii: Sequence[float]) -> tuple[EnvelopeAtRadius, ...]:
    """At each radius the best run, without comparisons and imported runs. Empty for fewer than two runs.

    Args:
        results: runs over one test set.
        radii: increasing, pixel units.
    """
    runs = [(position, result) for position, result in enumerate(results) if not result.variant]
    if len(runs) < 2:
        return ()
    names = run_names(results)
    images = results[0].images
    certified = np.array([_certified(result, radii).sum(axis=1) for _, result in runs])
    failed = np.array([failed_certificates(images, result.failure_probability, RHO / len(runs)) for _, result in runs])
    guaranteed = np.maximum(certified - failed[:, None], 0).max(axis=0)
    low, high = share_interval(certified, images, 1 - (1 - CI_LEVEL) / len(runs))
    return tuple(
        EnvelopeAtRadius(
            radius=radius,
            best=tuple((runs[one][0], names[runs[one][0]]) for one in np.flatnonzero(certified[:, at] == most)),
            images=images,
            certified=int(most),
            ci_low=float(low[:, at].max()),  # intervals of equal shares are equal, and they rise with the share
            ci_high=float(high[:, at].max()),
            guaranteed=int(guaranteed[at]),
        )
        for at, (radius, most) in enumerate(zip(radii, certified.max(axis=0), strict=True))
    )


def _certified(result: ReportedRun, radii: Sequence[float]) -> NDArray[np.bool_]:
    """Which images are certified at each radius [R, N], in the order of image ids."""
    return np.asarray(_reach(result) >= np.asarray(radii)[:, None], np.bool_)


def _reach(result: ReportedRun) -> NDArray[np.float64]:
    """Radius of each image [N] in the order of image ids, -inf where the class is wrong."""
    order = np.argsort(result.certificates["image_id"].to_numpy(), kind="stable")
    return np.asarray(np.where(result.correct, result.radius, -np.inf)[order], np.float64)


def on_grid(radii: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """Radii >= 0 [N], each rounded down to 0 or a radius of the grid [R]."""
    steps = np.union1d([0.0], grid)
    return np.asarray(steps[np.searchsorted(steps, radii, side="right") - 1], np.float64)


def _has_a_mean(result: ReportedRun) -> bool:
    """Whether images have radii, of which the largest is not one that was asked for."""
    asked = result.certified_by.radius if isinstance(result, RunResult) else result.record.radius
    return result.has_radii and asked is None


def _in_mean(first: ReportedRun, second: ReportedRun) -> Iterator[PairInMean]:
    if not all(_has_a_mean(result) for result in (first, second)):
        return
    one, other = (np.maximum(_reach(result), 0.0) for result in (first, second))
    if np.count_nonzero(one != other) < FEWEST_DIFFERENT:
        return
    yield PairInMean.of(other - one, on_grid=False)
    common = np.intersect1d(*(result.curve["radius"].to_numpy() for result in (first, second)))
    one, other = (on_grid(reach, common) for reach in (one, other))
    if np.count_nonzero(one != other) >= FEWEST_DIFFERENT:
        yield PairInMean.of(other - one, on_grid=True)


def _interval_text(low: float, high: float) -> str:
    return f"[{format_down(low, SHARE_DIGITS)}, {format_up(high, SHARE_DIGITS)}]"


def p_text(value: float) -> str:
    """A p-value, rounded up."""
    return f"< {SMALLEST_P:.4f}" if value < SMALLEST_P else format_up(value, 4)
