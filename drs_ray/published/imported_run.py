"""Published certificates of other code, stored as an imported run, which can be shown beside runs of drs-ray.

An imported run has no counts. So its run.json is a small record of another kind, which every reader of counts refuses,
and its name is shown with `imported, not verified` everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, ValidationError

from drs_ray.certificates.rounding import exact_text
from drs_ray.certificates.rule import LEAST_ALPHA
from drs_ray.config import CertificateConfig, Section, validated
from drs_ray.counts.run_record import read_run_json
from drs_ray.counts.schema import (
    CERTIFICATES_KEY,
    CURVE,
    CURVE_KEY,
    IMPORTED,
    IMPORTED_CERTIFICATES,
    IMPORTED_TIME,
    RUN_KEY,
    SCHEMA_VERSION,
    check_version,
    with_metadata,
)
from drs_ray.errors import ConfigError, CountsError
from drs_ray.published.log import Kind, PublishedLog, parse_log
from drs_ray.published.plausibility import implausibilities
from drs_ray.results.reduce import RunResult, read_result
from drs_ray.results.tables import CertifiedImages, curve_table, parquet_bytes, read_table, table_of
from drs_ray.storage import Store

MARK = "imported, not verified"
"""Shown after the name of an imported run."""

RadiusRule = Literal["linear", "square-root", "clipped", "unknown"]
"""How the log's radius combines the margins of K > 1 sub-images, as the user states it (docs/theory.md 4.5)."""

_REMEDY = "write it again with `drs-ray import`"


