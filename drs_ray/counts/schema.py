"""The tables that drs-ray stores: Arrow schemas with units, and the metadata that links a file to its run."""

from __future__ import annotations

import pyarrow as pa

from drs_ray.errors import CountsError

SCHEMA_VERSION = 1
"""Version of the tables and of run.json. It rises if older readers would misread the new format. A reader reads every
version from 1 to its own, and refuses newer versions."""

IMPORTED = "imported"
"""`kind` in the run.json of imported certificates of other code; the run.json of a drs-ray run has no `kind`."""

RUN_KEY = "run.json"
EXTENSION_KEY = "extension.json"
COUNTS_PREFIX = "counts/"
COMPACTED_PREFIX = "counts/compacted-"
SET_ASIDE_PREFIX = "set-aside/"
CERTIFICATES_KEY = "certificates.parquet"
CURVE_KEY = "curve.parquet"

PHASES = ("selection", "estimation")
"""Selection samples choose the class; estimation samples, independent of them, bound its probability."""


def _field(name: str, kind: pa.DataType, unit: str) -> pa.Field:
    return pa.field(name, kind, nullable=False, metadata={"unit": unit})


def _list(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("item", kind, nullable=False))


COUNTS = pa.schema(
    [
        _field("image_id", pa.int64(), "index in the split"),
        _field("label", pa.int32(), "class"),
        _field("sub_image", pa.int8(), "index in the partition"),
        _field("phase", pa.string(), "selection or estimation"),
        _field("stage", pa.int8(), "index in the budget"),
        _field("first_sample", pa.int64(), "sample number within the phase"),
        _field("samples", pa.int64(), "noise samples"),
        _field("votes", pa.map_(pa.int32(), pa.int64()), "class -> noise samples given it"),
    ]
)
"""One row per (image, sub-image, phase, stage, range of samples); votes of a row sum to its samples."""

CERTIFICATES = pa.schema(
    [
        _field("image_id", pa.int64(), "index in the split"),
        _field("label", pa.int32(), "class"),
        _field("prediction", pa.int32(), "class, -1 where the smoothed classifier abstains"),
        _field("correct", pa.bool_(), "prediction equals label"),
        _field("radius", pa.float64(), "l2, pixel units; 0 where abstaining"),
        _field("selected_class", pa.int32(), "class chosen by the selection samples"),
        _field("stage", pa.int8(), "stage of the budget whose votes decide"),
        _field("runner_up", pa.int32(), "the other class with the most estimation votes, -1 where there is none"),
        _field("samples", pa.int64(), "noise samples drawn, all sub-images, phases and stages"),
        _field("estimation_samples", _list(pa.int64()), "noise samples up to the stage, per sub-image"),
        _field("class_votes", _list(pa.int64()), "estimation votes for selected_class, per sub-image"),
        _field("runner_up_votes", _list(pa.int64()), "estimation votes for runner_up, per sub-image"),
        _field(
            "p_lower",
            _list(pa.float64()),
            "bound on the selected class's probability in the deciding box, per sub-image (pooled: on the mean); the "
            "radius is certified, not each bound",
        ),
        _field(
            "rival_upper",
            _list(pa.float64()),
            "bound of the deciding rival, not of all at once, per sub-image",
        ),
        _field("margin", _list(pa.float64()), "l2, pixel units, signed, per sub-image"),
        _field("rule", pa.string(), "vote, bounds and confidence rule"),
        _field("alpha", pa.float64(), "failure probability of the image's certificate"),
    ]
)
"""One row per image: its certificate, and every number that it was derived from."""

IMPORTED_CERTIFICATES = pa.schema(
    [
        *(CERTIFICATES.field(name) for name in ("image_id", "label", "prediction", "correct", "radius")),
        _field("samples", pa.int64(), "noise samples, all sub-images and phases, as stated at the import"),
        _field("alpha", pa.float64(), "failure probability of the image's certificate, as stated at the import"),
    ]
)
"""One row per image of a log of other code, without votes, because logs do not contain them."""

IMPORTED_TIME = _field("time", pa.string(), "as printed in the log")
"""Last column of imported certificates, if the log has it."""

CURVE = pa.schema(
    [
        _field("radius", pa.float64(), "l2, pixel units"),
        _field("certified_accuracy", pa.float64(), "share of all images"),
        _field("ci_low", pa.float64(), "95 % Clopper-Pearson over images, pointwise"),
        _field("ci_high", pa.float64(), "95 % Clopper-Pearson over images, pointwise"),
        _field("guaranteed_low", pa.float64(), "share of this test set, wrong certificates allowed for"),
    ]
)
"""One row per radius of the grid."""

ATTACKS = pa.schema(
    [
        _field("image_id", pa.int64(), "index in the split"),
        _field("label", pa.int32(), "class"),
        _field("prediction", pa.int32(), "class, the certified one"),
        _field("radius", pa.float64(), "certified, l2, pixel units"),
        _field("norm", pa.float64(), "smallest confirmed perturbation, l2, pixel units; inf where there is none"),
        _field("limit", pa.float64(), "largest norm of the search, l2, pixel units"),
        _field("rival", pa.int32(), "class that wins there, -1 where none was confirmed"),
        _field("level", pa.float64(), "chance that the image's confirmation is wrong"),
        _field("samples", pa.int64(), "noise samples of the confirmation, per sub-image; the same for each norm"),
        _field("prediction_votes", _list(pa.int64()), "confirming votes for prediction, per sub-image; else empty"),
        _field("rival_votes", _list(pa.int64()), "confirming votes for rival, per sub-image; else empty"),
        _field("perturbed", _list(pa.float32()), "the perturbed image, [C, H, W] in order; empty where there is none"),
    ]
)
"""One row per attacked image: an upper bound of the radius within which the prediction cannot change."""


def check_version(found: object, where: str) -> None:
    """Refuse a newer version, and anything that is not a version.

    Raises:
        CountsError: this reader does not know the version of `where`.
    """
    text = str(found)
    if not text.isdecimal() or int(text) < 1:
        raise CountsError(f"{where}: schema version {text}; versions are whole numbers from 1 on; restore it")
    if int(text) > SCHEMA_VERSION:
        raise CountsError(
            f"{where}: schema version {text}, this drs-ray reads up to {SCHEMA_VERSION}; use the newer that wrote it"
        )


def with_metadata(schema: pa.Schema, run_id: str, **extra: str) -> pa.Schema:
    """The schema with the version, the run id, and further keys in its metadata."""
    values = {"schema_version": str(SCHEMA_VERSION), "run_id": run_id, **extra}
    return schema.with_metadata({f"drs_ray.{name}": value for name, value in values.items()})


def metadata(schema: pa.Schema) -> dict[str, str]:
    """The metadata from `with_metadata`, without the prefix; empty for a file of another program."""
    items = (schema.metadata or {}).items()
    return {k.decode().removeprefix("drs_ray."): v.decode() for k, v in items if k.startswith(b"drs_ray.")}
