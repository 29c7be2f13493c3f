"""Adaptive decisions on hand-made votes: which images go on, and that a resumed run decides as it did before."""

from __future__ import annotations

import itertools

import pytest

from drs_ray.counts.plan import Unit, plan_units, stage_units
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.frontier import Frontier
from drs_ray.engine.outcome import Outcome
from drs_ray.errors import CountsError
from tests.unit.counts import scale
from tests.unit.counts.factories import MemoryStore
from tests.unit.engine.factories import part_of, record_of

SETTLED, OPEN, HOPELESS = 1.0, 0.6, 0.0
SHARES = {0: SETTLED, 1: OPEN, 2: HOPELESS}
STAGES = (100, 200, 400)


def own(image_id: int) -> float:
    """Of three images in turn one is certain, one needs more samples, and one is wrong."""
    return SHARES[image_id % 3]


def outcome(part: bytes) -> Outcome:
    """A stored unit."""
    return Outcome(1.0, 0.1, part)


@pytest.fixture
def record() -> RunRecord:
    record = record_of(6, stages=3)
    assert record.schedule.samples == STAGES
    return record


def finish(frontier: Frontier, record: RunRecord, units: list[Unit], store: MemoryStore | None = None) -> list[Unit]:
    """Do the units; returns those that they call for."""
    further = []
    for unit in units:
        part = part_of(record, unit, own)
        if store is not None:
            store.put(unit.key, part)
        further += frontier.done(unit, outcome(part))
    return further


def test_a_fixed_number_of_samples_calls_for_nothing_more() -> None:
    record, store = record_of(6), MemoryStore()
    store.put(plan_units(record)[0].key, b"is not read")
    frontier = Frontier(record, store)
    assert not frontier.adaptive
    assert frontier.missing() == plan_units(record)[1:]
    assert frontier.stored == plan_units(record)[:1]


def test_a_new_run_begins_with_the_first_stage_of_every_block(record: RunRecord) -> None:
    frontier = Frontier(record, MemoryStore())
    assert frontier.adaptive
    assert frontier.missing() == plan_units(record)
    assert frontier.stored == []


def test_the_last_part_of_a_stage_calls_for_the_images_that_are_open(record: RunRecord) -> None:
    frontier = Frontier(record, MemoryStore())
    first, second, *others = frontier.missing()
    assert first.block == second.block
    assert finish(frontier, record, [first]) == []
    further = finish(frontier, record, [second])
    assert further == stage_units(record, (0, 2), 1, [1])
    assert finish(frontier, record, further) == stage_units(record, (0, 2), 2, [1])
    assert others == stage_units(record, (3, 5), 0, [3, 4, 5])


def test_blocks_go_on_without_each_other_in_any_order(record: RunRecord) -> None:
    frontier = Frontier(record, MemoryStore())
    a0, a1, b0, b1 = frontier.missing()
    assert finish(frontier, record, [b1, a0]) == []
    assert finish(frontier, record, [b0]) == stage_units(record, (3, 5), 1, [4])
    assert finish(frontier, record, [a1]) == stage_units(record, (0, 2), 1, [1])


def test_the_last_stage_calls_for_nothing(record: RunRecord) -> None:
    frontier = Frontier(record, MemoryStore())
    todo, done = frontier.missing(), 0
    while todo:
        done += len(todo)
        todo = finish(frontier, record, todo)
    assert done == 2 * 2 * 3


def test_a_block_without_open_images_ends_at_once(record: RunRecord) -> None:
    frontier = Frontier(record, MemoryStore())
    for unit in frontier.missing():
        assert frontier.done(unit, outcome(part_of(record, unit, lambda image_id: SETTLED))) == []


def test_a_block_cut_by_samples_waits_for_all_its_parts() -> None:
    record = record_of(3, stages=3, samples_per_unit=50)
    frontier = Frontier(record, MemoryStore())
    units = frontier.missing()
    assert len(units) == 4
    assert finish(frontier, record, units[:3]) == []
    assert finish(frontier, record, units[3:]) == stage_units(record, (0, 2), 1, [1])


