"""What a table or a report shows side by side: runs, the same counts by the baseline rule, and how runs converge.

Nothing here is a certificate that the run's table does not hold.
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
    """What a table or report shows side by side: runs and comparisons, and how runs converge (by run)."""

    results: tuple[ReportedRun, ...] = ()
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


def read_columns(runs: Sequence[tuple[ReportedRun, Store]], *, compare_rules: bool, common: bool = False) -> Columns:
    """`columns_of` several runs, whose counts are read one run at a time.

    A run whose counts are not at hand (certificates that were copied without them) is shown without its convergence,
    and an imported run, which has none, alone.

    Args:
        runs: each with its store.
        compare_rules: beside each run, the same counts by the baseline rule.
        common: cut all down to the images that every run has, and show no convergence; counts are then read for
            comparisons alone.

    Raises:
        ConfigError: runs that cannot stand side by side. CountsError: counts that cannot be trusted, that a comparison
        needs and that are not there, or of a run that is to go on.
    """
    results = [result for result, _ in runs]
    if not common:
        check_same_test_set(results)
        return _read(runs, compare_rules=compare_rules)
    in_common(results)  # what cannot be compared is told before counts are read
    columns = _read(runs, compare_rules=True).results if compare_rules else results
    return Columns(tuple(in_common(columns)))


def _read(runs: Iterable[tuple[ReportedRun, Store]], *, compare_rules: bool) -> Columns:
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


def rule_gains(results: Sequence[ReportedRun]) -> tuple[RuleGain, ...]:
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
