"""Distributions of a run's radii, bounds, classes and samples. Pure functions of reduced runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow.compute as pc

from drs_ray.certificates.radius import Floats
from drs_ray.certificates.rounding import format_ratio_down
from drs_ray.published.imported_run import ReportedRun
from drs_ray.report.certified_group import CertifiedGroup
from drs_ray.report.summary import SHARE_DIGITS
from drs_ray.results.reduce import RunResult
from drs_ray.results.tables import ABSTAIN

P_LOWER_EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0)
"""Bins for probabilities: finer near 1, where radii change most."""
RADIUS_BINS = 12
"""Largest number of bins of the histogram of radii."""


@dataclass(frozen=True)
class Histogram:
    """counts[i] values lie in [edges[i], edges[i + 1]), the last bin closed; one more edge than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class RadiusHistogram:
    """Certified radii of correctly and wrongly predicted images, over the same bins, and the number of abstentions."""

    correct: Histogram
    wrong: Histogram
    abstained: int


@dataclass(frozen=True, eq=False)
class ClassRow(CertifiedGroup):
    """The images of one class (label -1: no label)."""

    label: int

    @property
    def accuracy_text(self) -> str:
        """Share predicted correctly, rounded down."""
        return format_ratio_down(int(self.correct.sum()), self.images, SHARE_DIGITS)


@dataclass(frozen=True)
class StageUse:
    """One stage: cumulative samples, number of images that ended there, and of those whose radius it decides."""

    samples: int
    ended: int
    decided: int


@dataclass(frozen=True)
class Saving:
    """Noise samples that an adaptive run drew, and those that all stages for every image would have needed."""

    drawn: int
    full: int
    stages: tuple[StageUse, ...]

    @property
    def factor_text(self) -> str:
        """The ratio of all samples to the drawn ones, rounded down."""
        return format_ratio_down(self.full, self.drawn, 1)


def p_lower_histograms(result: RunResult, edges: Sequence[float] = P_LOWER_EDGES) -> tuple[Histogram, ...]:
    """Lower bounds of the selected class's probability, one histogram for each sub-image.

    If the pooled bound decides an image, every sub-image has the bound on their mean.
    """
    values = _lists(result, "p_lower")
    return tuple(_histogram(column, edges) for column in values.T)


def radius_edges(results: Sequence[ReportedRun]) -> tuple[float, ...]:
    """Bins that hold the radii of all runs: steps of 1, 2, 2.5 or 5 times a power of ten, at most RADIUS_BINS."""
    largest = max(float(result.radius.max()) for result in results) or 1.0
    power = math.floor(math.log10(largest)) - 2
    steps = (Decimal(step).scaleb(power + more) for more in range(4) for step in ("1", "2", "2.5", "5"))
    step = next(step for step in steps if float(step * RADIUS_BINS) > largest)
    bins = next(bins for bins in range(1, RADIUS_BINS + 1) if float(step * bins) > largest)
    return tuple(float(step * index) for index in range(bins + 1))


def radius_histogram(result: ReportedRun, edges: Sequence[float]) -> RadiusHistogram:
    """Certified radii of the images that do not abstain."""
    abstains = result.certificates["prediction"].to_numpy() == ABSTAIN
    return RadiusHistogram(
        _histogram(result.radius[result.correct], edges),
        _histogram(result.radius[~result.correct & ~abstains], edges),
        int(abstains.sum()),
    )


def per_class(result: RunResult) -> tuple[ClassRow, ...]:
    """The run's images by label, in the order of labels."""
    labels = result.certificates["label"].to_numpy()
    abstains = result.certificates["prediction"].to_numpy() == ABSTAIN
    radius, correct, failing = result.radius, result.correct, result.failure_probability
    present, which = np.unique(labels, return_inverse=True)
    groups = np.split(np.argsort(which, kind="stable"), np.cumsum(np.bincount(which))[:-1])
    return tuple(
        ClassRow(failing, radius[group], correct[group], int(abstains[group].sum()), int(label))
        for label, group in zip(present, groups, strict=True)
    )


def saving(result: RunResult) -> Saving | None:
    """The saving by adaptive stages, with selection samples on both sides; None without stages or if unfinished."""
    stages = result.record.schedule.samples
    if len(stages) == 1 or result.progress is not None:
        return None
    k, selection = result.record.sub_images, result.record.config.budget.selection
    estimation = result.certificates["samples"].to_numpy() // k - selection
    ended = np.searchsorted(stages, estimation)
    decided = np.bincount(result.certificates["stage"].to_numpy(), minlength=len(stages))
    return Saving(
        drawn=result.samples,
        full=result.images * k * (selection + stages[-1]),
        stages=tuple(
            StageUse(samples, int((ended == stage).sum()), int(decided[stage])) for stage, samples in enumerate(stages)
        ),
    )


def _histogram(values: Floats, edges: Sequence[float]) -> Histogram:
    counts, _ = np.histogram(values, np.asarray(edges))
    return Histogram(tuple(float(edge) for edge in edges), tuple(int(count) for count in counts))


def _lists(result: RunResult, column: str) -> Floats:
    flat = pc.list_flatten(result.certificates[column])
    return np.asarray(flat.to_numpy(), np.float64).reshape(result.images, result.record.sub_images)
