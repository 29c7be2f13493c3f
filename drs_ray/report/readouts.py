"""What users ask of a run beyond its curve: convergence, distributions, classes, savings, and what its rule gained.

Pure functions of reduced runs and their counts. Nothing here is a certificate that the run's table does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from drs_ray.certificates.confidence import level_region
from drs_ray.certificates.curve import average_certified_radius
from drs_ray.certificates.radius import Floats
from drs_ray.certificates.rounding import exact_text, format_down, format_ratio_down, format_ratio_up
from drs_ray.certificates.rule import Rule
from drs_ray.counts.history import Counts, CountsHistory, read_counts
from drs_ray.counts.parts import has_parts
from drs_ray.counts.run_record import read_record
from drs_ray.published.imported_run import ImportedResult, Shown
from drs_ray.report.summary import SHARE_DIGITS, AtRadius, at_radii, in_common, run_names
from drs_ray.results.reduce import (
    RunResult,
    certify_counts,
    check_finished,
    compare_rule,
    read_result,
    reduce_unfinished,
)
from drs_ray.results.tables import ABSTAIN
from drs_ray.storage import Store

CONVERGENCE_POINTS = 8
"""Most numbers of samples at which convergence is shown, halving from the largest."""
P_LOWER_EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0)
"""Bins for probabilities: finer near 1, where radii are made."""
RADIUS_BINS = 12
"""Most bins of the histogram of radii."""
BASELINE = "p_A Bonferroni"
"""Variant of a comparison with the baseline rule (see `baseline_of`)."""


@dataclass(frozen=True, eq=False)
class AtSamples:
    """A run's images by no more than `samples` estimation samples each, as if that had been a plan without stages.

    Not certificates of the run: each image has one, and that is in its table. Of an adaptive run nothing holds with
    probability 1 - alpha here: how many votes an image has depended on its votes. radius: float64 [N]; correct:
    bool [N].
    """

    samples: int
    failure_probability: float
    radius: Floats
    correct: NDArray[np.bool_]
    abstained: int

    @property
    def acr(self) -> float:
        """ACR, pixel units."""
        return average_certified_radius(self.radius, self.correct)

    @property
    def acr_text(self) -> str:
        """ACR, rounded down."""
        return format_down(self.acr, SHARE_DIGITS)

    @property
    def abstention_text(self) -> str:
        """Abstention rate, rounded up."""
        return format_ratio_up(self.abstained, len(self.radius), SHARE_DIGITS)

    def at_radii(self, radii: Sequence[float]) -> tuple[AtRadius, ...]:
        """Certified accuracy at radius 0 and at increasing radii."""
        return at_radii(self, radii)


@dataclass(frozen=True)
class Histogram:
    """counts[i] values lie in [edges[i], edges[i + 1]), the last bin closed; one more edge than counts."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class RadiusHistogram:
    """Certified radii of images that are predicted right and wrong, over the same bins, and who has none."""

    correct: Histogram
    wrong: Histogram
    abstained: int


@dataclass(frozen=True, eq=False)
class ClassRow:
    """The images of one class (label -1: no label). radius: float64 [n]; correct: bool [n]."""

    label: int
    failure_probability: float
    radius: Floats
    correct: NDArray[np.bool_]
    abstained: int

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.radius)

    @cached_property
    def acr(self) -> float:
        """ACR, pixel units."""
        return average_certified_radius(self.radius, self.correct)

    @property
    def acr_text(self) -> str:
        """ACR, rounded down."""
        return format_down(self.acr, SHARE_DIGITS)

    @property
    def accuracy_text(self) -> str:
        """Share predicted correctly, rounded down."""
        return format_ratio_down(int(self.correct.sum()), self.images, SHARE_DIGITS)

    def at_radii(self, radii: Sequence[float]) -> tuple[AtRadius, ...]:
        """Certified accuracy, with its interval over so many images, at radius 0 and at increasing radii."""
        return at_radii(self, radii)


@dataclass(frozen=True)
class StageUse:
    """One stage: cumulative samples, how many images ended there, for how many its votes decide the radius."""

    samples: int
    ended: int
    decided: int


@dataclass(frozen=True)
class Saving:
    """Noise samples that an adaptive run drew, and what all its stages would have cost for every image."""

    drawn: int
    full: int
    stages: tuple[StageUse, ...]

    @property
    def factor_text(self) -> str:
        """How many times fewer samples, rounded down."""
        return format_ratio_down(self.full, self.drawn, 1)


@dataclass(frozen=True)
class RuleGain:
    """ACR by a run's rule and by the baseline, from the same counts: measured, not promised.

    adaptive: images stopped by the run's rule, which the baseline has to live with; it might have drawn more.
    """

    name: str
    rule: str
    baseline_rule: str
    acr: float
    baseline_acr: float
    adaptive: bool

    @property
    def text(self) -> str:
        """One line; the gain is rounded down."""
        gain = self.acr - self.baseline_acr
        share = f", {format_down(100 * gain / self.baseline_acr, 1)} %" if self.baseline_acr > 0 else ""
        stages = " (samples stopped where the run's own rule was content)" if self.adaptive else ""
        return (
            f"{self.name}: ACR {format_down(self.acr, SHARE_DIGITS)} by {self.rule}, "
            f"{format_down(self.baseline_acr, SHARE_DIGITS)} by {self.baseline_rule} from the same counts: "
            f"a measured gain of {format_down(gain, SHARE_DIGITS)}{share}{stages}"
        )


