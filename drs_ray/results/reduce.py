"""The reducer: from counts to certificates and curve. It needs neither torch, Ray nor a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from drs_ray.certificates.radii import rule_names
from drs_ray.certificates.rule import RULES_VERSION, Rule
from drs_ray.certificates.votes import most_voted, total, votes_of
from drs_ray.config import CertificateConfig
from drs_ray.counts.history import Counts, CountsHistory, read_counts, read_reached_counts
from drs_ray.counts.run_record import RunRecord, read_record
from drs_ray.counts.schema import CERTIFICATES, CERTIFICATES_KEY, CURVE, CURVE_KEY, metadata, with_metadata
from drs_ray.counts.sessions import total_seconds
from drs_ray.errors import CountsError, counted
from drs_ray.results.selected_votes import rule_of, selected_votes, waiting_images
from drs_ray.results.tables import ABSTAIN, CertifiedImages, curve_table, parquet_bytes, read_table, table_of
from drs_ray.storage import Store

_REMEDY = "write it again with `drs-ray reduce`"
_UNREDUCED = (
    "finish the run with `drs-ray certify`, then `drs-ray reduce`; or see what is there so far with `drs-ray report "
    "--partial`"
)


@dataclass(frozen=True)
class Progress:
    """Progress of an unfinished run: numbers of all images, of images with a certificate so far, and of those among
    the latter for which the stopping rule would draw more samples (their radii can grow, not shrink).
    """

    planned: int
    certified: int
    waiting: int

    @property
    def text(self) -> str:
        """ "partial: 120 of 200 images", with the number of waiting images."""
        waiting = f", {self.waiting:,} of them to be continued" if self.waiting else ""
        return f"partial: {self.certified:,} of {counted(self.planned, 'image')}{waiting}"


@dataclass(frozen=True, eq=False)
class RunResult(CertifiedImages):
    """A reduced run: its URI, its record, and its two tables (see `schema.CERTIFICATES` and `schema.CURVE`).

    seconds: wall time of the driver sessions that ended, None if none did. all_timed: whether all have ended, so that
    this is the run's time. variant: name of a comparison derived in memory from the same counts; empty for the run's
    stored certificates. progress: None for a finished run; an unfinished run has certificates of the images reached so
    far, which are never stored. whole: number of images of the run, if the tables have only the images that other runs
    have too (`in_common`); None if they have all.
    """

    uri: str
    record: RunRecord
    certificates: pa.Table
    curve: pa.Table
    seconds: float | None = None
    all_timed: bool = True
    variant: str = ""
    progress: Progress | None = None
    whole: int | None = None

    @property
    def planned(self) -> int:
        """Number of images that the run is to certify."""
        return self.images if self.progress is None else self.progress.planned

    @property
    def failure_probability(self) -> float:
        """Failure probability of one certificate: alpha, plus the drawing error of lattice noise."""
        return self.record.failure_probability(self.alpha)

    @property
    def certified_by(self) -> Rule:
        """The rule named in the certificates, which defines the smoothed classifier that they are about.

        Raises:
            CountsError: no rule has this name.
        """
        try:
            return Rule.named(self.rule)
        except ValueError as error:
            raise CountsError(
                f"{self.uri}: the certificates name a rule that this version does not know ({error}); use their "
                "version, or write them again with `drs-ray reduce`"
            ) from error

    @property
    def as_planned(self) -> bool:
        """Whether rule and alpha are those fixed at the run's start, before any vote was counted."""
        planned = self.record.stopping
        return (
            self.record.rules == RULES_VERSION
            and self.alpha == planned.alpha
            and self.rule == rule_of(self.record.config, planned).name
        )


def reduce_run(store: Store, record: RunRecord, certificate: CertificateConfig) -> RunResult:
    """Read a finished run's counts, certify, and store certificates.parquet and curve.parquet.

    Raises:
        ConfigError: the rule does not fit the run.
        CountsError: counts that are missing or cannot be trusted; nothing is written then.
        StoreError: the store cannot be read or written.
    """
    rule_of(record.config, certificate)  # raise before the counts are read, which may take long
    return reduce_history(store, read_counts(store, record), record, certificate)


