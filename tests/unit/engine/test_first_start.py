"""What a run's first start decides by measuring: sizes of units, and whether classifiers are compiled."""

from __future__ import annotations

from typing import Any

import pytest

from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord, with_engine
from drs_ray.engine.first_start import decide_first_start
from drs_ray.engine.sizing import sized
from drs_ray.errors import DeviceLostError
from drs_ray.models.inference import CannotCompileError
from tests.unit.engine.factories import FakeExecutor, Recorder, open_record, record_of, unlike

LARGE = 100_000
"""Estimation samples with which twelve images are worth measuring."""


def speeds(plain: float | None, compiled: float | None) -> Any:
    """Samples per second without and with torch.compile; None: a worker that fails while it measures."""
    return lambda unit, record: compiled if record.config.engine.compile else plain


def closed(record: RunRecord) -> RunRecord:
    return with_engine(record, compile=False)


def test_a_run_that_decides_all_itself_needs_no_cluster() -> None:
    executor, record = FakeExecutor(), record_of(estimation=LARGE, compile=False)
    assert decide_first_start(record, executor, Recorder()) == (record, None)
    assert not executor.asked_for_room
    assert not executor.units


def test_a_small_run_is_neither_measured_nor_compiled() -> None:
    executor, record = FakeExecutor(room=2), open_record()
    assert decide_first_start(record, executor, Recorder()) == (sized(closed(record), 2, None), None)
    assert not executor.units


def test_the_slowest_sub_image_sets_the_size() -> None:
    rates = {0: 20_000.0, 1: 5000.0}
    executor = FakeExecutor(room=2, rate=lambda unit, record: rates[unit.sub_image])
    record = unlike(open_record(1000, estimation=LARGE))
    chosen, found = decide_first_start(record, executor, Recorder())
    assert chosen == sized(closed(record), 2, 5000.0) != sized(closed(record), 2, 20_000.0)
    assert chosen.images_per_unit == 1  # 150,000 samples in 30 s, 100,050 of an image
    assert found is not None
    assert {sub_image: speed.mean for sub_image, speed in found.items()} == rates


def test_a_run_whose_classifiers_fail_is_sized_without() -> None:
    executor, record = FakeExecutor(rate=lambda unit, record: None), open_record(estimation=LARGE)
    recorder = Recorder()
    assert decide_first_start(record, executor, recorder) == (sized(closed(record), 4, None), {})
    assert recorder.events == ["warning: sub-image 0 could not be measured: its classifier failed, or its workers died"]


@pytest.mark.parametrize(
    ("plain", "compiled", "chosen"),
    [
        (1000.0, 2000.0, True),
        (1000.0, 1060.0, True),
        (1000.0, 1040.0, False),  # within what measurements differ by
        (1000.0, 900.0, False),
        (1000.0, None, False),
        (12_000.0, 24_000.0, False),  # 50 s on each of four workers: too short to compile for
    ],
)
def test_auto_compiles_where_that_is_faster(plain: float, compiled: float | None, chosen: bool) -> None:
    record = open_record(estimation=LARGE, precision="bfloat16")
    decided, found = decide_first_start(record, FakeExecutor(rate=speeds(plain, compiled)), Recorder())
    rate = compiled if chosen else plain
    assert decided == sized(with_engine(record, compile=chosen), 4, rate)
    assert (decided.run_id == closed(record).run_id) is not chosen  # a compiled classifier is another one
    assert found is not None
    assert {speed.mean for speed in found.values()} == {rate}


def test_an_adaptive_run_counts_a_quarter_of_its_largest_size() -> None:
    executor = FakeExecutor(rate=speeds(4000.0, 8000.0))
    fixed, adaptive = open_record(estimation=LARGE), open_record(estimation=LARGE, stages=4)
    assert decide_first_start(fixed, executor, Recorder())[0].config.engine.compile is True  # 150 s
    assert decide_first_start(adaptive, executor, Recorder())[0].config.engine.compile is False  # 37 s


def cannot(unit: Unit, record: RunRecord) -> float:
    if record.config.engine.compile:
        raise CannotCompileError("torch.compile failed (no C++ compiler)")
    return 1000.0


def test_auto_falls_back_by_name() -> None:
    record, recorder = open_record(estimation=LARGE), Recorder()
    decided, _ = decide_first_start(record, FakeExecutor(rate=cannot), recorder)
    assert decided.config.engine.compile is False
    assert recorder.events == ["warning: the run is done without torch.compile: torch.compile failed (no C++ compiler)"]


def test_a_gpu_that_is_lost_is_not_taken_for_a_failure_to_compile() -> None:
    def lost(unit: Unit, record: RunRecord) -> float:
        if record.config.engine.compile:
            raise DeviceLostError("the GPU no longer works in this process")
        return 1000.0

    with pytest.raises(DeviceLostError):
        decide_first_start(open_record(estimation=LARGE), FakeExecutor(rate=lost), Recorder())


@pytest.mark.parametrize("images_per_unit", [3, None])
def test_compiling_that_was_asked_for_is_tried_before_the_run_exists(images_per_unit: int | None) -> None:
    with pytest.raises(CannotCompileError, match="no C"):
        decide_first_start(
            record_of(images_per_unit=images_per_unit, compile=True), FakeExecutor(rate=cannot), Recorder()
        )
