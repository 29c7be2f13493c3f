"""A finished run in MLflow: what it was as parameters, what it showed as metrics, its tables as artefacts."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from pathlib import Path

from drs_ray import arguments
from drs_ray.arguments import checked
from drs_ray.counts.schema import CERTIFICATES_KEY, CURVE_KEY, RUN_KEY
from drs_ray.errors import ConfigError
from drs_ray.published.imported_run import MARK, ReportedRun
from drs_ray.report.summary import run_names, summarise
from drs_ray.results.tables import parquet_bytes


@checked(run=arguments.run)
def log_to_mlflow(run: ReportedRun) -> str:
    """Log a reduced or imported run to MLflow, where `mlflow.set_tracking_uri` or MLFLOW_TRACKING_URI says.

    Into the active MLflow run, if there is one; else into a new one that has the run's name and is ended. Metrics are
    as computed, not rounded: `accuracy`, `acr`, `abstention_rate`, `samples`, `seconds` where known, and
    `certified_accuracy_at_R`, `guaranteed_at_R` for each radius R of the curve (pixel units). Nothing is
    guaranteed of an imported run, and a log of predictions has no ACR.

    Args:
        run: of `drs_ray.read_run` or `drs_ray.certify`.

    Returns:
        The MLflow run's id.

    Raises:
        ConfigError: MLflow is missing. What MLflow raises, where its server or place cannot be written.
    """
    try:
        import mlflow
    except ImportError as error:
        raise ConfigError("tracking needs MLflow: install drs-ray[mlflow]") from error
    (name,) = run_names([run])
    summary = summarise(run, name)
    parameters = {
        "dataset": summary.dataset,
        "split": summary.split,
        "images": summary.images,
        "sub_images": summary.sub_images,
        "sigmas": ", ".join(map(repr, summary.sigmas)),
        "selection": summary.selection,
        "estimation": summary.estimation,
        "stages": len(summary.stages),
        "alpha": summary.alpha,
        "rule": summary.rule,
        "noise_law": summary.noise_law,
    }
    metrics = {
        "accuracy": summary.accuracy,
        "abstention_rate": summary.abstention_rate,
        "samples": summary.samples,
    }
    if summary.has_radii:
        metrics["acr"] = summary.acr
    if summary.seconds is not None:
        metrics["seconds"] = summary.seconds
    for row in summary.at_radii:
        metrics[f"certified_accuracy_at_{row.radius_text}"] = row.certified / row.images
        if not summary.imported:
            metrics[f"guaranteed_at_{row.radius_text}"] = row.guaranteed / row.images
    tags = {"drs_ray.run_id": summary.run_id, "drs_ray.uri": run.uri}
    if summary.imported:
        tags["drs_ray.mark"] = MARK
    active = mlflow.active_run()
    with nullcontext(active) if active else mlflow.start_run(run_name=name) as tracked:
        mlflow.log_params(parameters)
        mlflow.log_metrics(metrics)
        mlflow.set_tags(tags)
        with tempfile.TemporaryDirectory() as directory:
            place = Path(directory)
            (place / RUN_KEY).write_text(run.record.model_dump_json(indent=1), encoding="utf-8")
            (place / CERTIFICATES_KEY).write_bytes(parquet_bytes(run.certificates))
            (place / CURVE_KEY).write_bytes(parquet_bytes(run.curve))
            mlflow.log_artifacts(directory)
        return str(tracked.info.run_id)