@pytest.mark.parametrize("stored", range(13))
def test_a_run_cut_off_anywhere_resumes_to_the_same_parts(record: RunRecord, stored: int) -> None:
    undisturbed = MemoryStore()
    frontier = Frontier(record, undisturbed)
    todo = frontier.missing()
    while todo:
        todo = finish(frontier, record, todo, undisturbed)
    store = MemoryStore()
    for key in sorted(undisturbed.objects, key=lambda key: key.split("/")[2])[:stored]:  # stage by stage
        store.put(key, undisturbed.get(key))
    resumed = Frontier(record, store)
    todo = resumed.missing()
    assert len(resumed.stored) == stored
    while todo:
        assert not {unit.key for unit in todo} & store.objects.keys()
        todo = finish(resumed, record, todo, store)
    assert store.objects == undisturbed.objects


def test_resuming_in_the_middle_of_a_block_asks_for_its_other_sub_image_alone(record: RunRecord) -> None:
    store = MemoryStore()
    frontier = Frontier(record, store)
    units = frontier.missing()
    finish(frontier, record, units[:1], store)
    resumed = Frontier(record, store)
    assert resumed.missing() == units[1:]
    assert resumed.stored == units[:1]
    assert finish(resumed, record, units[1:2]) == stage_units(record, (0, 2), 1, [1])


def test_a_stored_part_of_the_next_stage_decides_its_images(record: RunRecord) -> None:
    """Even against the votes: an earlier driver has decided, and one block has one decision."""
    store = MemoryStore()
    frontier = Frontier(record, store)
    finish(frontier, record, frontier.missing(), store)
    earlier, missing = stage_units(record, (0, 2), 1, [0, 2])
    store.put(earlier.key, part_of(record, earlier, own))
    resumed = Frontier(record, store)
    todo = resumed.missing()
    assert todo[0] == missing
    assert todo[1:] == stage_units(record, (3, 5), 1, [4])
    assert earlier in resumed.stored
    assert finish(resumed, record, [missing]) == []  # one is settled, one is hopeless


def test_the_images_of_a_stored_part_are_found_in_any_order_of_ids() -> None:
    record, store = record_of(3, stages=3, ids=(31, 7, 20)), MemoryStore()
    for unit in stage_units(record, (0, 2), 0, [0, 1, 2]):
        store.put(unit.key, part_of(record, unit, own))
    assert Frontier(record, store).missing() == stage_units(record, (0, 2), 1, [0, 1])  # 31 % 3 == 7 % 3 == 1
    earlier, missing = stage_units(record, (0, 2), 1, [1])
    store.put(earlier.key, part_of(record, earlier, own))
    assert Frontier(record, store).missing() == [missing]


def test_a_part_of_another_unit_is_refused(record: RunRecord) -> None:
    frontier = Frontier(record, MemoryStore())
    first, second, *_ = frontier.missing()
    with pytest.raises(CountsError, match=r"unit is counts/k1/.*, expected counts/k0/"):
        frontier.done(first, outcome(part_of(record, second, own)))


def test_a_run_that_has_lost_any_of_its_parts_is_completed_with_the_same_rows() -> None:
    """Also where a stage is lost of which a later one is left: certify does again what repair has moved aside."""
    record, whole = scale.ADAPTIVE, scale.stored(scale.ADAPTIVE)
    rows, keys = scale.rows_in(whole, record), scale.small_keys(whole)
    stages = [[key for key in keys if f"/s{stage}/i{first:08d}-" in key] for stage in range(3) for first in (0, 3)]
    assert all(stages)
    for lost in [
        *stages,
        *itertools.combinations(stages[0] + stages[2] + stages[4], 3),
        *(keys[:n] for n in range(15)),
    ]:
        store = scale.copy_of(whole)
        for key in lost:
            store.delete(key)
        scale.finish(record, store)
        assert scale.rows_in(store, record) == rows, lost
