"""Where a run stands: what is stored against what is planned, and how fast parts come in."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from drs_ray.counts.encoding import decode_parts
from drs_ray.counts.merged_parts import encode_compacted
from drs_ray.counts.plan import plan_units, stage_units
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.schema import CERTIFICATES_KEY, RUN_KEY
from drs_ray.counts.sessions import SESSIONS_PREFIX
from drs_ray.engine.status import RunStatus, run_status
from drs_ray.errors import CountsError
from drs_ray.storage import StoredObject
from tests.unit.counts.factories import CLASSES, MemoryStore
from tests.unit.engine.factories import part_of, record_of

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


def note(store: DatedStore, age: float, seconds: float | None = None, **summary: Any) -> None:
    """A session began so many seconds ago and has not ended, or ended so many seconds ago after `seconds`."""
    key = f"{SESSIONS_PREFIX}{len(store.objects):03d}.json"
    content = {"started": "2026-01-01T00:00:00+00:00"} | ({} if seconds is None else {"seconds": seconds}) | summary
    store.put(key, json.dumps(content).encode())
    store.modified[key] = NOW - age


def status_of(ages: Sequence[float], begun: float | None = None, ended: float | None = None) -> RunStatus:
    """Parts so old; a session that began, or ended, so long ago."""
    store = store_of(record_of(), ages)
    if ended is not None:
        note(store, ended, seconds=1.0)
    if begun is not None:
        note(store, begun)
    return run_status(store)


def test_a_run_that_has_not_begun() -> None:
    status = run_status(store_of(record_of(), []))
    assert (status.units, status.units_done, status.samples, status.samples_done) == (8, 0, 8 * PER_UNIT, 0)
    assert (status.driver, status.samples_per_second, status.seconds_left) == ("none", None, None)
    assert (status.sessions, status.session_seconds, status.set_aside) == (0, 0.0, {})
    assert not status.reduced


def test_speed_and_time_left_while_a_driver_is_at_work() -> None:
    status = status_of([80, 40, 0], begun=120)
    assert (status.units_done, status.driver) == (3, "at work")
    assert status.samples_per_second == pytest.approx(PER_UNIT / 40)
    assert status.seconds_left == pytest.approx(5 * 40)


def test_parts_of_an_earlier_session_say_nothing_of_the_present_speed() -> None:
    status = status_of([205, 204, 203, 0], begun=100, ended=200)
    assert status.samples_per_second == pytest.approx(PER_UNIT / 100)


@pytest.mark.parametrize(
    ("ages", "begun", "ended", "driver"),
    [
        ([], 30, None, "at work"),  # its first unit may take its time
        ([], 599, None, "at work"),
        ([], 601, None, "silent"),
        ([50], 70, None, "at work"),
        ([200, 190, 61], 210, None, "at work"),  # pauses of up to 129 s were seen
        ([800, 750, 700], 850, None, "silent"),
        ([4000, 2500, 1100], 5000, None, "at work"),  # its units take 25 minutes
        ([20, 10], 30, 9, "ended"),
        ([20, 10], None, 9, "ended"),
        ([500, 10], 30, 400, "at work"),  # resumed
        ([20, 5], 100, 9, "at work"),  # two drivers, one has ended
        ([9000, 20], 10000, 9, "ended"),  # one was killed, the next one has ended
    ],
)
def test_whether_a_driver_is_at_work(ages: list[float], begun: float | None, ended: float | None, driver: str) -> None:
    status = status_of(ages, begun, ended)
    assert status.driver == driver
    assert (status.samples_per_second is not None) == (driver == "at work" and bool(ages))


def test_compacting_is_not_progress() -> None:
    record = record_of()
    store = store_of(record, [300, 200, 8, 4])
    note(store, 400)
    before = run_status(store).samples_per_second
    assert before == pytest.approx(PER_UNIT / 100, rel=0.2)
    units = plan_units(record)
    small = [(unit.key, store.objects.pop(unit.key)) for unit in units[:2]]
    merged, data = encode_compacted(decode_parts(small, record.run_id, CLASSES), record.run_id)
    store.put(merged, data)
    store.modified[merged] = NOW - 20
    status = run_status(store)
    assert (status.units_done, status.driver, status.seconds_since_part) == (4, "at work", 4.0)
    assert status.samples_per_second == pytest.approx(2 * PER_UNIT / 16)


def test_what_sessions_say() -> None:
    record = record_of()
    store = store_of(record, [50, 40])
    stored, first, second = (unit.key for unit in plan_units(record)[1:4])
    note(store, 200, 60.5, set_aside={stored: "NaN", first: "NaN"}, units_set_aside=2)
    note(store, 100, 30.0, set_aside={first: "killed", second: "NaN"}, units_set_aside=5)
    status = run_status(store)
    assert (status.sessions, status.session_seconds) == (2, 90.5)
    assert status.set_aside == {first: "killed", second: "NaN"}  # the last word; what is stored is no more aside
    assert status.set_aside_unnamed == 3


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
