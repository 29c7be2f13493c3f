"""A finished run in MLflow: its settings as parameters, its results as metrics, its tables as artefacts."""

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
    """Log a reduced or imported run to MLflow, at the URI of `mlflow.set_tracking_uri` or MLFLOW_TRACKING_URI.

    It is logged to the active MLflow run; if there is none, to a new one with the run's name, which is then ended.
    Metrics are not rounded: `accuracy`, `acr`, `abstention_rate`, `samples`, `seconds` if known, and
    `certified_accuracy_at_R`, `guaranteed_at_R` for each radius R of the curve (pixel units). An imported run has no
    guarantee, and a log of predictions no ACR.

    Args:
        run: from `drs_ray.read_run` or `drs_ray.certify`.

    Returns:
        The MLflow run's id.

    Raises:
        ConfigError: MLflow is missing. MLflow's own errors, if its server or directory cannot be written.
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
    if summary.seconds is not None and summary.all_timed:
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
