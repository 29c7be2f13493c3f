"""Compacted objects: units in and out, their digests, and all that makes one unsound."""

from __future__ import annotations

import pytest

from drs_ray.counts.encoding import UnitRows, decode_parts
from drs_ray.counts.merged_parts import decode_compacted, digests, encode_compacted, read_index
from drs_ray.counts.parts import list_parts
from drs_ray.counts.plan import Unit, stage_units
from drs_ray.counts.rows import UnsoundError
from drs_ray.errors import CountsError
from tests.unit.counts.factories import CLASSES
from tests.unit.counts.scale import FIXED, own, stored
from tests.unit.engine.factories import part_of

UNITS = stage_units(FIXED, (0, 2), 0, [0, 1, 2])


def units_of(units: list[Unit]) -> UnitRows:
    parts = [(unit.key, part_of(FIXED, unit, own)) for unit in units]
    return decode_parts(parts, FIXED.run_id, CLASSES)


def test_round_trip_and_choice() -> None:
    key, data = encode_compacted(units_of(UNITS), FIXED.run_id)
    both = decode_compacted(data, key, FIXED)
    assert both.keys == tuple(unit.key for unit in UNITS)
    assert [entry.rows for entry in read_index(data, key, FIXED.run_id)] == both.lengths.tolist()
    (one,) = (decode_compacted(data, key, FIXED, [UNITS[1].key]),)
    assert one.table.equals(units_of(UNITS[1:]).table)
    assert one.rows.votes.tolist() == units_of(UNITS[1:]).rows.votes.tolist()


def test_any_flipped_bit_is_noticed() -> None:
    key, data = encode_compacted(units_of(UNITS), FIXED.run_id)
    for at in range(0, len(data), 31):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        for read in (
            lambda data: read_index(data, key, FIXED.run_id),
            lambda data: decode_compacted(data, key, FIXED),
        ):
            with pytest.raises(UnsoundError, match="its bytes are not those"):
                read(bytes(damaged))


def test_of_another_run() -> None:
    key, data = encode_compacted(units_of(UNITS), "another")
    with pytest.raises(UnsoundError, match=f"run_id is another, expected {FIXED.run_id}"):
        read_index(data, key, FIXED.run_id)


def test_rows_under_another_units_name() -> None:
    units = units_of(UNITS)
    swapped = UnitRows(units.keys[::-1], units.lengths, units.table, units.rows)
    key, data = encode_compacted(swapped, FIXED.run_id)
    with pytest.raises(UnsoundError, match="does not belong to this unit"):
        decode_compacted(data, key, FIXED)


def test_a_list_that_is_not_that_of_the_rows() -> None:
    units = units_of(UNITS)
    for lengths in (units.lengths + 1, units.lengths * 0):
        key, data = encode_compacted(UnitRows(units.keys, units.lengths, units.table, units.rows), FIXED.run_id)
        assert read_index(data, key, FIXED.run_id)
        wrong = UnitRows(units.keys, lengths, units.table, units.rows)
        key, data = encode_compacted(wrong, FIXED.run_id)
        with pytest.raises(UnsoundError, match="its list of units is not that of its rows"):
            read_index(data, key, FIXED.run_id)


def test_parquet_of_somebody_else() -> None:
    store = stored(FIXED)
    key, data = encode_compacted(units_of(UNITS), FIXED.run_id)
    other = key.replace(key[-20:-10], "0123456789")
    store.put(other, data)
    with pytest.raises(CountsError, match="its bytes are not those"):
        list_parts(store, FIXED)


def test_a_digest_is_of_the_rows_alone() -> None:
    """The same from a part, from a batch of parts and from a compacted object; another for any other row."""
    units = units_of(UNITS)
    key, data = encode_compacted(units, FIXED.run_id)
    both = digests(units)
    assert [entry.digest for entry in read_index(data, key, FIXED.run_id)] == both
    assert [digests(units_of([unit]))[0] for unit in UNITS] == both
    assert digests(decode_compacted(data, key, FIXED, [UNITS[1].key])) == both[1:]
    other = decode_parts([(UNITS[0].key, part_of(FIXED, UNITS[0], lambda image_id: 0.5))], FIXED.run_id, CLASSES)
    assert digests(other)[0] not in both
