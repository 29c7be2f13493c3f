"""drs-ray: certified robustness of image classifiers by (dual) randomized smoothing, as distributed batch jobs on Ray.

This module is the public API. Importing it loads neither torch nor Ray; functions import them when they are called.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drs_ray import arguments
from drs_ray.arguments import checked, optional
from drs_ray.config import RunConfig, config_of, load_config
from drs_ray.errors import DrsError
from drs_ray.storage import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Unpack

    import pyarrow as pa

    from drs_ray.certificates.rule import Rule
    from drs_ray.checks.attack.run import attack
    from drs_ray.checks.radii import audit
    from drs_ray.checks.verify import verify
    from drs_ray.config.certificate import CertificateKeys
    from drs_ray.engine.observer import Observer
    from drs_ray.published.imported_run import ImportedResult, ReportedRun
    from drs_ray.report.plots import plot_certified_accuracy, plot_radius_histogram
    from drs_ray.report.tracking import log_to_mlflow
    from drs_ray.results.image_certificate import ImageCertificate
    from drs_ray.results.reduce import RunResult
    from drs_ray.smoothed import SmoothedClassifier
    from drs_ray.smoothing.partition import make_partition

    __version__: str

__all__ = [
    "DrsError",
    "Rule",
    "RunConfig",
    "SmoothedClassifier",
    "__version__",
    "attack",
    "audit",
    "certify",
    "export",
    "import_log",
    "load_config",
    "log_to_mlflow",
    "make_partition",
    "plot_certified_accuracy",
    "plot_radius_histogram",
    "read_certificate",
    "read_certificates",
    "read_run",
    "reduce",
    "train",
    "verify",
    "write_report",
]

_LOADED_WHEN_USED = {
    "Rule": "drs_ray.certificates.rule",
    "SmoothedClassifier": "drs_ray.smoothed",
    "attack": "drs_ray.checks.attack.run",
    "audit": "drs_ray.checks.radii",
    "log_to_mlflow": "drs_ray.report.tracking",
    "make_partition": "drs_ray.smoothing.partition",
    "plot_certified_accuracy": "drs_ray.report.plots",
    "plot_radius_histogram": "drs_ray.report.plots",
    "verify": "drs_ray.checks.verify",
}


def __getattr__(name: str) -> object:
    """Import the names of `_LOADED_WHEN_USED` at their first use, because they need torch, scipy or pyarrow."""
    if name == "__version__":
        from importlib.metadata import version

        return version("drs-ray")
    if name not in _LOADED_WHEN_USED:
        raise AttributeError(f"module 'drs_ray' has no attribute '{name}'")
    return getattr(importlib.import_module(_LOADED_WHEN_USED[name]), name)


@checked(observer=arguments.observer)
def certify(
    config: RunConfig | str | os.PathLike[str] | Mapping[str, Any], observer: Observer | None = None
) -> RunResult:
    """Certify the images of a config, or resume the run; see `drs_ray.engine.run.certify_run`.

    Args:
        config: the result of `load_config`, or its argument: the path of a YAML file, or a mapping with the same keys.
        observer: receives progress and events.

    Raises:
        As `load_config` and `certify_run`.
    """
    from drs_ray.engine.run import certify_run

    return certify_run(config_of(config), observer)


def read_run(uri: str | os.PathLike[str], endpoint_url: str | None = None) -> ReportedRun:
    """Read a reduced run (record, certificates, curve and the figures derived from them) or an imported run.

    Args:
        uri: directory (text or a Path) or s3:// URI of the run.
        endpoint_url: endpoint of an S3-compatible server, if not the default.

    Raises:
        CountsError: `uri` has no run, or the run is not reduced yet. StoreError: `uri` cannot be read.
    """
    from drs_ray.published.imported_run import read_reported_run

    return read_reported_run(open_store(uri, endpoint_url))


@checked(image_id=arguments.whole)
def read_certificate(uri: str | os.PathLike[str], image_id: int, endpoint_url: str | None = None) -> ImageCertificate:
    """Read one certificate with every number between its votes and its radius.

    Raises:
        ConfigError, CountsError: see `drs_ray.results.image_certificate.read_certificate`.
    """
    from drs_ray.results.image_certificate import read_certificate

    return read_certificate(open_store(uri, endpoint_url), image_id)


@checked(runs=arguments.runs, kind=arguments.text, radii=optional(arguments.numbers))
def export(runs: Sequence[ReportedRun], kind: str, radii: Sequence[float] | None = None) -> str:
    """Write runs as text: `tsv` (certify.py's log) or `csv` of one run, a `markdown` or `latex` table of one or more.

    Raises:
        ConfigError: an unknown format, or runs that do not fit it.
    """
    from drs_ray.report.export import export

    return export(runs, kind, radii)


@checked(
    file=arguments.path,
    sigmas=arguments.numbers_or_one,
    radius=optional(arguments.number),
    radii=optional(arguments.numbers),
)
def import_log(
    file: str | os.PathLike[str],
    uri: str | os.PathLike[str],
    *,
    dataset: str,
    sigmas: Sequence[float] | float,
    estimation: int,
    selection: int | None = None,
    alpha: float = 0.001,
    split: str = "test",
    radius_rule: str = "unknown",
    radius: float | None = None,
    radii: Sequence[float] | None = None,
    endpoint_url: str | None = None,
) -> ImportedResult:
    """Store a published log (certify.py's format) as a run for comparisons, marked as imported and not verified.

    Args:
        file: the log.
        uri: directory (text or a Path) or s3:// URI of the new run.
        dataset: name of the data set, as in the run to compare with.
        sigmas: noise standard deviation of each sub-image, pixel units; a single number for one sub-image.
        estimation: samples per image and sub-image from which the radii were computed.
        selection: samples per image and sub-image that chose the class; None: 100, or 0 for a log of predictions.
        alpha: failure probability of one certificate.
        split: split of the data set.
        radius_rule: how the margins of the sub-images were combined: linear, square-root, clipped or unknown.
        radius: pixel units; the fixed radius of a log that says of each image only whether it was certified.
        radii: the curve's grid, increasing, pixel units; None: the default grid of configs.
        endpoint_url: endpoint of an S3-compatible server, if not the default.

    Raises:
        As `drs_ray.published.imported_run.import_log`.
    """
    from drs_ray.published.imported_run import import_log, read_log

    return import_log(
        open_store(uri, endpoint_url),
        read_log(file),
        Path(file).name,
        dataset=dataset,
        sigmas=sigmas,  # type: ignore[arg-type]  # a tuple, once checked
        estimation=estimation,
        selection=selection,
        alpha=alpha,
        split=split,
        radius_rule=radius_rule,
        radius=radius,
        radii=radii,
    )


def read_certificates(uri: str | os.PathLike[str], endpoint_url: str | None = None) -> pa.Table:
    """The certificates of a reduced run, one row per image; columns in docs/results.md. Raises as `read_run`."""
    return read_run(uri, endpoint_url).certificates


def reduce(
    uri: str | os.PathLike[str], *, endpoint_url: str | None = None, **certificate: Unpack[CertificateKeys]
) -> RunResult:
    """Compute a run's certificates again from its counts, for example `reduce("runs/x", alpha=0.01)`.

    Args:
        uri: directory (text or a Path) or s3:// URI of a finished run.
        endpoint_url: endpoint of an S3-compatible server, if not the default.
        certificate: keys of the config's `certificate` section to change.

    Raises:
        ConfigError: an unknown key or an invalid value. CountsError: counts that are missing or cannot be trusted.
    """
    from drs_ray.counts.run_record import read_record
    from drs_ray.results.reduce import reduce_run

    store = open_store(uri, endpoint_url)
    record = read_record(store)
    return reduce_run(store, record, record.config.updated("certificate", **certificate).certificate)


def train(config: RunConfig | str | os.PathLike[str] | Mapping[str, Any]) -> list[str]:
    """Train the config's sub-image classifiers, or resume; returns the checkpoints' paths or URIs. See `train_run`.

    Args:
        config: as for `certify`.
    """
    from drs_ray.training.run import train_run

    return train_run(config_of(config))


@checked(runs=arguments.runs, compare_rules=arguments.flag, common=arguments.flag)
def write_report(
    runs: Sequence[ReportedRun],
    directory: str | os.PathLike[str],
    *,
    compare_rules: bool = False,
    common: bool = False,
    endpoint_url: str | None = None,
) -> list[str]:
    """Write report.html and the figure for one or several runs side by side; returns the files' keys.

    Args:
        runs: at least one run. If its counts exist, the report shows from them what fewer samples would certify.
        directory: directory or s3:// URI to write to.
        compare_rules: show beside each run the result of the plain rule on the same counts.
        common: of runs on different images, compare the images that all runs have; the report gives their number.
        endpoint_url: endpoint of an S3-compatible server, if not the runs' own or the default.

    Raises:
        ConfigError: no runs, or runs over different test sets. CountsError: counts that cannot be trusted.
    """
    from drs_ray.report.columns import read_columns
    from drs_ray.report.page import write_report as write
    from drs_ray.report.thumbnails import thumbnails
    from drs_ray.results.reduce import RunResult

    endpoints = [run.record.config.output.endpoint_url if isinstance(run, RunResult) else None for run in runs]
    stores = [open_store(run.uri, endpoint_url or own) for run, own in zip(runs, endpoints, strict=True)]
    columns = read_columns(list(zip(runs, stores, strict=True)), compare_rules=compare_rules, common=common)
    return write(columns, open_store(directory, endpoint_url), thumbnails)
