"""Seeing a run: its metrics in Ray's Prometheus endpoint, its log, and its status while it goes on and afterwards."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from drs_ray.engine.outcome import Outcome
from drs_ray.engine.ray.metrics import MetricsObserver
from tests.support.runs import BATCH, FACTORY, Driver, drs_ray, drs_ray_here, run_data, stored_parts, write_config
from tests.unit.engine.factories import unit

IMAGES = 24
UNITS = 2 * IMAGES // 3
SAMPLES = 2 * IMAGES * (50 + 400)
EARLY = "built-before-ray"


@pytest.fixture(scope="module")
def early():
    """An observer that is there before Ray is, like that of a run which has yet to connect."""
    assert not ray.is_initialized()
    observer = MetricsObserver(EARLY, todo=2)
    observer.unit_done(unit(0), Outcome(1.0, 0.1))
    assert not ray.is_initialized()
    return observer


@pytest.fixture(scope="module")
def quick_ray(early, ray_directory):
    """A Ray that exports metrics each second; yields the environment in which a driver finds it."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=ray_directory,
        _system_config={"metrics_report_interval_ms": 1000},
    )
    yield os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    ray.shutdown()


Metrics = dict[str, dict[frozenset[tuple[str, str]], float]]


def scraped(run_id: str) -> Metrics:
    """A run's metrics in Ray's endpoint, by name and by those tags that are not Ray's."""
    (node,) = ray.nodes()
    url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: Metrics = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.labels.get("run_id") == run_id:
                own = {
                    key: sample.labels[key] for key in ("sub_image", "state", "reason", "le") if key in sample.labels
                }
                found.setdefault(sample.name, {})[frozenset(own.items())] = sample.value
    return found


def wait_for_metrics(run_id: str, expected: Metrics, seconds: float = 60.0) -> Metrics:
    """All of the run's metrics, when these are as expected: Ray's agent exports one before another."""
    deadline = time.monotonic() + seconds
    found = scraped(run_id)
    while {name: found.get(name) for name in expected} != expected and time.monotonic() < deadline:
        time.sleep(0.2)
        found = scraped(run_id)
    assert {name: found.get(name) for name in expected} == expected
    return found


def status_of(run: Path) -> dict[str, str]:
    """What `drs-ray status` says."""
    done = drs_ray_here(["status", str(run)])
    assert done.returncode == 0, done.stderr
    return dict(re.split(r"  +", line.strip(), maxsplit=1) for line in done.stdout.splitlines())


