"""When a run is measured, which workers measure what, and what becomes of the measurements."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from drs_ray.config import EngineConfig, parse_config
from drs_ray.engine import probe
from drs_ray.engine.certify import describe_run, open_session, resolve
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Measured
from drs_ray.engine.plan import Unit
from drs_ray.engine.probe import Measurements, Speed, measure, measure_inline, slowest, with_sizes, workers_of
from drs_ray.engine.sizing import sized
from drs_ray.results.run_record import RunRecord
from tests.support.runs import BATCH, run_config, run_data
from tests.unit.engine.factories import Recorder, record_of


def measured(rate: float, classes: float = 1.0) -> Measured:
    return Measured(2.0, 0.0, samples=round(2 * rate), classes=classes)


class FakeProber:
    """A cluster with so much room, whose workers draw `rate(unit)` samples per second, or fail where that is None."""

    def __init__(self, room: int = 4, rate: Callable[[Unit], float | None] = lambda unit: 1000.0) -> None:
        self._room, self._rate = room, rate
        self.units: list[Unit] = []
        self.asked_for_room = False

    def room(self, engine: EngineConfig) -> int:
        self.asked_for_room = True
        return self._room

    def measure(self, units: list[Unit], record: RunRecord, observer: Observer) -> Measurements:
        self.units += units
        found: dict[int, list[Measured]] = {}
        for unit in units:
            rate = self._rate(unit)
            if rate is not None:
                found.setdefault(unit.sub_image, []).append(measured(rate))
        return found


def open_record(images: int = 12, **options: Any) -> RunRecord:
    return record_of(images, images_per_unit=None, **options)


def unlike(record: RunRecord) -> RunRecord:
    """The sub-images' classifiers do not do the same work any more."""
    first, second = record.config.classifiers
    other = second.model_copy(update={"arguments": {"width": 64}})
    return record.model_copy(update={"config": record.config.model_copy(update={"classifiers": (first, other)})})


LARGE = 100_000
"""Estimation samples with which twelve images are worth measuring."""


# when


def test_sizes_of_the_config_need_no_cluster() -> None:
    prober, record = FakeProber(), record_of(estimation=LARGE)
    assert with_sizes(record, False, prober, Recorder()) is record
    assert not prober.asked_for_room
    assert not prober.units


def test_a_run_that_has_started_is_not_measured() -> None:
    prober = FakeProber()
    record = with_sizes(open_record(estimation=LARGE), True, prober, Recorder())
    assert record.images_per_unit >= 1  # the stored ones will rule
    assert not prober.asked_for_room
    assert not prober.units


def test_a_small_run_is_not_measured() -> None:
    prober, record = FakeProber(room=2), open_record()
    assert with_sizes(record, False, prober, Recorder()) == sized(record, 2, None)
    assert not prober.units


def test_the_slowest_sub_image_sets_the_size() -> None:
    rates = {0: 20_000.0, 1: 5000.0}
    prober = FakeProber(room=2, rate=lambda unit: rates[unit.sub_image])
    record = unlike(open_record(1000, estimation=LARGE))
    chosen = with_sizes(record, False, prober, Recorder())
    assert chosen == sized(record, 2, 5000.0) != sized(record, 2, 20_000.0)
    assert chosen.images_per_unit == 1  # 150,000 samples in 30 s, 100,050 of an image


def test_a_run_whose_classifiers_fail_is_sized_without() -> None:
    prober, record = FakeProber(rate=lambda unit: None), open_record(estimation=LARGE)
    recorder = Recorder()
    assert with_sizes(record, False, prober, recorder) == sized(record, 4, None)
    assert recorder.events == ["warning: sub-image 0 could not be measured: its classifier failed, or its workers died"]


# what


@pytest.mark.parametrize(("room", "units"), [(1, 1), (3, 3), (100, probe.PROBE_WORKERS)])
def test_classifiers_that_do_the_same_work_are_measured_once_by_several_workers(room: int, units: int) -> None:
    prober = FakeProber(room)
    speeds = measure(open_record(), prober, Recorder())
    assert [unit.sub_image for unit in prober.units] == [0] * units
    assert len({unit.positions for unit in prober.units}) == units  # an image each
    assert len({unit.key for unit in prober.units}) == units
    assert speeds == {0: Speed(1000.0, 1000.0, 1000.0), 1: Speed(1000.0, 1000.0, 1000.0)}


def test_classifiers_that_do_other_work_share_the_workers() -> None:
    prober = FakeProber(100)
    assert set(measure(unlike(open_record()), prober, Recorder())) == {0, 1}
    assert sorted(unit.sub_image for unit in prober.units) == [0, 0, 1, 1]


def test_sub_images_of_other_shapes_are_other_work(tmp_path: Path) -> None:
    """Of three interleaved columns on 28 pixels, one has a column more."""
    data = run_data(tmp_path, images=3)
    data |= {"partition": {"name": "interleave", "interleave": [1, 3]}, "classifiers": [data["classifiers"][0]] * 3}
    with open_session(EngineConfig(address="inline")) as session:
        record = describe_run(resolve(parse_config(data), session), Observer())
    prober = FakeProber(100)
    assert set(measure(record, prober, Recorder())) == {0, 1, 2}
    assert {unit.sub_image for unit in prober.units} == {0, 1}


def test_a_run_of_one_image_is_measured_on_it() -> None:
    prober = FakeProber()
    measure(open_record(1), prober, Recorder())
    assert {unit.positions for unit in prober.units} == {(0,)}


def test_a_sub_image_that_fails_is_left_out_and_named() -> None:
    recorder = Recorder()
    prober = FakeProber(rate=lambda unit: None if unit.sub_image else 1000.0)
    assert set(measure(unlike(open_record()), prober, recorder)) == {0}
    (event,) = recorder.events
    assert event.startswith("warning: sub-image 1 could not be measured")


# how many


def test_the_workers_of_a_run_are_those_asked_for_or_those_with_room() -> None:
    assert workers_of(EngineConfig(workers=7), FakeProber(room=2)) == 7
    assert workers_of(EngineConfig(), FakeProber(room=2)) == 2


def test_several_workers_together() -> None:
    speed = Speed.of([measured(100.0, 1.0), measured(300.0, 2.0), measured(500.0, 6.0)])
    assert speed == Speed(mean=300.0, least=100.0, most=500.0, classes=3.0)
    assert slowest({0: speed, 1: Speed(200.0, 1.0, 900.0)}) == 200.0
    assert slowest({}) is None


# in this process


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.01)


def described(place: Path, factory: str = "prototypes", **arguments: Any) -> RunRecord:
    with open_session(EngineConfig(address="inline")) as session:
        return describe_run(resolve(run_config(place, images=3, factory=factory, **arguments), session), Observer())


@pytest.mark.usefixtures("brief")
def test_real_classifiers_in_this_process(tmp_path: Path) -> None:
    record = described(tmp_path / "run")
    threads = torch.get_num_threads()
    units: list[Unit] = []

    class Here(FakeProber):
        def measure(self, wanted: list[Unit], record: RunRecord, observer: Observer) -> Measurements:
            units.extend(wanted)
            return measure_inline(wanted, record)

    speeds = measure(record, Here(room=2), Recorder())
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

    class Here(FakeProber):
        def measure(self, wanted: list[Unit], record: RunRecord, observer: Observer) -> Measurements:
            return measure_inline(wanted, record)

    assert measure(record, Here(), recorder) == {}
    assert recorder.events[0].startswith("warning: sub-image 0 could not be measured")