@dataclass(frozen=True, eq=False)
class Columns:
    """What a table or report shows side by side: runs and comparisons, and how runs converge (by run)."""

    results: tuple[Shown, ...] = ()
    convergence: tuple[tuple[RunResult, tuple[AtSamples, ...]], ...] = ()

    def __add__(self, other: Columns) -> Columns:
        """Those of both, in order."""
        return Columns(self.results + other.results, self.convergence + other.convergence)


def columns_of(result: RunResult, history: CountsHistory, *, compare_rules: bool) -> Columns:
    """A run with its convergence and, if asked for, before it the comparison with the baseline rule.

    No comparison where the run's rule is the baseline. The counts are not kept.
    """
    baseline = baseline_of(result.certified_by)
    others = []
    if compare_rules and baseline.name != result.rule:
        others.append(compare_rule(history, result, baseline, BASELINE))
    return Columns((*others, result), ((result, convergence(result, history)),))


def read_columns(runs: Iterable[tuple[Shown, Store]], *, compare_rules: bool) -> Columns:
    """`columns_of` several runs, whose counts are read one run at a time.

    A run whose counts are not at hand (certificates that were copied without them) is shown without its convergence,
    and an imported run, which has none, alone.

    Raises:
        CountsError: counts that cannot be trusted, that a comparison needs and that are not there, or of a run that
        is to go on.
    """
    columns = Columns()
    for result, store in runs:
        if isinstance(result, ImportedResult):
            columns += Columns((result,))
        elif compare_rules or has_parts(store):
            history = read_counts(store, result.record)
            check_finished(history, result.record)  # a run that was extended may have certificates of before
            columns += columns_of(result, history, compare_rules=compare_rules)
        else:
            columns += Columns((result,))
    return columns


def read_common_columns(runs: Sequence[tuple[Shown, Store]], *, compare_rules: bool) -> Columns:
    """Runs and their comparisons, all cut down to the images that every run has, and without convergence.

    Counts are read for comparisons alone.

    Raises:
        ConfigError: see `summary.in_common`. CountsError: see `read_columns`.
    """
    results = [result for result, _ in runs]
    in_common(results)  # what cannot be compared is told before counts are read
    columns = read_columns(runs, compare_rules=True).results if compare_rules else results
    return Columns(tuple(in_common(columns)))


def read_partial_columns(store: Store, *, compare_rules: bool) -> Columns:
    """`columns_of` a run as far as it is; of a finished one, `read_columns` of its stored certificates.

    Raises:
        CountsError: see `reduce.reduce_unfinished`; finished and not reduced yet.
    """
    result, history = reduce_unfinished(store, read_record(store))
    if result.progress is None:
        return read_columns([(read_result(store), store)], compare_rules=compare_rules)
    return columns_of(result, history, compare_rules=compare_rules)


def baseline_of(rule: Rule) -> Rule:
    """The plain rule for the same vote: the selected class alone, alpha shared equally, samples not pooled.

    It is the sound form of what RS (Cohen et al. 2019) and DRS (Xia et al. 2024) published.
    """
    return replace(rule, confidence="bonferroni", rivals=False, pooled=False, radius=None)


def rule_in_words(rule: Rule, sub_images: int) -> tuple[str, ...]:
    """How a rule makes a radius of votes, in plain sentences."""
    sentences = []
    if sub_images > 1 and rule.vote == "probit":
        weighted = ", weighted," if rule.weights is not None and len(set(rule.weights)) > 1 else ""
        sentences.append(
            "The smoothed classifier takes each sub-image's class probabilities as standard-normal quantiles"
            f"{weighted} and adds them (the probit vote); margins add up, negative ones included."
        )
    elif sub_images > 1:
        sentences.append("The smoothed classifier takes the mean of the sub-images' class probabilities (mean vote).")
    if rule.radius is not None:
        sentences.append(
            f"One radius, {exact_text(rule.radius)}, was asked for: an image is certified at it or not at all, and "
            "nothing is said of larger radii. It is certified where the e-value against all vote probabilities with no "
            "larger radius reaches 1 / alpha; looking at it after every stage costs no alpha."
        )
        return tuple(sentences)
    if rule.rivals:
        sentences.append(
            "Pairs: the selected class's probability is bounded from below with half of the allowed error and every "
            "other class's from above with the other half, all of it for each; the closest rival decides. Only the "
            "rival that would be first to win must be bounded rightly, and it is fixed before the votes: the radius "
            "is certified, not all rivals' bounds at once."
        )
    else:
        sentences.append("p_A: the selected class's probability is bounded from below; all the rest may be one rival.")
    if sub_images > 1 and rule.confidence == "staircase":
        ways = level_region(rule.confidence, 0.5, sub_images).count(sub_images)  # as many at every alpha
        sentences.append(
            f"Staircase: alpha is spent on {ways:,} ways of sharing it between the {sub_images} sub-images, one of "
            "which holds with probability at least 1 - alpha; the least radius over them is certified."
        )
    elif sub_images > 1:
        sentences.append("Bonferroni: the sub-images get equal shares of alpha.")
    if rule.pooled:
        sentences.append(
            "Pooled: where no selection vote went against the class, half of alpha goes to one bound on it from all "
            "sub-images' samples, half to the above, and the larger radius is certified. Selection votes decide which "
            "images these are, before their estimation votes are seen."
        )
    return tuple(sentences)


