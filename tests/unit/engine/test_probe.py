"""Which workers measure what, and what becomes of the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from drs_ray.config import EngineConfig, parse_config
from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine import inline_executor
from drs_ray.engine.description import describe_run, resolve
from drs_ray.engine.inline_executor import InlineExecutor
from drs_ray.engine.observer import Observer
from drs_ray.engine.opening import open_executor
from drs_ray.engine.outcome import Measured
from drs_ray.engine.probe import PROBE_WORKERS, Speed, measure, slowest, workers_of
from tests.support.runs import BATCH, run_config, run_data
from tests.unit.engine.factories import FakeExecutor, Recorder, measured, open_record, unlike


@pytest.mark.parametrize(("room", "units"), [(1, 1), (3, 3), (100, PROBE_WORKERS)])
def test_classifiers_that_do_the_same_work_are_measured_once_by_several_workers(room: int, units: int) -> None:
    executor = FakeExecutor(room)
    speeds = measure(open_record(), executor, Recorder())
    assert [unit.sub_image for unit in executor.units] == [0] * units
    assert len({unit.positions for unit in executor.units}) == units  # an image each
    assert len({unit.key for unit in executor.units}) == units
    assert speeds == {0: Speed(1000.0, 1000.0, 1000.0), 1: Speed(1000.0, 1000.0, 1000.0)}


def test_classifiers_that_do_other_work_share_the_workers() -> None:
    executor = FakeExecutor(100)
    assert set(measure(unlike(open_record()), executor, Recorder())) == {0, 1}
    assert sorted(unit.sub_image for unit in executor.units) == [0, 0, 1, 1]


def test_an_ensemble_is_other_work_than_one_network() -> None:
    record = open_record()
    first, second = record.config.classifiers
    ensemble = first.model_copy(update={"checkpoint": "a.pt", "members": ("b.pt", "c.pt")})
    config = record.config.model_copy(update={"classifiers": (ensemble, second)})
    executor = FakeExecutor(100)
    measure(record.model_copy(update={"config": config}), executor, Recorder())
    assert {unit.sub_image for unit in executor.units} == {0, 1}


def test_sub_images_of_other_shapes_are_other_work(tmp_path: Path) -> None:
    """Of three interleaved columns on 28 pixels, one has a column more."""
    data = run_data(tmp_path, images=3)
    data |= {"partition": {"name": "interleave", "interleave": [1, 3]}, "classifiers": [data["classifiers"][0]] * 3}
    with open_executor(EngineConfig(address="inline")) as executor:
        record = describe_run(resolve(parse_config(data), executor), Observer())
    executor = FakeExecutor(100)
    assert set(measure(record, executor, Recorder())) == {0, 1, 2}
    assert {unit.sub_image for unit in executor.units} == {0, 1}


def test_a_run_of_one_image_is_measured_on_it() -> None:
    executor = FakeExecutor()
    measure(open_record(1), executor, Recorder())
    assert {unit.positions for unit in executor.units} == {(0,)}


def test_a_sub_image_that_fails_is_left_out_and_named() -> None:
    recorder = Recorder()
    executor = FakeExecutor(rate=lambda unit, record: None if unit.sub_image else 1000.0)
    assert set(measure(unlike(open_record()), executor, recorder)) == {0}
    (event,) = recorder.events
    assert event.startswith("warning: sub-image 1 could not be measured")


# how many


def test_the_workers_of_a_run_are_those_asked_for_or_those_with_room() -> None:
    assert workers_of(EngineConfig(workers=7), FakeExecutor(room=2)) == 7
    assert workers_of(EngineConfig(), FakeExecutor(room=2)) == 2


def test_several_workers_together() -> None:
    speed = Speed.of([measured(100.0, 1.0), measured(300.0, 2.0), measured(500.0, 6.0)])
    assert speed == Speed(mean=300.0, least=100.0, most=500.0, classes=3.0)
    assert slowest({0: speed, 1: Speed(200.0, 1.0, 900.0)}) == 200.0
    assert slowest({}) is None


# in this process


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inline_executor, "PROBE_SECONDS", 0.01)


def described(place: Path, factory: str = "prototypes", **arguments: Any) -> RunRecord:
    with open_executor(EngineConfig(address="inline")) as executor:
        return describe_run(resolve(run_config(place, images=3, factory=factory, **arguments), executor), Observer())


@pytest.mark.usefixtures("brief")
def test_real_classifiers_in_this_process(tmp_path: Path) -> None:
    record = described(tmp_path / "run")
    threads = torch.get_num_threads()
    units: list[Unit] = []

    class Here(InlineExecutor):
        def room(self, engine: EngineConfig) -> int:
            return 2

        def measure(
            self, wanted: Sequence[Unit], record: RunRecord, observer: Observer
        ) -> Mapping[int, Sequence[Measured]]:
            units.extend(wanted)
            return super().measure(wanted, record, observer)

    speeds = measure(record, Here(), Recorder())
    assert set(speeds) == {0, 1}
    assert all(0 < speed.least <= speed.mean <= speed.most for speed in speeds.values())
    assert all(1 <= speed.classes <= record.dataset.num_classes for speed in speeds.values())
    assert len(units) == 2
    assert torch.get_num_threads() == threads
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("brief")
def test_a_classifier_that_fails_in_this_process_is_no_measurement(tmp_path: Path) -> None:
    record = described(tmp_path / "run", "raises_under_load", trigger=BATCH)
    recorder = Recorder()

    assert measure(record, InlineExecutor(), recorder) == {}
    assert recorder.events[0].startswith("warning: sub-image 0 could not be measured")
