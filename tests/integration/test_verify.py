"""Verifying real runs: the command line, adaptive and cut runs, other devices, other classifiers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import drs_ray
from drs_ray.config import RunConfig, parse_config
from drs_ray.counts.encoding import CountsRow, encode_part
from drs_ray.counts.plan import plan_units
from drs_ray.counts.run_record import RunRecord, identity, read_record, run_id
from drs_ray.counts.schema import COUNTS_PREFIX, RUN_KEY
from drs_ray.engine.unit_runner import UnitRunner
from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import build_architecture
from drs_ray.models.checkpoints import CheckpointMetadata, save_checkpoint
from drs_ray.storage import LocalStore, Store, open_store
from tests.support.runs import drs_ray_here as command
from tests.support.runs import run_config, run_data

SHAPE = (1, 28, 14)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests that change it work on a copy."""
    place = tmp_path_factory.mktemp("finished") / "run"
    drs_ray.certify(run_config(place, images=6))
    return place


def checkpoint(file: Path, sub_image: int, seed: int) -> str:
    torch.manual_seed(seed)
    module = build_architecture("digits-cnn", SHAPE, 10)
    metadata = CheckpointMetadata("digits-cnn", "checkerboard", "packed", (sub_image,), 0.5, 10, SHAPE, "mnist5k")
    save_checkpoint(file, module, metadata)
    return str(file)


def test_the_command_line(finished: Path, tmp_path: Path) -> None:
    done = command(["verify", str(finished), "--units", "3", "--images", "2", "--seed", "7", "--quiet"])
    assert (done.returncode, done.stderr) == (0, "")
    shown = dict(line.split("  ", 1) for line in done.stdout.splitlines()[:-1])
    shown = {name: value.strip() for name, value in shown.items()}
    assert shown["run"] == read_record(open_store(str(finished))).run_id
    assert shown["units"] == "3 of 4 stored (--seed 7)"
    assert shown["noise samples"] == "2,700 of 5,400 stored"
    assert shown["compared"] == "exactly"
    assert shown["comparisons"] == "30, 0 differ"
    assert done.stdout.splitlines()[-1] == "the stored votes agree"

    run = tmp_path / "run"
    shutil.copytree(finished, run)
    store = open_store(str(run))
    record = read_record(store)
    unit = plan_units(record)[0]
    rows = list(UnitRunner(record, 0).count(unit))
    top, second = np.argsort(rows[1].votes)[::-1][:2]
    rows[1].votes[[top, second]] += [1, -1]
    store.put(unit.key, encode_part(rows, record.run_id, unit.key))
    done = command(["verify", str(run), "--units", "4"])
    assert done.returncode == 1
    assert "60, 1 differ" in done.stdout
    assert "agree" not in done.stdout
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        f"error: {run}: 1 of 60 comparisons differ, in 1 of 4 units checked, first {unit.key}: image "
    )
    assert "Traceback" not in done.stderr


def test_a_refusal_on_the_command_line(finished: Path) -> None:
    done = command(["verify", str(finished), "--set", "noise.seed=1"])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: --set noise.seed=1: the run is taken as it is")


def adaptive(place: Path) -> RunConfig:
    data = run_data(place)
    data["classifiers"] = [{**classifier, "sigma": 0.1} for classifier in data["classifiers"]]
    data["budget"] = {"selection": 50, "estimation": 800, "stages": 4}
    data["certificate"] = {"radii": [0.0, 0.05, 0.1]}
    return parse_config(data)


def cut(place: Path) -> RunConfig:
    data = run_data(place)
    data["engine"]["samples_per_unit"] = 100
    return parse_config(data)


@pytest.mark.parametrize("config", [adaptive, cut])
def test_adaptive_runs_and_runs_cut_by_samples_verify(tmp_path: Path, config: Any) -> None:
    drs_ray.certify(config(tmp_path / "run"))
    threads = torch.get_num_threads()
    report = drs_ray.verify(str(tmp_path / "run"), 99, images=99)
    report.check()
    assert report.samples == report.samples_stored
    assert len(report.checked) == report.units > 8
    assert torch.get_num_threads() == threads


