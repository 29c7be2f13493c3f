"""A run in MLflow, in a local file store: every number is the run's, and what is imported stays marked."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import drs_ray
from drs_ray.errors import ConfigError
from drs_ray.published.imported_run import import_log
from drs_ray.report.export import export
from tests.unit.counts.factories import MemoryStore, make_result


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow

    mlflow.set_tracking_uri((tmp_path / "store").as_uri())
    yield mlflow
    mlflow.set_tracking_uri(None)


def test_a_run_is_logged_whole(mlflow: Any, tmp_path: Path) -> None:
    run = make_result(50, 2)
    logged = mlflow.get_run(drs_ray.log_to_mlflow(run))
    assert (logged.info.run_name, logged.info.status) == ("demo", "FINISHED")
    assert logged.data.params == {
        "dataset": "mnist5k", "split": "test", "images": "50", "sub_images": "2", "sigmas": "0.5, 0.5",
        "selection": "100", "estimation": "1000", "stages": "1", "alpha": "0.001", "rule": run.rule,
        "noise_law": "lattice",
    }  # fmt: skip
    metrics = logged.data.metrics
    assert metrics["acr"] == run.average_certified_radius
    assert metrics["accuracy"] == run.accuracy
    assert metrics["abstention_rate"] == run.abstention_rate
    assert metrics["samples"] == run.samples
    for row in run.curve.to_pylist():
        assert metrics[f"certified_accuracy_at_{row['radius']:g}"] == row["certified_accuracy"]
        assert metrics[f"guaranteed_at_{row['radius']:g}"] == row["guaranteed_low"]
    assert len(metrics) == 4 + 2 * len(run.curve)
    assert logged.data.tags["drs_ray.run_id"] == run.record.run_id
    assert "drs_ray.mark" not in logged.data.tags
    place = Path(mlflow.artifacts.download_artifacts(run_id=logged.info.run_id, dst_path=str(tmp_path / "back")))
    assert pq.read_table(place / "certificates.parquet").equals(run.certificates)
    assert pq.read_table(place / "curve.parquet").equals(run.curve)
    assert json.loads((place / "run.json").read_text())["run_id"] == run.record.run_id


def test_the_time_is_logged_only_where_it_is_that_of_the_whole_run(mlflow: Any) -> None:
    run = make_result(5)
    whole, killed = (
        mlflow.get_run(drs_ray.log_to_mlflow(replace(run, seconds=2.0, all_timed=all_timed))).data.metrics
        for all_timed in (True, False)
    )
    assert whole["seconds"] == 2.0
    assert "seconds" not in killed


def test_an_active_run_is_used_and_left_open(mlflow: Any) -> None:
    with mlflow.start_run(run_name="mine") as mine:
        assert drs_ray.log_to_mlflow(make_result(5)) == mine.info.run_id
        assert mlflow.active_run().info.run_id == mine.info.run_id


def test_an_imported_run_stays_marked(mlflow: Any) -> None:
    log = export([make_result(5)], "tsv").encode()
    run = import_log(MemoryStore("runs/cohen"), log, "log.tsv", dataset="mnist5k", sigmas=[0.5], estimation=1000)
    logged = mlflow.get_run(drs_ray.log_to_mlflow(run))
    assert logged.info.run_name == "cohen, imported, not verified"
    assert logged.data.tags["drs_ray.mark"] == "imported, not verified"
    assert logged.data.params["noise_law"] == "not stated"
    assert not [name for name in logged.data.metrics if name.startswith("guaranteed")]


def test_predictions_have_no_acr(mlflow: Any) -> None:
    log = b"idx\tlabel\tpredict\tcorrect\n0\t3\t3\t1\n1\t8\t-1\t0\n"
    run = import_log(MemoryStore("runs/p"), log, "log.tsv", dataset="mnist5k", sigmas=[0.5], estimation=1000)
    metrics = mlflow.get_run(drs_ray.log_to_mlflow(run)).data.metrics
    assert metrics == {"accuracy": 0.5, "abstention_rate": 0.5, "samples": 2000, "certified_accuracy_at_0": 0.5}


def test_a_run_that_cannot_be_logged_is_failed_not_left_open(mlflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(mlflow, "log_artifacts", full)
    with pytest.raises(OSError, match="no space left"):
        drs_ray.log_to_mlflow(make_result(5))
    assert mlflow.active_run() is None
    (logged,) = mlflow.search_runs(output_format="list")
    assert logged.info.status == "FAILED"


def test_without_mlflow_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"tracking needs MLflow: install drs-ray\[mlflow\]"):
        drs_ray.log_to_mlflow(make_result(5))