def reduce_history(
    store: Store, history: CountsHistory, record: RunRecord, certificate: CertificateConfig
) -> RunResult:
    """As `reduce_run`, with counts that are already read."""
    rule = rule_of(record.config, certificate)
    certificates = certify_history(history, record, rule, certificate.alpha)
    curve = _curve(certificates, record, certificate.grid, certificate.alpha, rule)
    store.put(CERTIFICATES_KEY, parquet_bytes(certificates))
    store.put(CURVE_KEY, parquet_bytes(curve))
    return RunResult(store.uri, record, certificates, curve, *total_seconds(store))


def reduce_unfinished(store: Store, record: RunRecord) -> tuple[RunResult, CountsHistory]:
    """Certify the images that an unfinished run has reached, by its config's rule and alpha; nothing is stored.

    Each certificate is valid: bounds hold at all stages at once, and whether an image is reached does not depend on its
    own votes. When the run continues with the same rule, a radius can only grow.

    Returns:
        The result (without `progress` if the run turns out to be finished) and the votes it is from.

    Raises:
        CountsError: counts that cannot be trusted, or no image has a certificate.
        ConfigError: the rule does not fit the run.
    """
    certificate = record.config.certificate
    rule = rule_of(record.config, certificate)
    history = read_reached_counts(store, record)
    certificates = certify_reached(history, record, rule, certificate.alpha)
    curve = _curve(certificates, record, certificate.grid, certificate.alpha, rule, planned=len(record.image_ids))
    progress = Progress(len(record.image_ids), len(certificates), int(waiting_images(history, record).sum()))
    finished = progress.certified == progress.planned and not progress.waiting
    result = RunResult(store.uri, record, certificates, curve, *total_seconds(store))
    return (result if finished else replace(result, progress=progress)), history


def compare_rule(history: CountsHistory, result: RunResult, rule: Rule, variant: str) -> RunResult:
    """The result of another rule on a run's counts, at the same alpha, radii and stages; nothing is stored.

    It is a comparison only: the run's certificates are the stored ones, even where the other rule's radius is larger.
    """
    radii = tuple(float(radius) for radius in result.curve["radius"].to_numpy())
    certificates = certify_reached(history, result.record, rule, result.alpha)
    curve = _curve(certificates, result.record, radii, result.alpha, rule)
    return replace(result, certificates=certificates, curve=curve, variant=variant)


def read_result(store: Store) -> RunResult:
    """The run's certificates and curve as last reduced.

    Raises:
        CountsError: there is no run, it is not reduced yet, or its tables are of another run.
    """
    record = read_record(store)
    certificates, curve = (
        read_table(store, key, schema, record.run_id, missing=_UNREDUCED, remedy=_REMEDY)
        for key, schema in ((CERTIFICATES_KEY, CERTIFICATES), (CURVE_KEY, CURVE))
    )
    result = RunResult(store.uri, record, certificates, curve, *total_seconds(store))
    if result.certificates["image_id"].to_pylist() != list(record.image_ids):
        raise CountsError(f"{store.uri}/{CERTIFICATES_KEY}: not the images of this run; {_REMEDY}")
    made_from = metadata(result.curve.schema)
    if (made_from.get("alpha"), made_from.get("rule")) != (repr(result.alpha), result.rule):
        raise CountsError(f"{store.uri}/{CURVE_KEY}: of another alpha or rule than the certificates; {_REMEDY}")
    return result


def certify_counts(counts: Counts, record: RunRecord, rule: Rule, alpha: float) -> pa.Table:
    """The certificates table of votes at one fixed number of samples, as if this number had been planned."""
    drawn = np.asarray(counts.estimation[0].sum(axis=1), np.int64)
    return _certificates([(counts, np.arange(len(drawn)), 1.0)], drawn, record, rule, alpha)