def convergence(result: RunResult, history: CountsHistory) -> tuple[AtSamples, ...]:
    """A run's images by its own rule and alpha, at numbers of samples that halve, the largest last.

    Images of an adaptive run that had stopped earlier keep the votes that they have.
    """
    rule = result.certified_by
    found = []
    for samples in _halving(history.cuts):
        counts = history.at(samples)
        if not _is_whole(counts, history, samples):
            continue
        table = certify_counts(counts, result.record, rule, result.alpha)
        found.append(
            AtSamples(
                samples,
                result.failure_probability,
                np.asarray(table["radius"].to_numpy(), np.float64),
                np.asarray(table["correct"].to_numpy(), np.bool_),
                int((table["prediction"].to_numpy() == ABSTAIN).sum()),
            )
        )
    return tuple(found)


def p_lower_histograms(result: RunResult, edges: Sequence[float] = P_LOWER_EDGES) -> tuple[Histogram, ...]:
    """Lower bounds of the selected class's probability, one histogram for each sub-image.

    Where the pooled rule was used, every sub-image has the bound on their mean.
    """
    values = _lists(result, "p_lower")
    return tuple(_histogram(column, edges) for column in values.T)


def radius_edges(results: Sequence[Shown]) -> tuple[float, ...]:
    """Bins that hold the radii of all runs: steps of 1, 2, 2.5 or 5 times a power of ten, at most RADIUS_BINS."""
    largest = max(float(result.radius.max()) for result in results) or 1.0
    power = math.floor(math.log10(largest)) - 2
    steps = (Decimal(step).scaleb(power + more) for more in range(4) for step in ("1", "2", "2.5", "5"))
    step = next(step for step in steps if float(step * RADIUS_BINS) > largest)
    bins = next(bins for bins in range(1, RADIUS_BINS + 1) if float(step * bins) > largest)
    return tuple(float(step * index) for index in range(bins + 1))


def radius_histogram(result: Shown, edges: Sequence[float]) -> RadiusHistogram:
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
        ClassRow(int(label), failing, radius[group], correct[group], int(abstains[group].sum()))
        for label, group in zip(present, groups, strict=True)
    )


def saving(result: RunResult) -> Saving | None:
    """What adaptive stages saved; None for a fixed number of samples, and while a run is unfinished.

    Selection samples count on both sides.
    """
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


def rule_gains(results: Sequence[Shown]) -> tuple[RuleGain, ...]:
    """For every run that has its comparison beside it, what its rule gained."""
    named = zip(run_names(results), results, strict=True)
    runs = [(name, run) for name, run in named if isinstance(run, RunResult) and not run.variant]
    return tuple(
        RuleGain(
            name,
            run.rule,
            other.rule,
            run.average_certified_radius,
            other.average_certified_radius,
            adaptive=len(run.record.schedule.samples) > 1,
        )
        for name, run in runs
        for other in results
        if other.variant and (other.uri, other.alpha, other.record.run_id) == (run.uri, run.alpha, run.record.run_id)
    )


def _halving(cuts: Sequence[int]) -> list[int]:
    """The smallest cut that is no less than the largest, its half, its quarter, ..., without repetitions."""
    last = cuts[-1]
    return sorted({min(cut for cut in cuts if cut << power >= last) for power in range(CONVERGENCE_POINTS)})


def _is_whole(counts: Counts, history: CountsHistory, samples: int) -> bool:
    """Whether every image's votes are known there: units of different sizes may have been cut elsewhere."""
    expected = np.minimum(history.drawn, samples)
    return all(bool((votes.sum(axis=1) == expected).all()) for votes in counts.estimation)


def _histogram(values: Floats, edges: Sequence[float]) -> Histogram:
    counts, _ = np.histogram(values, np.asarray(edges))
    return Histogram(tuple(float(edge) for edge in edges), tuple(int(count) for count in counts))


def _lists(result: RunResult, column: str) -> Floats:
    flat = pc.list_flatten(result.certificates[column])
    return np.asarray(flat.to_numpy(), np.float64).reshape(result.images, result.record.sub_images)
