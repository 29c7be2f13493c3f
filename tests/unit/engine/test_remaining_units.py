"""Adaptive decisions on hand-made votes: which images go on, and that a resumed run decides as it did before."""

from __future__ import annotations

import itertools

import pytest

from drs_ray.counts.plan import Unit, plan_units, stage_units
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.remaining_units import RemainingUnits
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


def finish(
    remaining: RemainingUnits, record: RunRecord, units: list[Unit], store: MemoryStore | None = None
) -> list[Unit]:
    """Do the units; returns those that they call for."""
    further = []
    for unit in units:
        part = part_of(record, unit, own)
        if store is not None:
            store.put(unit.key, part)
        further += remaining.done(unit, outcome(part))
    return further


def test_a_fixed_number_of_samples_calls_for_nothing_more() -> None:
    record, store = record_of(6), MemoryStore()
    store.put(plan_units(record)[0].key, b"is not read")
    remaining = RemainingUnits(record, store)
    assert not remaining.adaptive
    assert remaining.missing() == plan_units(record)[1:]
    assert remaining.stored == plan_units(record)[:1]


def test_a_new_run_begins_with_the_first_stage_of_every_block(record: RunRecord) -> None:
    remaining = RemainingUnits(record, MemoryStore())
    assert remaining.adaptive
    assert remaining.missing() == plan_units(record)
    assert remaining.stored == []


def test_the_last_part_of_a_stage_calls_for_the_images_that_are_open(record: RunRecord) -> None:
    remaining = RemainingUnits(record, MemoryStore())
    first, second, *others = remaining.missing()
    assert first.block == second.block
    assert finish(remaining, record, [first]) == []
    further = finish(remaining, record, [second])
    assert further == stage_units(record, (0, 2), 1, [1])
    assert finish(remaining, record, further) == stage_units(record, (0, 2), 2, [1])
    assert others == stage_units(record, (3, 5), 0, [3, 4, 5])


def test_the_samples_of_later_stages_are_estimated_from_the_decisions_so_far(record: RunRecord) -> None:
    """One image of three is open, for ever; each of the two blocks has three images and two sub-images."""
    store = MemoryStore()
    remaining = RemainingUnits(record, store)
    assert remaining.later_samples is None
    first, second, *others = remaining.missing()
    assert remaining.later_samples is None
    further = finish(remaining, record, [first, second], store)
    share = (1 + 1) / (3 + 1)  # 1 of 3 went on, and 1 of 1 is counted besides
    new_images, both_blocks = 2 * 3 * share, 2 * (share + 3 * share**2)  # of stages 1 and 2
    assert remaining.later_samples == pytest.approx(100 * new_images + 200 * both_blocks)
    further = finish(remaining, record, further, store)
    again = (1 + share) / (1 + 1)  # of stage 1, 1 of 1 went on
    expected = 100 * new_images + 200 * new_images * again
    assert remaining.later_samples == pytest.approx(expected)
    resumed = RemainingUnits(record, store)
    assert set(resumed.missing()) == {*others, *further}
    assert resumed.later_samples == pytest.approx(expected)
    finish(remaining, record, further)
    further = finish(remaining, record, others)
    share = (2 + 1) / (6 + 1)
    assert remaining.later_samples == pytest.approx(200 * 2 * (1 + share) / (1 + 1))
    finish(remaining, record, finish(remaining, record, further))
    assert remaining.later_samples == 0.0


def test_while_an_image_may_go_on_something_is_expected(record: RunRecord) -> None:
    """Also if all images so far were settled in their first stage."""
    remaining = RemainingUnits(record, MemoryStore())
    first, second, *others = remaining.missing()
    for unit in (first, second):
        assert remaining.done(unit, outcome(part_of(record, unit, lambda image_id: SETTLED))) == []
    later = remaining.later_samples
    assert later is not None
    assert 0 < later < 2 * 3 * (100 + 200)
    for unit in others:
        remaining.done(unit, outcome(part_of(record, unit, lambda image_id: SETTLED)))
    assert remaining.later_samples == 0.0


def test_nothing_is_expected_of_a_fixed_number_of_samples() -> None:
    remaining = RemainingUnits(record_of(6), MemoryStore())
    remaining.missing()
    assert remaining.later_samples == 0.0