def certify_history(history: CountsHistory, record: RunRecord, rule: Rule, alpha: float) -> pa.Table:
    """The certificates table of a run: per image the largest radius over the stages that it has reached.

    Raises:
        CountsError: as `check_finished`.
    """
    check_finished(history, record)
    return certify_reached(history, record, rule, alpha)


def check_finished(history: CountsHistory, record: RunRecord) -> None:
    """Refuse votes of an unfinished run.

    Raises:
        CountsError: some images need a further stage by the stopping rule.
    """
    waiting = np.flatnonzero(waiting_images(history, record))
    if len(waiting):
        raise CountsError(
            f"counts: the run is not finished: {len(waiting):,} of {counted(len(history.image_ids), 'image')} "
            f"{'needs' if len(waiting) == 1 else 'need'} a further stage, first image "
            f"{history.image_ids[waiting[0]]}; resume it with `drs-ray certify`"
        )


def certify_reached(history: CountsHistory, record: RunRecord, rule: Rule, alpha: float) -> pa.Table:
    """As `certify_history`, also for an unfinished run: per image from all stages that it has reached."""
    schedule = record.schedule
    stages = []
    for end, share in zip(schedule.samples, schedule.shares, strict=True):
        here = np.flatnonzero(history.drawn >= end)
        if len(here):
            stages.append((history.at(end).images(here), here, share))
    return _certificates(stages, history.drawn, record, rule, alpha)


def _curve(
    certificates: pa.Table,
    record: RunRecord,
    radii: Sequence[float],
    alpha: float,
    rule: Rule,
    planned: int | None = None,
) -> pa.Table:
    failing = record.failure_probability(alpha)
    return curve_table(
        certificates, record.run_id, radii, alpha, rule.name, failure_probability=failing, planned=planned
    )


def _certificates(
    stages: Sequence[tuple[Counts, NDArray[np.int64], float]],
    drawn: NDArray[np.int64],
    record: RunRecord,
    rule: Rule,
    alpha: float,
) -> pa.Table:
    """stages: (votes of the images that reached it, their positions, share of levels); all images reach the first."""
    columns: dict[str, NDArray[Any]] = {}
    for stage, (counts, here, share) in enumerate(stages):
        found = _columns_of(counts, record, rule, alpha, share)
        found["stage"] = np.full(len(here), stage)
        if not columns:
            columns = found
            continue
        better = found["radius"] > columns["radius"][here]
        for name, values in found.items():
            columns[name][here[better]] = values[better]
    selection = sum(votes.sum(axis=1) for votes in stages[0][0].selection)
    prediction = np.where(columns["radius"] > 0, columns["selected_class"], ABSTAIN)
    columns["prediction"] = prediction
    columns["correct"] = (prediction == columns["label"]) & (prediction != ABSTAIN)  # an unlabelled image may be -1
    columns["samples"] = drawn * record.sub_images + selection
    columns["alpha"] = np.full(len(drawn), alpha)
    return table_of(columns, with_metadata(CERTIFICATES, record.run_id, table="certificates", rule=rule.name))


def _columns_of(counts: Counts, record: RunRecord, rule: Rule, alpha: float, share: float) -> dict[str, NDArray[Any]]:
    votes = selected_votes(counts, rule)
    radii = votes.radii(record.config.sigmas, rule, alpha, share)
    everyone = np.arange(len(votes.selected))
    runner_up = most_voted(total(counts.estimation), excluding=votes.selected)
    return {
        "image_id": counts.image_ids,
        "label": counts.labels,
        "radius": radii.radius,
        "selected_class": votes.selected,
        "runner_up": runner_up,
        "estimation_samples": votes.samples,
        "class_votes": votes.class_votes,
        "runner_up_votes": votes_of(counts.estimation, everyone, runner_up),
        "p_lower": radii.p_lower,
        "rival_upper": radii.rival_upper,
        "margin": radii.margin,
        "rule": rule_names(rule, radii.halved),
    }
