"""drs-ray: certified robustness of image classifiers by (dual) randomized smoothing, as distributed batch jobs on Ray.

The public API. Importing it loads neither torch nor Ray; the functions that need them import them when called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from drs_ray.config import RunConfig, load_config
from drs_ray.errors import DrsError

if TYPE_CHECKING:
    import pyarrow as pa

    from drs_ray.attacks.report import AttackReport
    from drs_ray.certificates.certify import Rule
    from drs_ray.engine.observer import Observer
    from drs_ray.engine.verify import VerifyReport
    from drs_ray.results.reduce import RunResult
    from drs_ray.smoothed import SmoothedClassifier
    from drs_ray.smoothing.partition import make_partition

__all__ = [
    "DrsError",
    "Rule",
    "RunConfig",
    "SmoothedClassifier",
    "attack",
    "certify",
    "load_config",
    "make_partition",
    "read_certificates",
    "read_run",
    "reduce",
    "train",
    "verify",
    "write_report",
]


_LOADED_WHEN_USED = {
    "Rule": "drs_ray.certificates.certify",
    "SmoothedClassifier": "drs_ray.smoothed",
    "make_partition": "drs_ray.smoothing.partition",
}


def __getattr__(name: str) -> object:
    """The names above come with torch or scipy: they are imported when they are first asked for."""
    if name not in _LOADED_WHEN_USED:
        raise AttributeError(f"module 'drs_ray' has no attribute '{name}'")
    return getattr(importlib.import_module(_LOADED_WHEN_USED[name]), name)


def attack(uri: str, images: int = 20, *, endpoint_url: str | None = None, **options: Any) -> AttackReport:
    """Search perturbations that change a run's certified predictions; `check()` the report.

    Args:
        uri: directory or s3:// URI of a reduced run.
        images: how many of its images.
        endpoint_url: endpoint of an S3-compatible server, if not the default.
        options: steps, samples, confirmation, level, seed, device, overrides, told; see
            `drs_ray.attacks.run.attack_run`.

    Raises:
        As `attack_run`.
    """
    from drs_ray.attacks.run import attack_run
    from drs_ray.results.store import open_store

    return attack_run(open_store(uri, endpoint_url), images, **options)


def certify(config: RunConfig, observer: Observer | None = None) -> RunResult:
    """Certify the images of a config, or resume; see `drs_ray.engine.certify.certify_run`."""
    from drs_ray.engine.certify import certify_run

    return certify_run(config, observer)


def read_run(uri: str, endpoint_url: str | None = None) -> RunResult:
    """A reduced run: record, certificates, curve and the figures derived from them.

    Args:
        uri: directory or s3:// URI of the run.
        endpoint_url: endpoint of an S3-compatible server, if not the default.

    Raises:
        CountsError: no run there, or it is not reduced yet. StoreError: the place cannot be read.
    """
    from drs_ray.results.reduce import read_result
    from drs_ray.results.store import open_store

    return read_result(open_store(uri, endpoint_url))


def read_certificates(uri: str, endpoint_url: str | None = None) -> pa.Table:
    """The certificates of a reduced run, one row per image; columns in docs/results.md. Raises as `read_run`."""
    return read_run(uri, endpoint_url).certificates


def reduce(uri: str, *, endpoint_url: str | None = None, **certificate: Any) -> RunResult:
    """Compute a run's certificates again from its counts, for example `reduce("runs/x", alpha=0.01)`.

    Args:
        uri: directory or s3:// URI of a finished run.
        endpoint_url: endpoint of an S3-compatible server, if not the default.
        certificate: keys of the config's `certificate` section to change.

    Raises:
        ConfigError: a key or value that cannot be. CountsError: counts that are missing or cannot be trusted.
    """
    from drs_ray.results.reduce import reduce_run
    from drs_ray.results.run_record import read_record
    from drs_ray.results.store import open_store

    store = open_store(uri, endpoint_url)
    record = read_record(store)
    return reduce_run(store, record, record.config.updated("certificate", **certificate).certificate)


def train(config: RunConfig) -> list[str]:
    """Train the config's sub-image classifiers, or go on; returns the checkpoints' paths or URIs. See `train_run`."""
    from drs_ray.training.run import train_run

    return train_run(config)


def verify(uri: str, units: int = 10, *, endpoint_url: str | None = None, **options: Any) -> VerifyReport:
    """Recompute random stored units of a run in this process and compare their votes; `check()` the report.

    Args:
        uri: directory or s3:// URI of the run; it need not be finished.
        units: how many units.
        endpoint_url: endpoint of an S3-compatible server, if not the default.
        options: images, seed, device, level, overrides, observer; see `drs_ray.engine.verify.verify_run`.

    Raises:
        As `verify_run`.
    """
    from drs_ray.engine.verify import verify_run
    from drs_ray.results.store import open_store

    return verify_run(open_store(uri, endpoint_url), units, **options)


def write_report(
    runs: list[RunResult], directory: str, *, compare_rules: bool = False, endpoint_url: str | None = None
) -> list[str]:
    """Write report.html and the figure for one or several runs side by side; returns the files' keys.

    Args:
        runs: at least one run. Its counts, where they are, are read for what the report says about fewer samples.
        directory: directory or s3:// URI to write to.
        compare_rules: beside each run, what the plain rule makes of the same counts.
        endpoint_url: endpoint of an S3-compatible server, if not the runs' own or the default.

    Raises:
        ConfigError: no runs, or runs over different test sets. CountsError: counts that cannot be trusted.
    """
    from drs_ray.results.readouts import read_columns
    from drs_ray.results.report import write_report as write
    from drs_ray.results.store import open_store
    from drs_ray.results.summary import check_same_test_set

    check_same_test_set(runs)
    stores = [open_store(run.uri, endpoint_url or run.record.config.output.endpoint_url) for run in runs]
    columns = read_columns(zip(runs, stores, strict=True), compare_rules=compare_rules)
    return write(columns, open_store(directory, endpoint_url))
