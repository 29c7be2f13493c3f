"""The names of units: those that the plan gives, no others, and exactly the rows that they promise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drs_ray.counts.encoding import CountsRow, decode_parts, encode_part
from drs_ray.counts.plan import blocks, stage_units
from drs_ray.counts.unit_keys import RunUnits
from tests.unit.counts.factories import CLASSES
from tests.unit.engine.factories import record_of

RECORDS = [
    record_of(8),
    record_of(8, samples_per_unit=150),
    record_of(12, stages=3),
    record_of(7, stages=3, samples_per_unit=50),
    record_of(3, ids=(31, 7, 20)),
]


@pytest.mark.parametrize("record", RECORDS)
def test_the_keys_of_the_plan_are_those_of_the_run(record) -> None:
    units = RunUnits(record)
    planned = {
        unit.key: unit
        for stage in range(len(record.schedule.samples))
        for block in blocks(record)
        for unit in stage_units(record, block, stage, range(block[0], block[1] + 1))
    }
    for key, unit in planned.items():
        name = units.parse(key)
        assert name is not None
        assert name.key == key
        assert (name.sub_image, name.block, name.stage) == (unit.sub_image, unit.block, unit.draws[-1].stage)
        assert units.end(name) == unit.draws[-1].first_sample + unit.draws[-1].samples
        for other in (
            key.replace("/k", "/k1", 1),
            key.replace("/s", "/s1", 1),
            key.replace("-n", "-n1"),
            key.replace(".parquet", ".parque"),
            key.replace("i0", "i"),
            key.replace("counts/", "count/"),
            f"{key}.parquet",
        ):
            assert (units.parse(other) is None) == (other not in planned), other
    assert units.parse(next(iter(planned)).replace("i00000000-00000002", "i00000001-00000002")) is None


RECORD = RECORDS[0]
UNIT = stage_units(RECORD, (3, 5), 0, [3, 4, 5])[1]


def rows_of_unit() -> list[CountsRow]:
    return [
        CountsRow(
            image, 4, 1, draw.phase, 0, draw.first_sample, draw.samples, np.eye(CLASSES, dtype=int)[4] * draw.samples
        )
        for image in (3, 4, 5)
        for draw in UNIT.draws
    ]


def misplaced(rows: list[CountsRow]) -> str:
    units = RunUnits(RECORD)
    name = units.parse(UNIT.key)
    assert name is not None
    read = decode_parts([(UNIT.key, encode_part(rows, "run", UNIT.key))], "run", CLASSES)
    found = units.misplaced(read.rows, [name], read.lengths)
    if found is None:
        return ""
    assert found[0] == 0
    return found[1]


def test_the_rows_of_a_unit_in_any_order() -> None:
    assert misplaced(rows_of_unit()) == misplaced(rows_of_unit()[::-1]) == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_id": 2}, "image 2, sub-image 1, estimation samples 100..199 does not belong to this unit"),
        ({"image_id": 99}, "image 99"),
        ({"sub_image": 0}, "sub-image 0, estimation"),
        ({"stage": 1}, "does not belong"),
        ({"phase": "selection"}, "does not belong"),
        ({"first_sample": 400}, "samples 400..499 does not belong"),
        ({"first_sample": -10}, "does not belong"),
        ({"first_sample": 110}, "leaves a gap or overlaps"),
        ({"first_sample": 0}, "leaves a gap or overlaps"),
        ({"label": 5}, "image 3 has two labels"),
    ],
    ids=str,
)
def test_a_row_that_does_not_belong(changed: dict[str, object], message: str) -> None:
    rows = rows_of_unit()
    at = next(i for i, row in enumerate(rows) if row.phase == "estimation" and row.first_sample == 100)
    rows[at] = dataclasses.replace(rows[at], **changed)  # type: ignore[arg-type]
    assert message in misplaced(rows)


@pytest.mark.parametrize("drop", range(15))
def test_a_row_that_is_missing_or_twice(drop: int) -> None:
    rows = rows_of_unit()
    assert len(rows) == 15
    assert misplaced(rows[:drop] + rows[drop + 1 :])
    assert "leaves a gap or overlaps" in misplaced([*rows, rows[drop]])


def test_an_image_that_is_missing_from_the_first_stage() -> None:
    assert misplaced(rows_of_unit()[5:]) == "images or samples of this unit are missing"


def test_the_unit_that_is_off_is_named_among_many() -> None:
    units = RunUnits(RECORD)
    planned = [*stage_units(RECORD, (0, 2), 0, [0, 1, 2]), UNIT]
    names = [units.parse(unit.key) for unit in planned]
    rows = decode_parts([(UNIT.key, encode_part(rows_of_unit(), "run", UNIT.key))] * 3, "run", CLASSES)
    found = units.misplaced(rows.rows, [name for name in names[::-1] if name], rows.lengths)
    assert found is not None
    assert found[0] == 1
