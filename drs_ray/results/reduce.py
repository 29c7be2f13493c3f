"""Counts to certificates and curve: the reducer. Runs on a laptop; needs neither torch, Ray nor a GPU."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.special import ndtr

from drs_ray.certificates.certify import CertifiedRadii, Rule, certified_radii
from drs_ray.certificates.curve import average_certified_radius, certified_accuracy_curve
from drs_ray.config import CertificateConfig
from drs_ray.errors import CountsError, MissingObjectError
from drs_ray.results.counts import Counts, read_counts
from drs_ray.results.run_record import RunRecord, read_record
from drs_ray.results.schema import CERTIFICATES, CERTIFICATES_KEY, CURVE, CURVE_KEY, metadata, with_metadata
from drs_ray.results.sessions import total_seconds
from drs_ray.results.store import Store

ABSTAIN = -1

_REMEDY = "write it again with `drs-ray reduce`"


@dataclass(frozen=True, eq=False)
class RunResult:
    """A reduced run: where it is, what it is, and its two tables (see `schema.CERTIFICATES` and `schema.CURVE`).

    seconds: wall time of the driver sessions that ended, None where none did.
    """

    uri: str
    record: RunRecord
    certificates: pa.Table
    curve: pa.Table
    seconds: float | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.certificates)

    @property
    def radius(self) -> NDArray[np.float64]:
        """Certified radii [N], pixel units, 0 where abstaining."""
        return np.asarray(self.certificates["radius"].to_numpy(), np.float64)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether the prediction equals the label [N]; False where abstaining."""
        return np.asarray(self.certificates["correct"].to_numpy(), np.bool_)

    @property
    def average_certified_radius(self) -> float:
        """ACR, pixel units."""
        return average_certified_radius(self.radius, self.correct)

    @property
    def accuracy(self) -> float:
        """Share of images predicted correctly (certified accuracy at radius 0)."""
        return float(self.correct.mean())

    @property
    def abstention_rate(self) -> float:
        """Share of images on which the smoothed classifier abstains."""
        return float((self.certificates["prediction"].to_numpy() == ABSTAIN).mean())

    @property
    def samples(self) -> int:
        """Noise samples of the whole run."""
        return int(self.certificates["samples"].to_numpy().sum())

    @property
    def alpha(self) -> float:
        """Failure probability of one certificate."""
        return float(self.certificates["alpha"][0].as_py())

    @property
    def rule(self) -> str:
        """Name of the rule, for example `probit p_A bonferroni`."""
        return str(self.certificates["rule"][0].as_py())


def reduce_run(store: Store, record: RunRecord, certificate: CertificateConfig) -> RunResult:
    """Read a finished run's counts, certify, and store certificates.parquet and curve.parquet.

    Raises:
        CountsError: counts that are missing or cannot be trusted; nothing is written then.
        StoreError: the place cannot be read or written.
    """
    certificates = certify_counts(read_counts(store, record), record, _rule(certificate), certificate.alpha)
    curve = _curve_table(certificates, record.run_id, certificate)
    store.put(CERTIFICATES_KEY, _parquet(certificates))
    store.put(CURVE_KEY, _parquet(curve))
    return RunResult(store.uri, record, certificates, curve, total_seconds(store))


def read_result(store: Store) -> RunResult:
    """The run's certificates and curve as last reduced.

    Raises:
        CountsError: no run, not reduced yet, or tables of another run.
    """
    record = read_record(store)
    result = RunResult(
        store.uri,
        record,
        _read_table(store, CERTIFICATES_KEY, CERTIFICATES, record.run_id),
        _read_table(store, CURVE_KEY, CURVE, record.run_id),
        total_seconds(store),
    )
    if result.certificates["image_id"].to_pylist() != list(record.image_ids):
        raise CountsError(f"{store.uri}/{CERTIFICATES_KEY}: not the images of this run; {_REMEDY}")
    made_from = metadata(result.curve.schema)
    if (made_from.get("alpha"), made_from.get("rule")) != (repr(result.alpha), result.rule):
        raise CountsError(f"{store.uri}/{CURVE_KEY}: of another alpha or rule than the certificates; {_REMEDY}")
    return result