class ImportedRecord(Section):
    """run.json of an imported run: the source of its log, and the settings that the user stated.

    source_digest: SHA-256 of the log. log: kind of the log. sigmas: of each sub-image, pixel units. selection,
    estimation: samples per image and sub-image. radius: pixel units, the radius of a log of one radius; None for other
    logs. warnings: contradictions between log and settings.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["imported"] = "imported"
    run_id: str = ""
    created: str
    source: str
    source_digest: str
    log: Kind = "radii"
    dataset: Annotated[str, Field(min_length=1)]
    split: Annotated[str, Field(min_length=1)]
    sigmas: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    selection: Annotated[int, Field(ge=0, le=10**9)]
    estimation: Annotated[int, Field(ge=1, le=10**9)]
    alpha: Annotated[float, Field(ge=LEAST_ALPHA, lt=1)]
    radius_rule: RadiusRule
    radius: Annotated[float, Field(gt=0)] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def sub_images(self) -> int:
        """Number of sub-images K."""
        return len(self.sigmas)

    @property
    def stated(self) -> str:
        """The stated settings of the radii, in words."""
        sigmas = ", ".join(exact_text(sigma) for sigma in self.sigmas)
        return f"n = {self.estimation:,}, alpha = {exact_text(self.alpha)}, sigma = {sigmas}"

    @property
    def identity(self) -> str:
        """16 hex digits of a hash over the log and the stated settings, without time, name and derived fields."""
        said = self.model_dump(
            mode="json", exclude={"run_id", "created", "source", "log", "warnings"}, exclude_none=True
        )
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class ImportedResult(CertifiedImages):
    """An imported run: its record and its two tables (`schema.IMPORTED_CERTIFICATES` and `schema.CURVE`).

    certificates has `schema.IMPORTED_TIME` too if the log has times. whole: see `reduce.RunResult`.
    """

    uri: str
    record: ImportedRecord
    certificates: pa.Table
    curve: pa.Table
    seconds: None = None
    all_timed: bool = True
    variant: str = MARK
    progress: None = None
    whole: int | None = None

    @property
    def has_radii(self) -> bool:
        """Whether images have radii; a log of predictions has none."""
        return self.record.log != "predictions"


ReportedRun = RunResult | ImportedResult
"""A run in tables, figures and reports."""


def import_log(
    store: Store,
    data: bytes,
    source: str,
    *,
    dataset: str,
    sigmas: Sequence[float],
    estimation: int,
    selection: int | None = None,
    alpha: float = 0.001,
    split: str = "test",
    radius_rule: str = "unknown",
    radius: float | None = None,
    radii: Sequence[float] | None = None,
) -> ImportedResult:
    """Store a published log as an imported run.

    Args:
        store: a store for this run only; the same log may be imported into it again.
        data: the log, see `published.log`.
        source: name of the log.
        dataset: name of the data set, as in the run to compare with.
        sigmas: noise standard deviation of each sub-image, pixel units.
        estimation: samples per image and sub-image from which the radii were computed.
        selection: samples per image and sub-image that chose the class; None: 100, or 0 for a log of predictions.
        alpha: failure probability of one certificate.
        split: split of the data set.
        radius_rule: one of `RadiusRule`; it does not matter for one sub-image.
        radius: pixel units; the fixed radius of a log that says of each image only whether it was certified.
        radii: the curve's grid, increasing, pixel units; None: the default grid of configs. With `radius` the grid ends
            there; predictions have no curve beyond radius 0.

    Raises:
        ConfigError: an invalid stated value, or a missing one. DataError: the log cannot be read.
        CountsError: `store` holds another run. StoreError: `store` cannot be written.
    """
    chosen = {} if radii is None else {"radii": list(radii)}
    grid = validated(CertificateConfig, chosen, "import").radii
    log = parse_log(data, source, radius)
    record = validated(
        ImportedRecord,
        {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": source,
            "source_digest": hashlib.sha256(data).hexdigest(),
            "log": log.kind,
            "dataset": dataset,
            "split": split,
            "sigmas": tuple(sigmas),
            "selection": (0 if log.kind == "predictions" else 100) if selection is None else selection,
            "estimation": estimation,
            "alpha": alpha,
            "radius_rule": radius_rule,
            "radius": radius,
        },
        "import",
    )
    if log.kind == "predictions":
        grid = (0.0,)
    elif radius is not None:
        grid = (*(other for other in grid if other < radius), radius)
    warnings = (*log.notes, *implausibilities(log, record, grid))
    record = record.model_copy(update={"run_id": record.identity, "warnings": warnings})
    there = parse_imported(store.create(RUN_KEY, record.model_dump_json(indent=1).encode()), store.uri)
    if there is None or there.run_id != record.run_id:
        raise CountsError(f"{store.uri}: holds another run already; choose another place")
    certificates = _certificates(log, there)
    curve = curve_table(certificates, there.run_id, grid, there.alpha, _rule(there))
    store.put(CERTIFICATES_KEY, parquet_bytes(certificates))
    store.put(CURVE_KEY, parquet_bytes(curve))
    return ImportedResult(store.uri, there, certificates, curve)


def read_log(file: str | os.PathLike[str]) -> bytes:
    """The bytes of a log.

    Raises:
        ConfigError: a file that cannot be read.
    """
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); give the path of a log") from error


def read_reported_run(store: Store) -> ReportedRun:
    """Read a reduced run or an imported run.

    Raises:
        CountsError: see `reduce.read_result`; or an imported run that was changed or is incomplete.
    """
    record = parse_imported(read_run_json(store), store.uri)
    if record is None:
        return read_result(store)
    certificates, curve = (
        read_table(store, key, schema, record.run_id, missing=_REMEDY, remedy=_REMEDY, optional=optional)
        for key, schema, optional in (
            (CERTIFICATES_KEY, IMPORTED_CERTIFICATES, IMPORTED_TIME),
            (CURVE_KEY, CURVE, None),
        )
    )
    return ImportedResult(store.uri, record, certificates, curve)


def parse_imported(data: bytes, uri: str) -> ImportedRecord | None:
    """run.json's bytes -> the record of an imported run, or None for any other content.

    Raises:
        CountsError: the record of an imported run that was changed, or that a newer drs-ray wrote.
    """
    try:
        content = json.loads(data)
    except ValueError:
        return None
    if not isinstance(content, dict) or content.get("kind") != IMPORTED:
        return None
    where = f"{uri}/{RUN_KEY}"
    check_version(content.get("schema_version"), where)
    try:
        record = ImportedRecord.model_validate_json(data)
    except ValidationError as error:
        raise CountsError(f"{where}: not the record of an imported run; import the log again elsewhere") from error
    if record.run_id != record.identity:
        raise CountsError(f"{where}: was changed after it was written; import the log again elsewhere")
    return record


def _certificates(log: PublishedLog, record: ImportedRecord) -> pa.Table:
    images = len(log.image_id)
    columns: dict[str, Any] = {
        "image_id": log.image_id,
        "label": log.label,
        "prediction": log.prediction,
        "correct": log.correct,
        "radius": log.radius,
        "samples": np.full(images, record.sub_images * (record.selection + record.estimation)),
        "alpha": np.full(images, record.alpha),
    }
    schema = IMPORTED_CERTIFICATES
    if log.time is not None:
        schema, columns["time"] = schema.append(IMPORTED_TIME), list(log.time)
    return table_of(columns, with_metadata(schema, record.run_id, table="certificates", rule=_rule(record)))


def _rule(record: ImportedRecord) -> str:
    if record.log == "predictions":
        return "predictions as published"
    return "as published" if record.sub_images == 1 else f"as published ({record.radius_rule})"
