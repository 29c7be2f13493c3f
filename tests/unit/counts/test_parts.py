"""Readers beside compactors, step by step: every row once, whatever happens between any two of a reader's requests."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drs_ray.counts import compaction
from drs_ray.counts.compaction import compact_run
from drs_ray.counts.parts import Parts, has_parts, list_parts, read_units
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.errors import CountsError
from tests.unit.counts.factories import MemoryStore
from tests.unit.counts.scale import (
    ADAPTIVE,
    FIXED,
    Change,
    Log,
    copy_of,
    meanwhile,
    operations_of,
    rows_in,
    small_keys,
    stored,
)


def changes_of(record: RunRecord, before: MemoryStore) -> list[Change]:
    """A compactor, a worker that writes two parts once more, and a second compactor."""
    log = Log(before)
    compact_run(log, record)
    for key in small_keys(before)[1:3]:
        log.put(key, before.get(key))
    compact_run(log, record)
    assert small_keys(log) == []
    return log.changes


@pytest.fixture(scope="module", autouse=True)
def two_units_an_object():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "UNITS_PER_OBJECT", 2)
        yield


@pytest.fixture(scope="module", params=[FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def case(request) -> tuple[RunRecord, MemoryStore, list[Change], list[str]]:
    record = request.param
    before = stored(record)
    return record, before, changes_of(record, before), rows_in(before, record)


def test_there_is_something_to_interleave(case) -> None:
    _, before, changes, rows = case
    assert len(changes) >= len(small_keys(before)) * 1.5 + 4  # objects, deletions, the worker's two, and their deletion
    assert len(set(rows)) == len(rows) > 20


def test_every_state_that_a_compactor_leaves_has_all_rows(case) -> None:
    record, before, changes, rows = case
    for made in range(len(changes) + 1):
        assert rows_in(meanwhile(before, changes, lambda step, made=made: made), record) == rows


def test_any_jump_of_the_compactor_between_any_two_requests(case) -> None:
    record, before, changes, rows = case
    requests = operations_of(copy_of(before), lambda store: rows_in(store, record))
    for at in range(requests + 1):
        for first in range(0, len(changes), 3):
            for last in (first + 1, first + 4, len(changes)):
                store = meanwhile(before, changes, lambda step, a=at, f=first, n=last: n if step >= a else f)
                assert rows_in(store, record) == rows, (at, first, last)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 7]), max_size=60))
def test_any_interleaving(case, pace: list[int]) -> None:
    record, before, changes, rows = case
    assert rows_in(meanwhile(before, changes, lambda step: sum(pace[: step + 1])), record) == rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0, 0, 0, 0, 1, 1, 2, 3, 7]), max_size=60))
def test_a_driver_that_resumes_meanwhile_decides_the_same(pace: list[int]) -> None:
    before = stored(ADAPTIVE)
    for key in [key for key in before.objects if "/s2/" in key][1:] + [
        key for key in before.objects if "i00000003" in key
    ][:1]:
        del before.objects[key]
    undisturbed = RemainingUnits(ADAPTIVE, before)
    todo = undisturbed.missing()
    changes = changes_of(ADAPTIVE, before)
    remaining = RemainingUnits(ADAPTIVE, meanwhile(before, changes, lambda step: sum(pace[: step + 1])))
    assert remaining.missing() == todo
    assert remaining.stored == undisturbed.stored


def test_the_order_of_the_listings_is_what_keeps_rows_from_being_missed(case, monkeypatch) -> None:
    """The wrong order is tried, to see that these tests would notice."""
    record, before, changes, rows = case
    lost = 0
    for at in range(40):
        store = meanwhile(before, changes, lambda step, at=at: len(changes) if step >= at else 0)
        listed = {prefix: list(store.list(prefix)) for prefix in ("counts/compacted-", "counts/")}
        monkeypatch.setattr(store, "list", lambda prefix, listed=listed: iter(listed.get(prefix, [])))
        try:
            lost += rows_in(store, record) != rows
        except CountsError:
            lost += 1
    assert lost


def test_a_part_that_is_removed_for_good_is_told() -> None:
    store = stored(FIXED)
    parts = list_parts(store, FIXED)
    gone = small_keys(store)[2]
    store.delete(gone)
    with pytest.raises(CountsError, match=f"{gone}: was removed while the run was read"):
        list(read_units(store, FIXED, parts))


def test_a_unit_in_two_compacted_objects_is_read_once_and_must_be_the_same() -> None:
    store = stored(FIXED)
    rows, other = rows_in(store, FIXED), copy_of(store)
    compact_run(store, FIXED)
    del other.objects[small_keys(other)[0]]  # other groups of two
    compact_run(other, FIXED)
    store.objects |= other.objects
    parts = list_parts(store, FIXED)
    assert sum(len(entries) for entries in parts.compacted.values()) > len(parts)
    assert rows_in(store, FIXED) == rows


def test_parts_are_looked_up_by_the_keys_of_units() -> None:
    store = stored(FIXED)
    keys = small_keys(store)
    compact_run(store, FIXED)
    store.put(keys[0], b"is not read")
    parts = list_parts(store, FIXED)
    assert sorted(parts) == keys
    assert len(parts) == len(keys)
    assert all(key in parts for key in keys)
    assert "counts/k0" not in parts
    assert len(Parts({}, {}, {})) == 0


@pytest.mark.parametrize("key", ["counts/_SUCCESS", "counts/k0/s0/Thumbs.db", "counts/compacted-0.parquet.tmp"])
def test_what_cannot_be_a_part_is_ignored_before_and_after_compacting(key: str) -> None:
    store = stored(FIXED)
    rows, keys = rows_in(store, FIXED), small_keys(store)
    store.put(key, b"not a part")
    for compacted in (False, True):
        if compacted:
            assert compact_run(store, FIXED).unsound == {}
            assert [item.key for item in store.list("counts/k")] == [key] * key.startswith("counts/k")
        parts = list_parts(store, FIXED)
        assert (sorted(parts), parts.foreign) == (keys, (key,))
        assert rows_in(store, FIXED) == rows
        assert has_parts(store)
    alone = MemoryStore()
    alone.put(key, b"not a part")
    assert not has_parts(alone)


def test_what_has_the_name_of_a_part_must_be_one() -> None:
    for key in ("counts/k0/copy.parquet", "counts/compacted-copy.parquet"):
        store = stored(FIXED)
        store.put(key, b"not a part")
        with pytest.raises(CountsError, match=key):
            rows_in(store, FIXED)
