"""Parts as bytes: pure functions of their rows, and what is refused on the way back."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drs_ray.counts.encoding import decode_parts, encode_part, encode_table
from drs_ray.counts.plan import plan_units
from drs_ray.counts.rows import UnsoundError
from drs_ray.counts.schema import COUNTS
from tests.unit.counts.factories import CLASSES, decode_part
from tests.unit.counts.scale import FIXED, own
from tests.unit.engine.factories import part_of

UNITS = plan_units(FIXED)[:4]
PARTS = [(unit.key, part_of(FIXED, unit, own)) for unit in UNITS]


def test_a_table_is_encoded_as_its_rows_were() -> None:
    for key, part in PARTS:
        table = decode_part(part, key, FIXED.run_id, CLASSES)
        assert table.schema.equals(COUNTS)
        assert encode_table(table, FIXED.run_id, key) == part


def test_many_parts_at_once_are_the_parts_one_after_another() -> None:
    units = decode_parts(PARTS, FIXED.run_id, CLASSES)
    assert units.keys == tuple(key for key, _ in PARTS)
    for (key, part), mine in zip(PARTS, units.slices().values(), strict=True):
        alone = decode_parts([(key, part)], FIXED.run_id, CLASSES)
        assert units.table.slice(mine.start, mine.stop - mine.start).equals(alone.table)
        assert units.rows.between(mine.start, mine.stop).votes.tolist() == alone.rows.votes.tolist()


@settings(max_examples=25, deadline=None)
@given(wanted=st.sets(st.sampled_from(UNITS)))
def test_only_some_units(wanted: set) -> None:
    units = decode_parts(PARTS, FIXED.run_id, CLASSES)
    chosen = units.only({unit.key for unit in wanted})
    assert chosen.keys == tuple(unit.key for unit in UNITS if unit in wanted)
    for key, mine in chosen.slices().items():
        expected = decode_part(dict(PARTS)[key], key, FIXED.run_id, CLASSES)
        assert chosen.table.slice(mine.start, mine.stop - mine.start).equals(expected)
    assert len(chosen.rows) == len(chosen.table) == chosen.lengths.sum()


@pytest.mark.parametrize("which", range(len(PARTS)))
def test_the_first_part_that_cannot_be_trusted_is_named(which: int) -> None:
    parts = list(PARTS)
    for at in range(which, len(parts)):
        parts[at] = (parts[at][0], parts[at][1][:-5])
    with pytest.raises(UnsoundError) as caught:
        decode_parts(parts, FIXED.run_id, CLASSES)
    assert caught.value.key == PARTS[which][0]
    assert caught.value.reason == "truncated, damaged or not Parquet"
    assert str(caught.value).endswith("`drs-ray repair RUN` moves it aside, then `drs-ray certify` computes it again")


def test_votes_outside_the_classes() -> None:
    key, part = PARTS[0]
    with pytest.raises(UnsoundError, match=r"votes for a class outside 0\.\.0"):
        decode_part(part, key, FIXED.run_id, 1)


def test_a_unit_without_rows_has_no_part() -> None:
    key = UNITS[0].key
    with pytest.raises(ValueError, match="at least one array"):
        encode_part([], FIXED.run_id, key)