def test_blocks_go_on_without_each_other_in_any_order(record: RunRecord) -> None:
    remaining = RemainingUnits(record, MemoryStore())
    a0, a1, b0, b1 = remaining.missing()
    assert finish(remaining, record, [b1, a0]) == []
    assert finish(remaining, record, [b0]) == stage_units(record, (3, 5), 1, [4])
    assert finish(remaining, record, [a1]) == stage_units(record, (0, 2), 1, [1])


def test_the_last_stage_calls_for_nothing(record: RunRecord) -> None:
    remaining = RemainingUnits(record, MemoryStore())
    todo, done = remaining.missing(), 0
    while todo:
        done += len(todo)
        todo = finish(remaining, record, todo)
    assert done == 2 * 2 * 3


def test_a_block_without_open_images_ends_at_once(record: RunRecord) -> None:
    remaining = RemainingUnits(record, MemoryStore())
    for unit in remaining.missing():
        assert remaining.done(unit, outcome(part_of(record, unit, lambda image_id: SETTLED))) == []


def test_a_block_cut_by_samples_waits_for_all_its_parts() -> None:
    record = record_of(3, stages=3, samples_per_unit=50)
    remaining = RemainingUnits(record, MemoryStore())
    units = remaining.missing()
    assert len(units) == 4
    assert finish(remaining, record, units[:3]) == []
    assert finish(remaining, record, units[3:]) == stage_units(record, (0, 2), 1, [1])


@pytest.mark.parametrize("stored", range(13))
def test_a_run_cut_off_anywhere_resumes_to_the_same_parts(record: RunRecord, stored: int) -> None:
    undisturbed = MemoryStore()
    remaining = RemainingUnits(record, undisturbed)
    todo = remaining.missing()
    while todo:
        todo = finish(remaining, record, todo, undisturbed)
    store = MemoryStore()
    for key in sorted(undisturbed.objects, key=lambda key: key.split("/")[2])[:stored]:  # stage by stage
        store.put(key, undisturbed.get(key))
    resumed = RemainingUnits(record, store)
    todo = resumed.missing()
    assert len(resumed.stored) == stored
    while todo:
        assert not {unit.key for unit in todo} & store.objects.keys()
        todo = finish(resumed, record, todo, store)
    assert store.objects == undisturbed.objects


def test_resuming_in_the_middle_of_a_block_asks_for_its_other_sub_image_alone(record: RunRecord) -> None:
    store = MemoryStore()
    remaining = RemainingUnits(record, store)
    units = remaining.missing()
    finish(remaining, record, units[:1], store)
    resumed = RemainingUnits(record, store)
    assert resumed.missing() == units[1:]
    assert resumed.stored == units[:1]
    assert finish(resumed, record, units[1:2]) == stage_units(record, (0, 2), 1, [1])


def test_a_stored_part_of_the_next_stage_decides_its_images(record: RunRecord) -> None:
    """Even against the votes: an earlier driver has decided, and one block has one decision."""
    store = MemoryStore()
    remaining = RemainingUnits(record, store)
    finish(remaining, record, remaining.missing(), store)
    earlier, missing = stage_units(record, (0, 2), 1, [0, 2])
    store.put(earlier.key, part_of(record, earlier, own))
    resumed = RemainingUnits(record, store)
    todo = resumed.missing()
    assert todo[0] == missing
    assert todo[1:] == stage_units(record, (3, 5), 1, [4])
    assert earlier in resumed.stored
    assert finish(resumed, record, [missing]) == []  # one is settled, one is hopeless


def test_the_images_of_a_stored_part_are_found_in_any_order_of_ids() -> None:
    record, store = record_of(3, stages=3, ids=(31, 7, 20)), MemoryStore()
    for unit in stage_units(record, (0, 2), 0, [0, 1, 2]):
        store.put(unit.key, part_of(record, unit, own))
    assert RemainingUnits(record, store).missing() == stage_units(record, (0, 2), 1, [0, 1])  # 31 % 3 == 7 % 3 == 1
    earlier, missing = stage_units(record, (0, 2), 1, [1])
    store.put(earlier.key, part_of(record, earlier, own))
    assert RemainingUnits(record, store).missing() == [missing]


def test_a_part_of_another_unit_is_refused(record: RunRecord) -> None:
    remaining = RemainingUnits(record, MemoryStore())
    first, second, *_ = remaining.missing()
    with pytest.raises(CountsError, match=r"unit is counts/k1/.*, expected counts/k0/"):
        remaining.done(first, outcome(part_of(record, second, own)))


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