def of(**tags: object) -> frozenset[tuple[str, str]]:
    return frozenset((key, str(value)) for key, value in tags.items())


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_is_seen_in_all_ways(tmp_path, quick_ray):
    gate, marker, log = tmp_path / "gate", tmp_path / "marker", tmp_path / "events.jsonl"
    for file in (gate, marker):
        file.touch()
    run = tmp_path / "run"
    # Sub-image 0 takes a minute for a unit while the gate is there; sub-image 1 is quick, but loses a worker at first.
    data = run_data(run, address="auto", images=IMAGES, factory="slow", trigger=BATCH, seconds=2.0, gate=str(gate))
    arguments = {"trigger": BATCH, "marker": str(marker)}
    data["classifiers"][1] |= {"architecture": f"{FACTORY}:dies", "arguments": arguments}
    config = write_config(tmp_path / "config.yaml", data)
    with Driver(config, quick_ray, "--log", str(log)) as driver:
        driver.wait_until(lambda: '"began"' in log.read_text() if log.exists() else False, "the run began")
        run_id = json.loads((run / "run.json").read_text())["run_id"]

        seen = {}

        def at_work() -> bool:
            seen.update(scraped(run_id))
            crews = seen.get("ray_drs_ray_workers", {})
            return any(count for tags, count in crews.items() if ("state", "working") in tags)

        driver.wait_until(lambda: stored_parts(run) >= UNITS / 2 and at_work(), "sub-image 1 was done")
        status = status_of(run)
        assert driver.poll() is None, driver.text
        gate.unlink()
        assert driver.wait(timeout=120) == 0, driver.text

    # while it was at work
    assert 0 < seen["ray_drs_ray_units_todo"][of()] <= UNITS
    assert status["driver"] == "at work"
    assert re.fullmatch(r"[1-9][\d,]* samples/s", status["speed"]), status
    assert re.fullmatch(r"\d+\.\d s|\d+ min \d\d s", status["time left"]), status

    # the log
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    kinds = Counter(line["kind"] for line in lines)
    done = [line for line in lines if line["kind"] == "unit_done"]
    assert len({line["unit"] for line in done}) == len(done) == UNITS
    assert sum(line["samples"] for line in done) == SAMPLES
    assert all(line["seconds"] > 0 and line["put_seconds"] > 0 and line["put_retries"] == 0 for line in done)
    assert kinds["unit_retried"] >= 1
    began = next(number for number, line in enumerate(lines) if line["kind"] == "began")
    assert {line["run_id"] for line in lines[:began]} == {None}
    assert {line["run_id"] for line in lines[began:]} == {run_id}
    (planned,) = (line for line in lines if line["kind"] == "planned")
    assert (planned["todo"], planned["stored"], planned["samples"]) == (UNITS, 0, SAMPLES)
    crews = [(line["sub_image"], line["working"], line["starting"]) for line in lines if line["kind"] == "workers"]
    assert any(working for _, working, _ in crews)
    assert {sub_image: rest for sub_image, *rest in crews} == {0: [0, 0], 1: [0, 0]}  # the last word
    assert lines[-1]["kind"] == "ended"
    assert lines[-1]["exit_code"] == 0

    # what Ray shows to Prometheus when the driver has left
    half = {of(sub_image=0): UNITS / 2, of(sub_image=1): UNITS / 2}
    expected = {
        "ray_drs_ray_units_total": half,
        "ray_drs_ray_samples_total": {tags: value * SAMPLES / UNITS for tags, value in half.items()},
        "ray_drs_ray_put_seconds_count": {of(): UNITS},
        "ray_drs_ray_unit_seconds_count": {of(): UNITS},
        "ray_drs_ray_units_retried_total": {of(reason="worker"): kinds["unit_retried"]},
        "ray_drs_ray_workers_lost_total": {of(): kinds["unit_retried"] + kinds["worker_lost"]},
    }
    found = wait_for_metrics(run_id, expected)
    assert not {name for name in found if "set_aside" in name or "put_retries" in name}

    # status afterwards
    status = status_of(run)
    assert status["units"] == f"{UNITS} of {UNITS} (100 %)"
    assert (status["driver"], status["time left"], status["reduced"]) == ("none at work", "none", "yes")
    assert status["sessions"].startswith("1 ended, ")


@pytest.mark.ray
def test_metrics_built_before_ray_are_exported_from_when_it_is_there(early, quick_ray):
    early.unit_done(unit(1), Outcome(1.0, 0.1, put_retries=3))
    early.workers(0, 0, 0)
    wait_for_metrics(
        EARLY, {"ray_drs_ray_units_total": {of(sub_image=0): 1}, "ray_drs_ray_put_retries_total": {of(): 3}}
    )


def test_a_log_on_standard_error_is_alone_there(tmp_path):
    config = write_config(tmp_path / "config.yaml", run_data(tmp_path / "run", images=3))
    done = drs_ray(["certify", str(config), "--log", "-"])
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["samples"] for line in lines if line["kind"] == "unit_done"] == [1350, 1350]
    assert "ACR" in done.stdout


def test_a_log_that_cannot_be_written_ends_it_before_anything_is_done(tmp_path):
    config = write_config(tmp_path / "config.yaml", run_data(tmp_path / "run", images=3))
    done = drs_ray_here(["certify", str(config), "--log", str(tmp_path / "none" / "log")])
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: --log: cannot write {tmp_path}/none/log (No such file or directory); name a file in a directory that "
        "exists and that you may write to, or - for stderr"
    ]
    assert not (tmp_path / "run").exists()
