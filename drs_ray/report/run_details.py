"""The parts of the report about one run's own certificates, without its summary."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from drs_ray.certificates.rounding import exact_text
from drs_ray.published.imported_run import ReportedRun
from drs_ray.report.convergence import AtSamples
from drs_ray.report.distributions import (
    ClassRow,
    Histogram,
    RadiusHistogram,
    Saving,
    p_lower_histograms,
    per_class,
    radius_edges,
    radius_histogram,
    saving,
)
from drs_ray.report.rule_words import rule_in_words
from drs_ray.report.summary import AtRadius, RunSummary
from drs_ray.results.reduce import RunResult

CLASSES_SHOWN = 30
"""Rows of a run's table of classes; of more classes, those with the smallest ACR are shown."""


@dataclass(frozen=True, eq=False)
class RunDetails:
    """The data of the page about one run's own certificates, without its summary.

    classes: the shown classes; classes_left: number of the others. class_radii: the radii of their table. commands:
    (description, command). config: the resolved config, as YAML that `drs-ray certify` reads.
    """

    position: int
    run: RunSummary
    rule_in_words: tuple[str, ...]
    p_lower: tuple[Histogram, ...]
    radii: RadiusHistogram
    classes: tuple[ClassRow, ...]
    classes_left: int
    class_radii: tuple[float, ...]
    saving: Saving | None
    convergence: tuple[AtSamples, ...]
    commands: tuple[tuple[str, str], ...]
    config: str

    def at_grid(self, point: AtSamples) -> tuple[AtRadius, ...]:
        """Certified accuracy at fewer samples, on the page's grid of radii."""
        return point.at_radii([row.radius for row in self.run.at_radii])

    def at_class_radii(self, row: ClassRow) -> tuple[AtRadius, ...]:
        """Certified accuracy of one class."""
        return row.at_radii(self.class_radii)[1:]


def run_details(
    results: Sequence[ReportedRun], runs: Sequence[RunSummary], convergence: dict[RunResult, tuple[AtSamples, ...]]
) -> Iterator[RunDetails]:
    """The details of every run, without comparisons and imported runs, which have none."""
    edges = radius_edges(results)
    for position, (result, run) in enumerate(zip(results, runs, strict=True)):
        if run.variant or not isinstance(result, RunResult):
            continue
        classes = per_class(result)
        shown = classes
        if len(classes) > CLASSES_SHOWN:
            shown = tuple(sorted(classes, key=lambda row: row.acr)[:CLASSES_SHOWN])
        yield RunDetails(
            position=position,
            run=run,
            rule_in_words=rule_in_words(result.certified_by, run.sub_images),
            p_lower=p_lower_histograms(result),
            radii=radius_histogram(result, edges),
            classes=shown,
            classes_left=len(classes) - len(shown),
            class_radii=_three_of([row.radius for row in run.at_radii if row.radius > 0]),
            saving=saving(result),
            convergence=convergence.get(result, ()),
            commands=tuple(_commands(result)),
            config=yaml.safe_dump(
                result.record.config.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True
            ),
        )


def _three_of(radii: Sequence[float]) -> tuple[float, ...]:
    """The radii at a quarter, half and three quarters of the grid."""
    return tuple(dict.fromkeys(radii[(len(radii) - 1) * quarter // 4] for quarter in (1, 2, 3))) if radii else ()


def _commands(result: RunResult) -> Iterator[tuple[str, str]]:
    """Commands that compute and check the run's certificates again."""
    place = shlex.quote(result.uri)
    yield "computes the votes, with the config below", "drs-ray certify config.yaml"
    vote = result.certified_by.vote
    other_vote = "" if vote == result.record.config.certificate.vote else f" --vote {vote}"
    again = f"drs-ray reduce {place} --alpha {exact_text(result.alpha)}{other_vote}"
    yield "makes the certificates of the votes again", again
    yield "recomputes random votes and compares them", f"drs-ray verify {place}"
