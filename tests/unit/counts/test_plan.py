"""Units: together they are the run, each sample once, and their keys and cuts are functions of run.json alone."""

from __future__ import annotations

from collections import defaultdict

import pytest

from drs_ray.counts.parts import list_parts
from drs_ray.counts.plan import Unit, blocks, missing_units, plan_units, stage_units
from drs_ray.counts.run_record import RunRecord
from tests.unit.counts.factories import MemoryStore
from tests.unit.engine.factories import record_of


def test_blocks_tile_the_images() -> None:
    assert blocks(record_of(8)) == [(0, 2), (3, 5), (6, 7)]
    assert blocks(record_of(1)) == [(0, 0)]
    assert blocks(record_of(3)) == [(0, 2)]


def ranges(units: list[Unit]) -> dict[tuple[int, int, str], list[tuple[int, int]]]:
    """Sorted [first, end) of every sub-image, position and phase."""
    found = defaultdict(list)
    for unit in units:
        for draw in unit.draws:
            for position in unit.positions:
                found[unit.sub_image, position, draw.phase].append(
                    (draw.first_sample, draw.first_sample + draw.samples)
                )
    return {key: sorted(value) for key, value in found.items()}


def tiles(cuts: list[tuple[int, int]], end: int) -> bool:
    edges = [0, *(high for _, high in cuts)]
    return edges == [*(low for low, _ in cuts), end]


@pytest.mark.parametrize("per_unit", [None, 100, 150, 1000])
@pytest.mark.parametrize("images", [1, 7])
def test_every_sample_is_drawn_once(images: int, per_unit: int | None) -> None:
    record = record_of(images, samples_per_unit=per_unit)
    found = ranges(plan_units(record))
    assert len(found) == images * 2 * 2
    for (_, _, phase), cuts in found.items():
        assert tiles(cuts, {"selection": 50, "estimation": 400}[phase])


def test_stages_continue_where_the_last_one_ended() -> None:
    record = record_of(3, stages=3)
    units = [unit for stage in range(3) for unit in stage_units(record, (0, 2), stage, [0, 1, 2])]
    found = ranges(units)
    assert all(tiles(cuts, {"selection": 50, "estimation": 400}[phase]) for (_, _, phase), cuts in found.items())
    assert found[1, 2, "estimation"] == [(0, 100), (100, 200), (200, 400)]
    assert found[1, 2, "selection"] == [(0, 50)]


def test_keys_are_unique_and_say_what_they_hold() -> None:
    record = record_of(12, stages=3, samples_per_unit=50)
    keys = [u.key for stage in range(3) for block in blocks(record) for u in stage_units(record, block, stage, [0])]
    assert len(set(keys)) == len(keys)
    assert keys[0] == "counts/k0/s0/i00000000-00000002-n0000000000.parquet"


def test_a_key_does_not_depend_on_which_images_an_earlier_stage_has_settled() -> None:
    record = record_of(12, stages=3)
    (all_images, _), (one, _) = (stage_units(record, (3, 5), 1, positions) for positions in ([3, 4, 5], [4]))
    assert all_images.key == one.key
    assert (all_images.samples, one.samples) == (300, 100)


@pytest.mark.parametrize(("batch", "cuts"), [(50, [50, 100, 200, 400]), (30, [60, 120, 210, 400]), (500, [400])])
def test_counts_are_also_known_after_fewer_samples_at_multiples_of_the_batch(batch: int, cuts: list[int]) -> None:
    unit = plan_units(record_of(3, batch=batch))[0]
    assert [draw.first_sample + draw.samples for draw in unit.draws if draw.phase == "estimation"] == cuts


def test_what_is_stored_is_not_missing() -> None:
    record, store = record_of(), MemoryStore()
    units = plan_units(record)
    assert missing_units(units, list_parts(store, record)) == units
    for unit in units[::2]:
        store.put(unit.key, b"")
    store.put("counts/of-somebody-else", b"")
    assert missing_units(units, list_parts(store, record)) == units[1::2]


def test_a_larger_budget_keeps_the_keys_of_the_stages_that_were_done() -> None:
    def keys(record: RunRecord) -> list[str]:
        return [unit.key for unit in stage_units(record, (0, 2), 0, [0, 1, 2])]

    small = record_of(3, stages=3)
    assert keys(small) == keys(record_of(3, stages=4, estimation=800))