def certify_counts(counts: Counts, record: RunRecord, rule: Rule, alpha: float) -> pa.Table:
    """The certificates table of a run's counts: class from the selection votes, bounds from the estimation votes."""
    selected = _most_voted(_total(counts.selection))
    runner_up = _most_voted(_total(counts.estimation), excluding=selected)
    class_votes = _votes_of(counts.estimation, selected)
    samples = np.stack([votes.sum(axis=1) for votes in counts.estimation], axis=1).astype(np.int64)
    radii = certified_radii(class_votes, samples, record.config.sigmas, rule, alpha)
    prediction = np.where(radii.radius > 0, selected, ABSTAIN)
    drawn = samples.sum(axis=1) + sum(votes.sum(axis=1) for votes in counts.selection)
    columns = {
        "image_id": counts.image_ids,
        "label": counts.labels,
        "prediction": prediction,
        "correct": (prediction == counts.labels) & (prediction != ABSTAIN),  # an unlabelled image may be -1
        "radius": radii.radius,
        "selected_class": selected,
        "runner_up": runner_up,
        "samples": drawn,
        "estimation_samples": samples,
        "class_votes": class_votes,
        "runner_up_votes": _votes_of(counts.estimation, runner_up),
        **_bounds(radii),
        "rule": [rule.name] * len(selected),
        "alpha": np.full(len(selected), alpha),
    }
    return _table(columns, with_metadata(CERTIFICATES, record.run_id, table="certificates"))


def _bounds(radii: CertifiedRadii) -> dict[str, NDArray[np.float64]]:
    return {
        "p_lower": np.nextafter(ndtr(radii.a_lower), 0.0),  # ndtr rounds to nearest: step to the safe side
        "rival_upper": np.nextafter(ndtr(radii.b_upper), 1.0),
        "margin": radii.margin,
    }


def _rule(certificate: CertificateConfig) -> Rule:
    return Rule(certificate.vote, certificate.confidence, certificate.weights)


def _curve_table(certificates: pa.Table, run_id: str, certificate: CertificateConfig) -> pa.Table:
    radius = certificates["radius"].to_numpy()
    correct = certificates["correct"].to_numpy(zero_copy_only=False)
    curve = certified_accuracy_curve(certificate.radii, radius, correct, certificate.alpha)
    columns = {
        "radius": curve.radii,
        "certified_accuracy": curve.certified_accuracy,
        "ci_low": curve.ci_low,
        "ci_high": curve.ci_high,
        "guaranteed_low": curve.guaranteed_low,
    }
    made_from = {"alpha": repr(certificate.alpha), "rule": _rule(certificate).name}
    return _table(columns, with_metadata(CURVE, run_id, table="curve", **made_from))


def _total(votes: tuple[csr_array, ...]) -> csr_array:
    total = votes[0].copy()
    for more in votes[1:]:
        total = total + more
    return total


def _most_voted(votes: csr_array, excluding: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """Per row the class with the most votes, the smallest such class on a tie; -1 in a row without votes.

    `excluding`: one class per row that cannot win.
    """
    coordinates = votes.tocoo()
    row, column = coordinates.coords
    counted = coordinates.data > 0
    if excluding is not None:
        counted &= column != excluding[row]
    row, column, count = row[counted], column[counted], coordinates.data[counted]
    order = np.lexsort((column, -count, row))
    row, column = row[order], column[order]
    first = np.r_[True, row[1:] != row[:-1]][: len(row)]
    winner = np.full(votes.shape[0], -1, np.int64)
    winner[row[first]] = column[first]
    return winner


def _votes_of(votes: tuple[csr_array, ...], classes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Votes for one class per image: int64 [N, K]; 0 where the class is -1."""
    rows = np.arange(len(classes))
    picked = [np.asarray(part[rows, np.maximum(classes, 0)]).ravel() for part in votes]
    return np.where((classes >= 0)[:, None], np.stack(picked, axis=1), 0).astype(np.int64)


def _table(columns: Mapping[str, object], schema: pa.Schema) -> pa.Table:
    def array(field: pa.Field) -> pa.Array:
        values = columns[field.name]
        if pa.types.is_list(field.type):
            flat = np.asarray(values)
            offsets = np.arange(0, flat.size + 1, flat.shape[1], dtype=np.int32)
            return pa.ListArray.from_arrays(offsets, pa.array(flat.ravel()), type=field.type)
        return pa.array(values, field.type)

    return pa.Table.from_arrays([array(field) for field in schema], schema=schema)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _read_table(store: Store, key: str, schema: pa.Schema, run_id: str) -> pa.Table:
    where = f"{store.uri}/{key}"
    try:
        table = pq.read_table(pa.BufferReader(store.get(key)))
    except MissingObjectError as error:
        raise CountsError(
            f"{where}: not there; finish the run with `drs-ray certify`, then `drs-ray reduce`"
        ) from error
    except (pa.ArrowException, OSError) as error:
        raise CountsError(f"{where}: truncated or not Parquet; {_REMEDY}") from error
    if metadata(table.schema).get("run_id") != run_id or not table.schema.equals(schema) or not len(table):
        raise CountsError(f"{where}: not a table of run {run_id}; {_REMEDY}")
    return table
