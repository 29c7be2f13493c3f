"""Whole runs: the same rows from every engine, whatever the workers, the units and the order."""

from __future__ import annotations

from pathlib import Path

import pytest

from drs_ray import certify, read_certificates
from drs_ray.config import parse_config
from drs_ray.engine.observer import Observer
from drs_ray.engine.ray.worker import RemoteWorker
from drs_ray.engine.unit_runner import UnitRunner
from drs_ray.errors import ConfigError, DataError, EngineError, StoreError, UnitsSetAsideError
from tests.support.runs import BATCH, counts_digest, run_config, run_data

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:ray")


class Recorder(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.todo = -1
        self.done: list[str] = []

    def planned(self, todo, stored):
        self.todo = len(todo)

    def unit_done(self, unit, outcome):
        self.done.append(unit.key)

    def event(self, message, kind="note", **fields):
        self.events.append(message)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that all others must equal."""
    place = tmp_path_factory.mktemp("undisturbed") / "run"
    return certify(run_config(place))


def test_inline_run_certifies_and_reads_back(undisturbed):
    assert undisturbed.images == 12
    assert undisturbed.record.image_ids == tuple(range(12))
    assert undisturbed.samples == 12 * 2 * 450
    assert read_certificates(undisturbed.uri).equals(undisturbed.certificates)


@pytest.mark.parametrize("size", [1, 16])
def test_rows_do_not_depend_on_the_size_of_units(tmp_path, undisturbed, size):
    data = run_data(tmp_path / "run")
    data["engine"]["images_per_unit"] = size
    result = certify(parse_config(data))
    assert counts_digest(tmp_path / "run") == counts_digest(undisturbed.uri)
    assert result.certificates.equals(undisturbed.certificates)


def test_cutting_the_samples_of_an_image_changes_no_certificate(tmp_path, undisturbed):
    data = run_data(tmp_path / "run")
    data["engine"]["samples_per_unit"] = 100
    result = certify(parse_config(data))
    assert result.certificates.equals(undisturbed.certificates)


@pytest.mark.ray
def test_ray_gives_the_rows_of_the_inline_engine(tmp_path, undisturbed, local_ray):
    data = run_data(tmp_path / "run", address="local")
    data["engine"]["workers"] = 3
    result = certify(parse_config(data))
    assert result.record.run_id == undisturbed.record.run_id
    assert counts_digest(tmp_path / "run") == counts_digest(undisturbed.uri)
    assert result.certificates.equals(undisturbed.certificates)


@pytest.mark.ray
def test_a_single_worker_serves_both_sub_images(tmp_path, undisturbed, local_ray):
    data = run_data(tmp_path / "run", address="local")
    data["engine"]["workers"] = 1
    recorder = Recorder()
    result = certify(parse_config(data), recorder)
    assert len(recorder.done) == 8
    assert recorder.events == []
    assert counts_digest(tmp_path / "run") == counts_digest(undisturbed.uri)
    assert result.certificates.equals(undisturbed.certificates)


def test_a_finished_run_is_not_computed_again(tmp_path, undisturbed):
    certify(run_config(tmp_path / "run"))
    recorder = Recorder()
    again = certify(run_config(tmp_path / "run"), recorder)
    assert recorder.todo == 0
    assert again.certificates.equals(undisturbed.certificates)


def test_resume_computes_only_what_is_missing(tmp_path, undisturbed):
    certify(run_config(tmp_path / "run"))
    parts = sorted((tmp_path / "run" / "counts").rglob("*.parquet"))
    for part in parts[1::3]:
        part.unlink()
    recorder = Recorder()
    certify(run_config(tmp_path / "run"), recorder)
    assert len(recorder.done) == len(parts[1::3])
    assert counts_digest(tmp_path / "run") == counts_digest(undisturbed.uri)


def test_another_config_is_refused_and_nothing_is_lost(tmp_path):
    certify(run_config(tmp_path / "run", images=3))
    before = counts_digest(tmp_path / "run")
    data = run_data(tmp_path / "run", images=3)
    data["noise"]["seed"] = 5
    with pytest.raises(ConfigError, match=r"noise\.seed: 0 there, 5 here"):
        certify(parse_config(data))
    assert counts_digest(tmp_path / "run") == before


def test_another_budget_is_refused(tmp_path):
    certify(run_config(tmp_path / "run", images=3))
    data = run_data(tmp_path / "run", images=3)
    data["budget"]["estimation"] = 800
    with pytest.raises(ConfigError, match=r"budget\.estimation: .* has 400 samples, got 800; a run can only"):
        certify(parse_config(data))


def test_alpha_may_differ_on_resume(tmp_path):
    first = certify(run_config(tmp_path / "run", images=3))
    data = run_data(tmp_path / "run", images=3)
    data["certificate"] = {"alpha": 0.1}
    second = certify(parse_config(data))
    assert (first.alpha, second.alpha) == (0.001, 0.1)
    assert (second.radius >= first.radius).all()


def test_units_that_raise_are_set_aside_and_named(tmp_path):
    with pytest.raises(UnitsSetAsideError, match=r"sub-image 0: NaN or infinite logits for image 0 ") as caught:
        certify(run_config(tmp_path / "run", images=6, factory="overflows", trigger=BATCH))
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run" / "certificates.parquet").exists()


def test_a_classifier_that_raises_is_named_like_any_other_fault(tmp_path):
    with pytest.raises(UnitsSetAsideError, match=r"sub-image 0: the classifier failed on image 0 \(RuntimeError: only"):
        certify(run_config(tmp_path / "run", images=6, factory="raises_under_load", trigger=BATCH))


def test_other_data_under_the_same_name_is_refused(tmp_path):
    record = certify(run_config(tmp_path / "run", images=3)).record
    other = record.model_copy(update={"dataset": record.dataset.model_copy(update={"digest": "0" * 64})})
    with pytest.raises(DataError, match="give every node the same data"):
        UnitRunner(other, 0)


def test_a_worker_that_does_not_see_the_run_computes_nothing(tmp_path):
    record = certify(run_config(tmp_path / "run", images=3)).record
    start = RemoteWorker().start
    with pytest.raises(StoreError, match=r"a worker's node does not see the run .* use an s3:// output"):
        start(record.model_dump_json().encode(), 0, str(tmp_path / "elsewhere"), str(Path.cwd()))


def test_a_run_in_which_every_unit_raises_ends_early(tmp_path):
    data = run_data(tmp_path / "run", images=40, factory="overflows", trigger=BATCH)
    data["engine"]["images_per_unit"] = 1
    recorder = Recorder()
    with pytest.raises(EngineError, match="the last 20 units all failed"):
        certify(parse_config(data), recorder)
    assert len(recorder.events) == 20


@pytest.mark.ray
def test_what_a_local_machine_lacks_is_refused_at_once(tmp_path, local_ray):
    data = run_data(tmp_path / "run", address="local", images=3)
    data["engine"]["gpus_per_worker"] = 1
    with pytest.raises(ConfigError, match=r"engine\.gpus_per_worker: must be <= 0"):
        certify(parse_config(data))
