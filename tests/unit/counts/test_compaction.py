"""Compacting: what is merged is what was there, whoever dies, whoever else is at work, and whatever is damaged."""

from __future__ import annotations

import io

import pyarrow.parquet as pq
import pytest

from drs_ray.counts import compaction
from drs_ray.counts.compaction import Compaction, compact_run
from drs_ray.counts.history import read_counts
from drs_ray.counts.plan import stage_units
from drs_ray.counts.rows import UnsoundError
from drs_ray.counts.schema import COUNTS, metadata
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.errors import CountsError
from tests.unit.counts.factories import MemoryStore
from tests.unit.counts.scale import (
    ADAPTIVE,
    FIXED,
    Killed,
    SteppedStore,
    copy_of,
    dies_after,
    operations_of,
    own,
    rows_in,
    small_keys,
    stored,
)
from tests.unit.engine.factories import part_of


@pytest.fixture(autouse=True)
def two_units_an_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "UNITS_PER_OBJECT", 2)


def objects_of(store: MemoryStore) -> list[str]:
    return sorted(key for key in store.objects if key.startswith("counts/compacted-"))


@pytest.mark.parametrize("record", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_all_small_parts_become_few_objects_with_the_same_rows(record) -> None:
    store = stored(record)
    keys, rows, votes = small_keys(store), rows_in(store, record), read_counts(store, record)
    done = compact_run(store, record)
    assert (done.units, done.deleted, done.unsound) == (len(keys), len(keys), {})
    assert sorted(done.objects) == objects_of(store)
    assert len(store.objects) == -(-len(keys) // 2)
    assert rows_in(store, record) == rows
    again = read_counts(store, record)
    for cut in votes.cuts:
        for k in range(2):
            assert (votes.at(cut).estimation[k] != again.at(cut).estimation[k]).nnz == 0
    assert compact_run(store, record) == Compaction()  # nothing is left to do


def test_other_readers_see_one_plain_counts_table() -> None:
    store = stored(FIXED)
    rows = rows_in(store, FIXED)
    compact_run(store, FIXED)
    tables = [pq.ParquetFile(io.BytesIO(store.objects[key])).read() for key in objects_of(store)]
    assert sum(len(table) for table in tables) == len(rows)
    assert all(table.schema.equals(COUNTS) for table in tables)
    assert all(metadata(table.schema)["run_id"] == FIXED.run_id for table in tables)


def test_the_same_parts_make_the_same_objects() -> None:
    first, second = stored(FIXED), stored(FIXED)
    compact_run(first, FIXED)
    compact_run(second, FIXED)
    assert first.objects == second.objects


def test_objects_are_bounded_in_units_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "UNITS_PER_OBJECT", 4096)
    store = stored(FIXED)
    size, units = len(store.objects[small_keys(store)[0]]), len(small_keys(store))
    whole = copy_of(store)
    compact_run(whole, FIXED)
    assert len(objects_of(whole)) == 1
    monkeypatch.setattr(compaction, "BYTES_PER_OBJECT", size + 1)
    compact_run(store, FIXED)
    assert len(objects_of(store)) == units


@pytest.mark.parametrize("record", [FIXED, ADAPTIVE], ids=["fixed", "adaptive"])
def test_killed_at_any_operation_it_loses_nothing_and_is_run_again(record) -> None:
    before = stored(record)
    rows, undisturbed = rows_in(before, record), copy_of(before)
    operations = operations_of(undisturbed, lambda store: compact_run(store, record))
    assert operations > len(before.objects)
    for left in range(operations):
        store = copy_of(before)
        with pytest.raises(Killed):
            compact_run(dies_after(store, left), record)
        assert rows_in(store, record) == rows, left
        assert compact_run(store, record).unsound == {}
        assert small_keys(store) == []
        assert rows_in(store, record) == rows, left


def test_two_compactors_at_once() -> None:
    before = stored(FIXED)
    rows = rows_in(before, FIXED)
    for at in range(operations_of(copy_of(before), lambda store: compact_run(store, FIXED))):
        store, step = copy_of(before), 0

        def other(store: MemoryStore = store, at: int = at) -> None:
            nonlocal step
            step += 1
            if step == at + 1:
                compact_run(store, FIXED)

        done = compact_run(SteppedStore(store.objects, other), FIXED)
        assert done.unsound == {}
        assert rows_in(store, FIXED) == rows, at
        assert small_keys(store) == []


def test_a_run_that_goes_on_meanwhile() -> None:
    """Compacted after every few units, in the middle of stages, a run ends with the rows that it would have had."""
    store, expected = MemoryStore(), stored(ADAPTIVE)
    remaining = RemainingUnits(ADAPTIVE, store)
    while todo := remaining.missing():
        for unit in todo[:3]:
            store.put(unit.key, part_of(ADAPTIVE, unit, own))
        compact_run(store, ADAPTIVE)
        remaining = RemainingUnits(ADAPTIVE, store)  # a driver that resumes
    assert small_keys(store) == []
    assert rows_in(store, ADAPTIVE) == rows_in(expected, ADAPTIVE)


def test_a_part_that_is_written_once_more_is_ignored_and_then_deleted() -> None:
    store = stored(FIXED)
    parts, rows = dict(store.objects), rows_in(store, FIXED)
    compact_run(store, FIXED)
    before = dict(store.objects)
    store.objects |= dict(list(parts.items())[:3])
    assert rows_in(store, FIXED) == rows
    done = compact_run(store, FIXED)
    assert (done.units, done.deleted) == (0, 3)
    assert store.objects == before


def test_damaged_parts_are_left_alone_and_named_and_all_others_are_merged() -> None:
    store = stored(FIXED)
    truncated, foreign, *others = small_keys(store)
    store.objects[truncated] = store.objects[truncated][:-9]
    store.objects[foreign] = store.objects[others[0]]
    store.put("counts/k0/what.parquet", b"")
    done = compact_run(store, FIXED)
    assert small_keys(store) == sorted([truncated, foreign, "counts/k0/what.parquet"])
    assert done.units == len(others)
    assert done.unsound[truncated] == "truncated, damaged or not Parquet"
    assert done.unsound[foreign] == f"unit is {others[0]}, expected {foreign}"
    assert done.unsound["counts/k0/what.parquet"] == "no unit of this run has this key"
    with pytest.raises(CountsError, match=r"runs/x: 3 objects .* left alone, first .*; .* `drs-ray repair runs/x`"):
        done.check("runs/x")


def test_a_leftover_with_other_votes_is_not_deleted() -> None:
    store = stored(FIXED)
    compact_run(store, FIXED)
    unit = stage_units(FIXED, (0, 2), 0, [0, 1, 2])[0]
    store.put(unit.key, part_of(FIXED, unit, lambda image_id: 0.123))
    done = compact_run(store, FIXED)
    assert list(done.unsound) == [unit.key]
    assert done.unsound[unit.key].startswith("differs from the same unit in counts/compacted-")
    assert small_keys(store) == [unit.key]


def test_nothing_is_deleted_on_the_word_of_a_damaged_object() -> None:
    store = stored(FIXED)
    parts, rows = dict(store.objects), rows_in(store, FIXED)
    compact_run(store, FIXED)
    damaged = objects_of(store)[0]
    store.objects[damaged] = store.objects[damaged][:-1]
    with pytest.raises(CountsError, match=r"its bytes are not those .* `drs-ray repair RUN`"):
        rows_in(store, FIXED)
    assert list(compact_run(store, FIXED).unsound) == [damaged]
    store.objects |= parts
    compact_run(store, FIXED)  # writes it again
    assert small_keys(store) == []
    assert rows_in(store, FIXED) == rows


def test_what_is_read_back_otherwise_than_written_costs_no_part() -> None:
    store = stored(FIXED)
    keys = small_keys(store)

    class Careless(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            super().put(key, data[:-1] + b"?")

    careless = Careless()
    careless.objects = store.objects
    with pytest.raises(UnsoundError, match="its bytes are not those that it is named after"):
        compact_run(careless, FIXED)
    assert small_keys(store) == keys
