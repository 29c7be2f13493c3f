"""The columns of a table or report: runs, comparisons by the baseline rule on the same counts, and convergence.

The only certificates of a run are those in its table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from drs_ray.certificates.rounding import format_down
from drs_ray.certificates.rule import Rule
from drs_ray.counts.history import CountsHistory, read_counts
from drs_ray.counts.parts import has_parts
from drs_ray.counts.run_record import read_record
from drs_ray.published.imported_run import ImportedResult, ReportedRun
from drs_ray.report.convergence import AtSamples, convergence
from drs_ray.report.summary import SHARE_DIGITS, run_names
from drs_ray.report.test_sets import check_same_test_set, in_common
from drs_ray.results.reduce import RunResult, check_finished, compare_rule, read_result, reduce_unfinished
from drs_ray.storage import Store

BASELINE = "p_A Bonferroni"
"""Variant of a comparison with the baseline rule (see `baseline_of`)."""


@dataclass(frozen=True, eq=False)
class Columns:
    """The columns of a table or report: runs and comparisons, and the convergence of runs."""

    results: tuple[ReportedRun, ...] = ()
    convergence: tuple[tuple[RunResult, tuple[AtSamples, ...]], ...] = ()

    def __add__(self, other: Columns) -> Columns:
        return Columns(self.results + other.results, self.convergence + other.convergence)


def columns_of(result: RunResult, history: CountsHistory, *, compare_rules: bool) -> Columns:
    """A run with its convergence and, with compare_rules, the comparison with the baseline rule before it.

    There is no comparison if the run's rule is the baseline. The counts are not kept in memory.
    """
    baseline = baseline_of(result.certified_by)
    others = []
    if compare_rules and baseline.name != result.rule:
        others.append(compare_rule(history, result, baseline, BASELINE))
    return Columns((*others, result), ((result, convergence(result, history)),))


def read_columns(runs: Sequence[tuple[ReportedRun, Store]], *, compare_rules: bool, common: bool = False) -> Columns:
    """`columns_of` several runs, whose counts are read one run at a time.

    A run without counts (only its certificates were copied) is shown without its convergence, and so is an imported
    run.

    Args:
        runs: each with its store.
        compare_rules: add to each run the comparison with the baseline rule.
        common: show only the images that every run has, and no convergence; counts are then read only for comparisons.

    Raises:
        ConfigError: runs that cannot be compared. CountsError: counts that cannot be trusted, that are missing for a
        comparison, or of an unfinished run.
    """
    results = [result for result, _ in runs]
    if not common:
        check_same_test_set(results)
        return _read(runs, compare_rules=compare_rules)
    in_common(results)  # raise before the counts are read
    columns = _read(runs, compare_rules=True).results if compare_rules else results
    return Columns(tuple(in_common(columns)))


def _read(runs: Iterable[tuple[ReportedRun, Store]], *, compare_rules: bool) -> Columns:
    columns = Columns()
    for result, store in runs:
        if isinstance(result, ImportedResult):
            columns += Columns((result,))
        elif compare_rules or has_parts(store):
            history = read_counts(store, result.record)
            check_finished(history, result.record)  # an extended run may still have its earlier certificates
            columns += columns_of(result, history, compare_rules=compare_rules)
        else:
            columns += Columns((result,))
    return columns


def read_partial_columns(store: Store, *, compare_rules: bool) -> Columns:
    """`columns_of` the images that an unfinished run has reached; for a finished run `read_columns`.

    Raises:
        CountsError: see `reduce.reduce_unfinished`; or the run is finished and not reduced yet.
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


@dataclass(frozen=True)
class RuleGain:
    """ACR by a run's rule and by the baseline from the same counts: a measurement, not a guarantee.

    adaptive: whether the run's rule stopped images, for which the baseline might have drawn more samples.
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


def rule_gains(results: Sequence[ReportedRun]) -> tuple[RuleGain, ...]:
    """The gain of the rule of every run that has a comparison."""
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
