"""Where a run stands: what is stored against what is planned, and how fast parts come in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import pytest

from drs_ray.engine.plan import plan_units, stage_units
from drs_ray.engine.status import RATE_WINDOW_SECONDS, run_status
from drs_ray.errors import CountsError
from drs_ray.results.run_record import RunRecord
from drs_ray.results.schema import CERTIFICATES_KEY, RUN_KEY
from drs_ray.results.store import StoredObject
from tests.unit.engine.factories import part_of, record_of
from tests.unit.results.factories import MemoryStore

NOW = 1_000_000.0
PER_UNIT = 3 * (50 + 400)


class DatedStore(MemoryStore):
    """Objects have the time they were written at."""

    def __init__(self, record: RunRecord) -> None:
        super().__init__()
        self.modified: dict[str, float] = {}
        self.put(RUN_KEY, record.model_dump_json().encode())

    def list(self, prefix: str = "") -> Iterator[StoredObject]:
        for item in super().list(prefix):
            yield item._replace(modified=self.modified.get(item.key, NOW))


@pytest.fixture(autouse=True)
def frozen_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW)


def store_of(record: RunRecord, ages: Sequence[float]) -> DatedStore:
    """The first units of a run are stored, so many seconds ago."""
    store = DatedStore(record)
    for unit, age in zip(plan_units(record), ages, strict=False):
        store.put(unit.key, part_of(record, unit, lambda image_id: 0.6))
        store.modified[unit.key] = NOW - age
    return store


def test_a_run_that_has_not_begun() -> None:
    status = run_status(store_of(record_of(), []))
    assert (status.units, status.units_done, status.samples, status.samples_done) == (8, 0, 8 * PER_UNIT, 0)
    assert (status.samples_per_second, status.seconds_left) == (None, None)
    assert not status.reduced


def test_the_rate_is_that_between_the_first_and_the_last_part() -> None:
    status = run_status(store_of(record_of(), [100, 60, 0]))
    assert status.units_done == 3
    assert status.samples_per_second == 2 * PER_UNIT / 100  # the first part only starts the clock
    assert status.seconds_left == pytest.approx(5 * 50)


def test_old_parts_say_nothing_of_the_present_rate() -> None:
    old = RATE_WINDOW_SECONDS + 1
    status = run_status(store_of(record_of(), [5000, old, 400, 200]))
    assert status.samples_per_second == PER_UNIT / 200
    assert run_status(store_of(record_of(), [5000, old, 3])).samples_per_second is None


@pytest.mark.parametrize("ages", [[0], [7, 7, 7], [9000, 8000]])
def test_without_two_recent_moments_there_is_no_rate(ages: list[float]) -> None:
    status = run_status(store_of(record_of(), ages))
    assert status.samples_per_second is None
    assert status.seconds_left is None


def test_a_finished_run_has_nothing_left() -> None:
    store = store_of(record_of(), [9000] * 8)
    store.put(CERTIFICATES_KEY, b"")
    status = run_status(store)
    assert (status.units_done, status.seconds_left, status.reduced) == (8, 0.0, True)
    assert status.unknown_parts == ()


def test_parts_that_nobody_planned_are_named() -> None:
    store = store_of(record_of(), [10])
    store.put("counts/k0/s0/copy-of-a-part.parquet", b"?")
    store.put("counts/a.txt", b"?")
    status = run_status(store)
    assert status.units_done == 1
    assert status.unknown_parts == ("counts/a.txt", "counts/k0/s0/copy-of-a-part.parquet")


def test_adaptive_stages_count_what_is_known_to_be_needed() -> None:
    record = record_of(stages=3)
    first = run_status(store_of(record, [0]))
    assert (first.units, first.units_done) == (8, 1)
    both = run_status(store_of(record, [20, 0]))
    further = stage_units(record, (0, 2), 1, [0, 1, 2])
    assert (both.units, both.units_done) == (8 + len(further), 2)
    assert both.samples - first.samples == sum(unit.samples for unit in further)


def test_without_a_run_there_is_no_status() -> None:
    with pytest.raises(CountsError, match="no drs-ray run here"):
        run_status(MemoryStore())