def cuda_run(config: RunConfig, tampered: RunConfig | None = None) -> Store:
    """A run as a GPU would leave it: noise that this machine's generator cannot draw, here that of another seed.

    The votes are those of `tampered`, where it is given.
    """
    config = config.updated("engine", device="cuda", precision="float32", compile=False)
    here = drs_ray.certify((tampered or config).updated("engine", device="cpu").updated("noise", seed=99)).record
    place = LocalStore(Path(config.output.uri).parent / "cuda")
    name = run_id(identity(config, here.dataset, here.image_ids, here.classifier_digests))
    record = here.model_copy(update={"run_id": name, "config": config, "hardware": "some GPU"})
    place.put(RUN_KEY, record.model_dump_json().encode())
    for unit in plan_units(record):
        place.put(unit.key, encode_part(counted(here, unit), name, unit.key))
    return place


def counted(record: RunRecord, unit: Any) -> list[CountsRow]:
    return list(UnitRunner(record, unit.sub_image).count(unit))


def resolved(place: Path, sigma: float) -> RunConfig:
    data = run_data(place, images=6)
    data["classifiers"] = [{**classifier, "sigma": sigma} for classifier in data["classifiers"]]
    return parse_config(data)


def test_a_run_on_a_gpu_is_verified_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    store = cuda_run(resolved(tmp_path / "run", 0.25))
    report = drs_ray.verify(store.uri, 99, images=99)
    report.check()
    assert report.device == "cpu"
    assert report.inexact == "the run is for cuda, this is cpu"
    assert not drs_ray.verify(str(tmp_path / "run"), 99, images=99).inexact
    done = command(["verify", store.uri, "--device", "cpu", "--units", "2"])
    assert done.returncode == 0, done.stderr
    assert "by a homogeneity test of level 0.001" in done.stdout
    assert "vote shares that differ by" in done.stdout
    assert "verify: votes are compared by a homogeneity test, not exactly: the run is for cuda" in done.stderr


def test_votes_under_other_noise_are_found_on_another_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    store = cuda_run(resolved(tmp_path / "run", 0.25), resolved(tmp_path / "run", 0.5))
    report = drs_ray.verify(store.uri, 99, images=99)
    assert len(report.differences) > len(report.checked)


@pytest.fixture(scope="module")
def with_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose checkpoints have moved since."""
    place = tmp_path_factory.mktemp("checkpoints")
    data = run_data(place / "run", images=3)
    data["classifiers"] = [
        {"architecture": "digits-cnn", "checkpoint": checkpoint(place / f"{k}.safetensors", k, k), "sigma": 0.5}
        for k in (0, 1)
    ]
    drs_ray.certify(parse_config(data))
    (place / "1.safetensors").rename(place / "moved.safetensors")
    return place


def test_a_moved_checkpoint_is_named(with_checkpoints: Path) -> None:
    run = str(with_checkpoints / "run")
    with pytest.raises(ClassifierError, match=r"1\.safetensors: not found"):
        drs_ray.verify(run)
    moved = f"classifiers.1.checkpoint={with_checkpoints}/moved.safetensors"
    drs_ray.verify(run, overrides=[moved]).check()
    assert command(["verify", run, "--set", moved, "--quiet"]).returncode == 0


def test_another_classifier_is_refused(with_checkpoints: Path, tmp_path: Path) -> None:
    other = checkpoint(tmp_path / "other.safetensors", 1, 5)
    with pytest.raises(ClassifierError, match="sub-image 1: this worker loaded weights"):
        drs_ray.verify(str(with_checkpoints / "run"), overrides=[f"classifiers.1.checkpoint={other}"])


@pytest.mark.s3
def test_a_run_on_s3_is_verified(moto_endpoint: str, tmp_path: Path) -> None:
    import boto3

    boto3.client("s3", endpoint_url=moto_endpoint, region_name="us-east-1").create_bucket(Bucket="audited")
    data = run_data("s3://audited/run", images=3)
    data["output"] = {"uri": "s3://audited/run", "endpoint_url": moto_endpoint}
    drs_ray.certify(parse_config(data))
    before = [item.key for item in open_store("s3://audited/run", moto_endpoint).list()]
    drs_ray.verify("s3://audited/run", 2, endpoint_url=moto_endpoint).check()
    assert [item.key for item in open_store("s3://audited/run", moto_endpoint).list()] == before
    assert any(key.startswith(COUNTS_PREFIX) for key in before)
