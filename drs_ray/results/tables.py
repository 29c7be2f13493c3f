"""Tables of certificates and curves: making, storing, reading and checking them; and statistics of a whole table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drs_ray.certificates.curve import average_certified_radius, certified_accuracy_curve
from drs_ray.counts.schema import CURVE, check_version, metadata, with_metadata
from drs_ray.errors import CountsError, MissingObjectError
from drs_ray.storage import Store

ABSTAIN = -1


class CertifiedImages:
    """Statistics of a table of certificates, of drs-ray or imported: `certificates` has the columns used below."""

    certificates: pa.Table

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.certificates)

    @property
    def planned(self) -> int:
        """Number of images that are to be certified."""
        return self.images

    @property
    def has_radii(self) -> bool:
        """Whether images have radii; a log of predictions has none, and no accuracy beyond radius 0."""
        return True

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
        """Failure probability of one certificate, which its bounds share."""
        return float(self.certificates["alpha"][0].as_py())

    @property
    def failure_probability(self) -> float:
        """Failure probability of one certificate: alpha, unless a subclass adds to it."""
        return self.alpha

    @property
    def rule(self) -> str:
        """Name of the rule, for example `probit pairs staircase with pooled`; each certificate names its own too."""
        return metadata(self.certificates.schema)["rule"]


def curve_table(
    certificates: pa.Table,
    run_id: str,
    radii: Sequence[float],
    alpha: float,
    rule: str,
    *,
    failure_probability: float | None = None,
    planned: int | None = None,
) -> pa.Table:
    """The curve (see `schema.CURVE`) over a grid of radii, pixel units.

    failure_probability: of one certificate; None: alpha. planned: see `certified_accuracy_curve`.
    """
    failing = alpha if failure_probability is None else failure_probability
    radius = certificates["radius"].to_numpy()
    correct = certificates["correct"].to_numpy(zero_copy_only=False)
    curve = certified_accuracy_curve(radii, radius, correct, failing, planned=planned)
    columns = {
        "radius": curve.radii,
        "certified_accuracy": curve.certified_accuracy,
        "ci_low": curve.ci_low,
        "ci_high": curve.ci_high,
        "guaranteed_low": curve.guaranteed_low,
    }
    return table_of(columns, with_metadata(CURVE, run_id, table="curve", alpha=repr(alpha), rule=rule))


def table_of(columns: Mapping[str, Any], schema: pa.Schema) -> pa.Table:
    """Columns by name -> a table; list columns are given as arrays [N, K]."""

    def array(field: pa.Field) -> pa.Array:
        values = columns[field.name]
        if pa.types.is_list(field.type):
            flat = np.asarray(values)
            offsets = np.arange(0, flat.size + 1, flat.shape[1], dtype=np.int32)
            return pa.ListArray.from_arrays(offsets, pa.array(flat.ravel()), type=field.type)
        return pa.array(values, field.type)

    return pa.Table.from_arrays([array(field) for field in schema], schema=schema)


def parquet_bytes(table: pa.Table) -> bytes:
    """The table as one Parquet object."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def read_table(
    store: Store,
    key: str,
    schema: pa.Schema,
    run_id: str,
    *,
    missing: str,
    remedy: str,
    optional: pa.Field | None = None,
) -> pa.Table:
    """Read a stored table of a run.

    Args:
        store: the run's store.
        key: key of the table.
        schema: required schema.
        run_id: required run id.
        missing: advice in the message if the table is missing.
        remedy: advice in the message if the table is damaged or of another run.
        optional: a last column that the table may have.

    Raises:
        CountsError: the table is missing, not Parquet, of a newer version, or not such a table of this run.
    """
    where = f"{store.uri}/{key}"
    try:
        table = pq.ParquetFile(pa.BufferReader(store.get(key))).read(use_threads=False)
    except MissingObjectError as error:
        raise CountsError(f"{where}: not there; {missing}") from error
    except (pa.ArrowException, OSError) as error:
        raise CountsError(f"{where}: truncated or not Parquet; {remedy}") from error
    made_by = metadata(table.schema)
    if "schema_version" in made_by:
        check_version(made_by["schema_version"], where)
    schemas = [schema] if optional is None else [schema, schema.append(optional)]
    if made_by.get("run_id") != run_id or not any(map(table.schema.equals, schemas)) or not len(table):
        raise CountsError(f"{where}: not a table of run {run_id}; {remedy}")
    return table
