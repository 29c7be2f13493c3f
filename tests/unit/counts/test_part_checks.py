"""Judging objects one by one: the sound ones of a batch are kept, each of the others has its reason."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drs_ray.counts import merged_parts
from drs_ray.counts.encoding import decode_parts
from drs_ray.counts.merged_parts import encode_compacted
from drs_ray.counts.part_checks import PartChecker
from drs_ray.counts.plan import plan_units
from drs_ray.counts.rows import UnsoundError
from tests.unit.counts.factories import CLASSES
from tests.unit.counts.scale import FIXED, own
from tests.unit.engine.factories import part_of

UNITS = plan_units(FIXED)
PARTS = [(unit.key, part_of(FIXED, unit, own)) for unit in UNITS]


@settings(max_examples=40, deadline=None)
@given(damaged=st.sets(st.integers(0, len(PARTS) - 1)))
def test_any_of_a_batch_may_be_damaged(damaged: set[int]) -> None:
    batch = [(key, data[:-1] if number in damaged else data) for number, (key, data) in enumerate(PARTS)]
    sound, unsound = PartChecker(FIXED).small(batch)
    assert [key for units in sound for key in units.keys] == [
        key for number, (key, _) in enumerate(PARTS) if number not in damaged
    ]
    assert unsound == {PARTS[number][0]: "truncated, damaged or not Parquet" for number in sorted(damaged)}


def test_nothing_to_judge() -> None:
    assert PartChecker(FIXED).small([]) == ([], {})


def test_what_a_key_says() -> None:
    checker = PartChecker(FIXED)
    for unit in UNITS:
        name = checker.name(unit.key)
        assert (name.sub_image, name.stage, name.block, name.key) == (unit.sub_image, 0, unit.block, unit.key)
    with pytest.raises(UnsoundError, match="counts/k0/x: no unit of this run has this key"):
        checker.name("counts/k0/x")


def test_a_part_under_the_key_of_another_unit() -> None:
    (first, _), (second, data), *_ = PARTS
    assert PartChecker(FIXED).small([(first, data)]) == ([], {first: f"unit is {second}, expected {first}"})


def test_a_compacted_object_whose_list_has_other_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name fits its bytes and its rows add up: somebody has written it so."""
    units = decode_parts(PARTS[:2], FIXED.run_id, CLASSES)
    key, data = encode_compacted(units, FIXED.run_id)
    assert PartChecker(FIXED).compacted(data, key).keys == units.keys
    monkeypatch.setattr(merged_parts, "digests", lambda units: ["0" * 16] * len(units.keys))
    key, data = encode_compacted(units, FIXED.run_id)
    with pytest.raises(UnsoundError, match=f"{PARTS[0][0]}: its rows are not those that were merged"):
        PartChecker(FIXED).compacted(data, key)
