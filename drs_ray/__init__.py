"""drs-ray: certified robustness of image classifiers by (dual) randomized smoothing, as distributed batch jobs on Ray.

The public API. Importing it loads neither torch nor Ray; the functions that need them import them when called.
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
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Unpack

    import pyarrow as pa

    from drs_ray.certificates.rule import Rule
    from drs_ray.checks.attack.report import AttackReport
    from drs_ray.checks.radii import AuditReport
    from drs_ray.checks.verify import VerifyReport
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

_OF_CHECKS = {
    "images": arguments.whole,
    "seed": optional(arguments.whole),
    "level": arguments.number,
    "device": optional(arguments.text),
    "overrides": arguments.texts,
}
_OBSERVER = optional(arguments.instance_of("drs_ray.engine.observer:Observer", "a drs_ray.engine.observer.Observer"))

_LOADED_WHEN_USED = {
    "Rule": "drs_ray.certificates.rule",
    "SmoothedClassifier": "drs_ray.smoothed",
    "log_to_mlflow": "drs_ray.report.tracking",
    "make_partition": "drs_ray.smoothing.partition",
    "plot_certified_accuracy": "drs_ray.report.plots",
    "plot_radius_histogram": "drs_ray.report.plots",
}


def __getattr__(name: str) -> object:
    """The names above come with torch, scipy or pyarrow: they are imported when they are first asked for."""
    if name == "__version__":
        from importlib.metadata import version

        return version("drs-ray")
    if name not in _LOADED_WHEN_USED:
        raise AttributeError(f"module 'drs_ray' has no attribute '{name}'")
    return getattr(importlib.import_module(_LOADED_WHEN_USED[name]), name)


@checked(
    steps=arguments.whole,
    samples=arguments.whole,
    confirmation=arguments.whole,
    on_progress=optional(arguments.function),
    **_OF_CHECKS,
)
def attack(
    uri: str | os.PathLike[str],
    images: int = 20,
    *,
    steps: int = 60,
    samples: int = 32,
    confirmation: int = 10_000,
    level: float = 1e-3,
    seed: int | None = None,
    device: str | None = None,
    overrides: Iterable[str] = (),
    on_progress: Callable[[int, int], None] | None = None,
    endpoint_url: str | None = None,
) -> AttackReport:
    """Search perturbations that change a run's certified predictions; `check()` the report.

    Args:
        uri: directory (text or a Path) or s3:// URI of a reduced run.
        images: how many of its images, at random.
        steps: steps of the descent that finds an image's direction.
        samples: noise samples of each sub-image and step.
        confirmation: fresh noise samples of each sub-image by which a norm is confirmed.
        level: probability at most that any confirmation of the attack is wrong, in (0, 1).
        seed: repeats an earlier attack; None: a new one.
        device: cpu or cuda; None: the run's, or cpu where this machine has no GPU.
        overrides: `dataset.root=...`, `classifiers.0.checkpoint=...`: where the same data and weights are here.
        on_progress: called with how many images are done, of how many.
        endpoint_url: endpoint of an S3-compatible server, if not the default.

    Raises:
        As `drs_ray.checks.attack.run.attack_run`.
    """
    from drs_ray.checks.attack.run import attack_run

    return attack_run(
        open_store(uri, endpoint_url),
        images,
        steps=steps,
        samples=samples,
        confirmation=confirmation,
        level=level,
        seed=seed,
        device=device,
        overrides=overrides,
        on_progress=on_progress,
    )


def audit(uri: str | os.PathLike[str], *, endpoint_url: str | None = None) -> AuditReport:
    """Derive a run's radii again from its counts, in ball arithmetic; `check()` the report (extra `audit`).

    Args:
        uri: directory (text or a Path) or s3:// URI of a reduced run.
        endpoint_url: endpoint of an S3-compatible server, if not the default.

    Raises:
        As `drs_ray.checks.radii.audit_run`.
    """
    from drs_ray.checks.radii import audit_run

    return audit_run(open_store(uri, endpoint_url))


@checked(observer=_OBSERVER)
def certify(
    config: RunConfig | str | os.PathLike[str] | Mapping[str, Any], observer: Observer | None = None
) -> RunResult:
    """Certify the images of a config, or resume; see `drs_ray.engine.run.certify_run`.

    Args:
        config: of `load_config`, or what that takes: the path of a YAML file, or the same as a mapping.
        observer: told of progress and events.

    Raises:
        As `load_config` and `certify_run`.
    """
    from drs_ray.engine.run import certify_run

    return certify_run(config_of(config), observer)


def read_run(uri: str | os.PathLike[str], endpoint_url: str | None = None) -> ReportedRun:
    """A reduced run: record, certificates, curve and the figures derived from them; or an imported run.

    Args:
        uri: directory (text or a Path) or s3:// URI of the run.
        endpoint_url: endpoint of an S3-compatible server, if not the default.

    Raises:
        CountsError: no run there, or it is not reduced yet. StoreError: the place cannot be read.
    """
    from drs_ray.published.imported_run import read_reported_run

    return read_reported_run(open_store(uri, endpoint_url))


@checked(image_id=arguments.whole)
def read_certificate(uri: str | os.PathLike[str], image_id: int, endpoint_url: str | None = None) -> ImageCertificate:
    """One certificate with every number between its votes and its radius.

    Raises:
        ConfigError, CountsError: see `drs_ray.results.image_certificate.read_certificate`.
    """
    from drs_ray.results.image_certificate import read_certificate

    return read_certificate(open_store(uri, endpoint_url), image_id)


@checked(runs=arguments.runs, kind=arguments.text, radii=optional(arguments.numbers))
def export(runs: Sequence[ReportedRun], kind: str, radii: Sequence[float] | None = None) -> str:
    """Runs as text: `tsv` (certify.py's log) or `csv` of one run, a `markdown` or `latex` table of one or several.

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
    """Keep a published log (certify.py's format) as a run to compare with, marked as imported and not verified.

    Args:
        file: the log.
        uri: directory (text or a Path) or s3:// URI to keep it in.
        dataset: name of the data set, as in the run that it is to be compared with.
        sigmas: noise standard deviation of each sub-image (one number will do for one), pixel units.
        estimation: samples per image and sub-image that the radii are from.
        selection: samples per image and sub-image that chose the class; None: 100, or 0 for a log of predictions.
        alpha: failure probability of one certificate.
        split: of the data set.
        radius_rule: how margins of sub-images were joined: linear, square-root, clipped or unknown.
        radius: pixel units: the one that was asked for, where the log says of each image whether it was certified.
        radii: the curve's grid, increasing, pixel units; None: that of configs.
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
        ConfigError: a key or value that cannot be. CountsError: counts that are missing or cannot be trusted.
    """
    from drs_ray.counts.run_record import read_record
    from drs_ray.results.reduce import reduce_run

    store = open_store(uri, endpoint_url)
    record = read_record(store)
    return reduce_run(store, record, record.config.updated("certificate", **certificate).certificate)


def train(config: RunConfig | str | os.PathLike[str] | Mapping[str, Any]) -> list[str]:
    """Train the config's sub-image classifiers, or go on; returns the checkpoints' paths or URIs. See `train_run`.

    Args:
        config: as for `certify`.
    """
    from drs_ray.training.run import train_run

    return train_run(config_of(config))


@checked(
    units=arguments.whole,
    image=optional(arguments.whole),
    observer=_OBSERVER,
    **_OF_CHECKS,
)
def verify(
    uri: str | os.PathLike[str],
    units: int = 10,
    *,
    images: int = 4,
    image: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    level: float = 1e-3,
    overrides: Iterable[str] = (),
    observer: Observer | None = None,
    endpoint_url: str | None = None,
) -> VerifyReport:
    """Recompute random stored units of a run in this process and compare their votes; `check()` the report.

    Args:
        uri: directory (text or a Path) or s3:// URI of the run; it need not be finished.
        units: how many units.
        images: how many images of each, at random.
        image: id of one image, which is recomputed in all of its units, in place of a random draw.
        seed: repeats a draw; None: a new one.
        device: cpu or cuda; None: the run's, or cpu where this machine has no GPU.
        level: probability that a run without fault fails where votes cannot be compared exactly, in (0, 1).
        overrides: `dataset.root=...`, `classifiers.0.checkpoint=...`: where the same data and weights are here.
        observer: told of progress.
        endpoint_url: endpoint of an S3-compatible server, if not the default.

    Raises:
        As `drs_ray.checks.verify.verify_run`.
    """
    from drs_ray.checks.verify import verify_run

    return verify_run(
        open_store(uri, endpoint_url),
        units,
        images=images,
        image=image,
        seed=seed,
        device=device,
        level=level,
        overrides=overrides,
        observer=observer,
    )


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
        runs: at least one run. Its counts, where they are, are read for what the report says about fewer samples.
        directory: directory or s3:// URI to write to.
        compare_rules: beside each run, what the plain rule makes of the same counts.
        common: of runs on different images, compare those that all have; the report says how many they are.
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
