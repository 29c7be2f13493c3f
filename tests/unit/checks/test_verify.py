"""The audit of a run on hand-made votes: what is drawn, what is found, and at which level."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import metadata
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from drs_ray.checks import recount
from drs_ray.checks.verify import _level_of_each, _level_of_one_image, choose_units, verify
from drs_ray.counts.compaction import compact_run
from drs_ray.counts.encoding import CountsRow, encode_part
from drs_ray.counts.plan import Draw, Unit, plan_units, stage_units
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.schema import RUN_KEY
from drs_ray.engine.description import hardware_of
from drs_ray.errors import ConfigError, CountsError
from drs_ray.storage import Store
from tests.unit.counts.factories import CLASSES, MemoryStore, decode_part
from tests.unit.engine.factories import Recorder, record_of

HERE = {name: metadata.version(name) for name in ("torch", "numpy")}
OTHER_KIND = {"hardware": "another CPU, 8 cores"}


def rows_of(record: RunRecord, unit: Unit, noise: int = 0, own: float = 0.7) -> Iterator[CountsRow]:
    """The unit's rows: class 0 has vote probability `own`, class 1 most of the rest; `noise` names the stream."""
    share = np.full(CLASSES, 0.01)
    share[0] = own
    share[1] += 1 - share.sum()
    for position in unit.positions:
        image_id = record.image_ids[position]
        for draw in unit.draws:
            stream = np.random.default_rng((noise, image_id, unit.sub_image, len(draw.phase), draw.first_sample))
            votes = stream.multinomial(draw.samples, share)
            yield CountsRow(image_id, 0, unit.sub_image, draw.phase, draw.stage, draw.first_sample, draw.samples, votes)


class Runner:
    """Stands for a worker; counts what it is asked for."""

    noise = 0
    asked: list[Unit] = []  # noqa: RUF012

    def __init__(self, record: RunRecord, sub_image: int, dataset: object = None) -> None:
        self._record, self._sub_image, self.dataset = record, sub_image, dataset or object()

    def count(self, unit: Unit) -> Iterator[CountsRow]:
        assert unit.sub_image == self._sub_image
        self.asked.append(unit)
        return rows_of(self._record, unit, self.noise)


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recount, "UnitRunner", Runner)
    monkeypatch.setattr(Runner, "asked", [])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def stored_run(units: int | None = None, changes: dict[str, Any] | None = None, **options: Any) -> MemoryStore:
    """A run of 12 images in 4 blocks and 2 sub-images, by a worker like this one, all or some of its units stored."""
    record = record_of(**options)
    record = record.model_copy(update={"software": HERE, "hardware": hardware_of("cpu"), **(changes or {})})
    store = MemoryStore()
    store.put(RUN_KEY, record.model_dump_json().encode())
    for unit in plan_units(record)[:units]:
        store.put(unit.key, encode_part(rows_of(record, unit), record.run_id, unit.key))
    return store


def change(store: MemoryStore, unit: Unit, changed: Callable[[CountsRow], CountsRow | None]) -> None:
    """Write the unit's part again with each row changed, or left out, and all else as it was."""
    record = record_of()
    rows = [changed(row) for row in rows_of(record, unit)]
    part = encode_part([row for row in rows if row is not None], record.run_id, unit.key)
    decode_part(part, unit.key, record.run_id, CLASSES)  # nothing is wrong with it by itself
    assert part != store.get(unit.key)
    store.put(unit.key, part)


def one_vote_moved(image_id: int, phase: str = "estimation", first_sample: int = 0) -> Callable[[CountsRow], CountsRow]:
    """From the runner-up to the winner: the sums are as they were."""

    def changed(row: CountsRow) -> CountsRow:
        if (row.image_id, row.phase, row.first_sample) != (image_id, phase, first_sample):
            return row
        votes = row.votes.copy()
        votes[:2] += [1, -1]
        return replace(row, votes=votes)

    return changed


def test_a_run_as_it_was_written_agrees() -> None:
    recorder = Recorder()
    report = verify(stored_run(), 4, images=2, observer=recorder)
    report.check()
    assert report.exact
    assert (report.units, len(report.checked), report.images) == (8, 4, 8)
    assert report.samples == 8 * 450
    assert report.samples_stored == 24 * 450
    assert report.comparisons == 8 * 5  # selection, and estimation in four rows
    assert report.differences == ()
    assert report.share_found == pytest.approx(1 - 0.05**0.25)
    assert {unit.key for unit in recorder.done} == set(report.checked)
    assert recorder.events == []


def test_everything_can_be_checked() -> None:
    report = verify(stored_run(), 99, images=99)
    assert len(report.checked) == 8
    assert report.samples == report.samples_stored
    assert report.share_found == 0


@pytest.mark.parametrize("which", range(8))
def test_a_moved_vote_is_found_when_its_unit_is_drawn_and_only_then(which: int) -> None:
    store, unit = stored_run(), plan_units(record_of())[which]
    image_id = unit.positions[1]
    change(store, unit, one_vote_moved(image_id))
    met = Counter[bool]()
    for seed in range(12):
        report = verify(store, 3, images=3, seed=seed)
        met[unit.key in report.checked] += 1
        if unit.key not in report.checked:
            report.check()
            continue
        (difference,) = report.differences
        assert (difference.unit, difference.image_id, difference.classes) == (unit.key, image_id, (0, 1))
        assert np.subtract(difference.stored, difference.counted).tolist() == [1, -1]
        with pytest.raises(
            CountsError, match=rf"1 of 45 comparisons differ, in 1 of 3 units checked, first {unit.key}"
        ):
            report.check()
    assert met[True]
    assert met[False]


def test_the_images_of_a_unit_are_drawn_too() -> None:
    store, unit = stored_run(), plan_units(record_of())[0]
    change(store, unit, one_vote_moved(unit.positions[2]))
    found = [bool(verify(store, 8, images=1, seed=seed).differences) for seed in range(30)]
    assert 3 <= sum(found) <= 17  # a third of 30 on average
    for asked in Runner.asked:
        assert len(asked.positions) == 1


@pytest.mark.parametrize(("phase", "first_sample"), [("selection", 0), ("estimation", 200)])
def test_any_row_is_compared(phase: str, first_sample: int) -> None:
    store, unit = stored_run(), plan_units(record_of())[5]
    change(store, unit, one_vote_moved(unit.positions[0], phase, first_sample))
    recorder = Recorder()
    (difference,) = verify(store, 8, observer=recorder).differences
    assert (difference.phase, difference.first_sample) == (phase, first_sample)
    assert recorder.events == [f"1 difference, first {difference}"]


def test_the_first_difference_is_named_with_both_counts() -> None:
    store, unit = stored_run(), plan_units(record_of())[0]
    change(store, unit, one_vote_moved(1))
    counted = next(row for row in rows_of(record_of(), unit) if row.image_id == 1 and row.phase == "estimation").votes
    with pytest.raises(
        CountsError,
        match=re.escape(
            f"{unit.key}: image 1, estimation samples 0..49: class 0 has {counted[0] + 1} votes, here {counted[0]}, "
            f"class 1 has {counted[1] - 1} votes, here {counted[1]}; unless"
        ),
    ):
        verify(store, 8).check()


def test_many_classes_are_not_all_named() -> None:
    store, unit = stored_run(), plan_units(record_of())[0]
    change(store, unit, lambda row: replace(row, votes=row.votes[::-1].copy()))
    difference = verify(store, 8).differences[0]
    assert str(difference).endswith(f"and {len(difference.classes) - 4} more classes")


@pytest.mark.parametrize("changes", [{}, OTHER_KIND])
def test_another_label_is_found(changes: dict[str, Any]) -> None:
    store, unit = stored_run(changes=changes), plan_units(record_of())[3]
    change(store, unit, lambda row: replace(row, label=7))
    report = verify(store, 8)
    assert {difference.labels for difference in report.differences} == {(7, 0)}
    assert {difference.unit for difference in report.differences} == {unit.key}
    assert "the label is 7, here 0" in str(report.differences[0])


@pytest.mark.parametrize(
    "changed",
    [
        lambda row: None if row.phase == "selection" else row,
        lambda row: replace(row, stage=1),
        lambda row: replace(row, sub_image=1),
        lambda row: replace(row, image_id=row.image_id + 1),
    ],
)
def test_rows_that_are_not_the_units_are_refused(changed: Callable[[CountsRow], CountsRow | None]) -> None:
    store, unit = stored_run(), plan_units(record_of())[0]
    assert unit.sub_image == 0
    change(store, unit, changed)
    with pytest.raises(CountsError, match=f"counts part {unit.key}: its rows are not those of its images and samples"):
        verify(store, 8)


def test_a_damaged_part_is_refused() -> None:
    store, unit = stored_run(), plan_units(record_of())[0]
    store.put(unit.key, store.get(unit.key)[:-9])
    with pytest.raises(CountsError, match=f"counts part {unit.key}: truncated"):
        verify(store, 8)


def test_what_is_stored_of_an_unfinished_run_is_verified() -> None:
    report = verify(stored_run(units=3), 10)
    assert (report.units, len(report.checked)) == (3, 3)
    with pytest.raises(CountsError, match="no counts to verify yet; run `drs-ray certify` first"):
        verify(stored_run(units=0))
    with pytest.raises(CountsError, match="no drs-ray run here"):
        verify(MemoryStore())


def test_compacted_units_are_verified_like_others() -> None:
    store, units = stored_run(), plan_units(record_of())
    change(store, units[6], one_vote_moved(units[6].positions[0]))
    before = verify(store, 8, seed=1)
    compact_run(store, before.record)
    assert units[0].key not in store.objects
    after = verify(store, 8, seed=1)
    assert (after.checked, after.differences) == (before.checked, before.differences)
    assert len(after.differences) == 1


def test_a_seed_repeats_the_draw_and_without_one_it_is_another_each_time() -> None:
    store = stored_run()
    first = verify(store, 3)
    assert verify(store, 3, seed=first.seed).checked == first.checked
    assert len({verify(store, 1).seed for _ in range(4)}) == 4


def units_of(*blocks_of_each: int) -> list[Unit]:
    draws = (Draw("estimation", 0, 0, 10),)
    return [Unit(k, (i, i), (i,), draws) for k, blocks in enumerate(blocks_of_each) for i in range(blocks)]


def test_sub_images_are_covered_evenly_and_units_are_equally_likely() -> None:
    stored = units_of(5, 5, 5)
    seen = Counter[Unit]()
    for seed in range(600):
        chosen = choose_units(stored, 4, seed)
        each = Counter(unit.sub_image for unit in chosen)
        assert sorted(each.values()) == [1, 1, 2]
        assert len(set(chosen)) == 4
        seen.update(chosen)
    assert min(seen[unit] for unit in stored) > 120  # 160 on average
    assert max(seen.values()) < 200


def test_a_sub_image_with_few_units_leaves_its_turns_to_the_others() -> None:
    assert Counter(unit.sub_image for unit in choose_units(units_of(1, 9), 6, 0)) == {0: 1, 1: 5}
    assert len(choose_units(units_of(2, 3), 99, 0)) == 5


def test_the_draw_is_the_same_for_ever() -> None:
    """An auditor's seed must mean the same units with the next version."""
    drawn = [(unit.sub_image, unit.block[0]) for unit in choose_units(units_of(4, 4), 5, 1)]
    assert drawn == [(0, 0), (1, 0), (0, 3), (1, 2), (0, 2)]


@settings(derandomize=True, deadline=None, database=None)
@given(st.data())
def test_a_chosen_unit_is_chosen_too_among_fewer(data: st.DataObject) -> None:
    """What the level of adaptive runs rests on."""
    stored = units_of(*data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)))
    count, seed = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 9))
    fewer = [unit for unit in stored if data.draw(st.booleans())]
    assert set(choose_units(stored, count, seed)) & set(fewer) <= set(choose_units(fewer, count, seed))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (OTHER_KIND, "the run began on another CPU, this is"),
        ({"hardware": "cuda (of the workers)"}, "the run began on cuda (of the workers)"),
        ({"software": {"torch": "1.0", "numpy": metadata.version("numpy")}}, "the run began with torch 1.0, this is"),
        ({"software": {"torch": metadata.version("torch")}}, "the run began with numpy None, this is"),
        ({"software": HERE | {"diffusers": "0.1"}}, "the run began with diffusers 0.1, this is"),
        ({"software": HERE | {"no-such-library": "0.1"}}, "the run began with no-such-library 0.1, this is None"),
    ],
)
def test_on_another_kind_votes_need_not_be_the_same(changes: dict[str, Any], why: str) -> None:
    store, unit = stored_run(changes=changes), plan_units(record_of())[0]
    change(store, unit, one_vote_moved(0))
    recorder = Recorder()
    report = verify(store, 8, observer=recorder)
    assert why in report.inexact
    assert [why in event for event in recorder.events] == [True]
    assert report.comparisons == 2 * 24  # selection and estimation of an image in a unit
    report.check()


def test_other_versions_of_what_computes_no_logit_are_no_other_kind() -> None:
    assert verify(stored_run(changes={"software": HERE | {"python": "3.1", "pyarrow": "1", "ray": "1"}})).exact


def test_the_number_of_cores_is_no_kind() -> None:
    kind = hardware_of("cpu").partition(",")[0]
    assert verify(stored_run(changes={"hardware": f"{kind}, 96 cores"})).exact


def test_independent_noise_fails_a_run_without_fault_no_more_often_than_the_level(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, failed = stored_run(changes=OTHER_KIND), 0
    for noise in range(1, 61):
        monkeypatch.setattr(Runner, "noise", noise)
        failed += bool(verify(store, 8, level=0.5, seed=noise).differences)
    assert 0 < failed <= 30  # at a level this large it must fail now and then


def test_votes_of_another_classifier_are_found_where_they_shift_as_far_as_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Runner, "noise", 5)
    store, record = stored_run(changes=OTHER_KIND), record_of()
    shift = verify(store, 8).shifts["estimation"]
    assert shift < verify(store, 8).shifts["selection"]
    for unit in plan_units(record)[:2]:
        wrong = encode_part(rows_of(record, unit, own=0.7 - shift), record.run_id, unit.key)
        store.put(unit.key, wrong)
    report = verify(store, 8, images=3)
    wrong_images = {(difference.unit, difference.image_id) for difference in report.differences}
    assert len(wrong_images) >= 5  # of 6, each with 95 %
    assert {difference.unit for difference in report.differences} == {unit.key for unit in plan_units(record)[:2]}
    assert all({0, 1} & set(difference.classes) for difference in report.differences)
    assert not verify(store, 8, images=3, level=1e-90).differences


def test_the_level_is_shared_by_all_comparisons_that_there_can_be() -> None:
    record = record_of()
    assert _level_of_each(record, 1e-3, 4, 2) == pytest.approx(1e-3 / (4 * 2 * 2 * CLASSES))
    assert _level_of_each(record, 1e-3, 999, 999) == pytest.approx(1e-3 / (8 * 3 * 2 * CLASSES))
    adaptive = record_of(stages=3)
    assert _level_of_each(adaptive, 1e-3, 4, 2) == pytest.approx(1e-3 / (4 * 2 * 2 * CLASSES * 3))
    cut = record_of(stages=3, samples_per_unit=100)  # stages of 1, 1 and 2 units of a sub-image
    assert [len(stage_units(cut, (0, 2), stage, (0,))) for stage in range(3)] == [2, 2, 4]
    assert _level_of_each(cut, 1e-3, 4, 2) == pytest.approx(1e-3 / (4 * 2 * 2 * CLASSES * 4))


def test_another_device_gets_a_forward_batch_of_its_own() -> None:
    seen: list[RunRecord] = []

    class Watching(Runner):
        def __init__(self, record: RunRecord, sub_image: int, dataset: object = None) -> None:
            super().__init__(record, sub_image, dataset)
            seen.append(record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recount, "UnitRunner", Watching)
        verify(stored_run(batch=1000))
        verify(stored_run(batch=1000, device="cuda", gpus_per_worker=1)).check()
    batches = [(record.config.engine.device, record.config.engine.batch) for record in seen]
    assert batches == [("cpu", 1000)] * 2 + [("cpu", 125)] * 2


def test_a_run_for_cuda_is_verified_on_the_cpu_where_there_is_no_gpu() -> None:
    store = stored_run(device="cuda")
    report = verify(store)
    assert report.device == "cpu"
    assert report.inexact == "the run is for cuda, this is cpu"
    with pytest.raises(ConfigError, match="device: cuda needs a GPU and this machine has none; use cpu"):
        verify(store, device="cuda")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": 0}, "units must be >= 1, got 0"),
        ({"images": 0}, "images must be >= 1, got 0"),
        ({"level": 0.0}, r"level must be in \(0, 1\), got 0"),
        ({"device": "tpu"}, "device must be cpu or cuda, got tpu"),
        ({"overrides": ["noise.seed=3"]}, "--set noise.seed=3: the run is taken as it is, only dataset.root"),
        ({"overrides": ["dataset.images.stop=3"]}, "the run is taken as it is"),
        ({"overrides": ["classifiers.0.sigma=3"]}, "the run is taken as it is"),
        ({"overrides": ["classifiers.5.checkpoint=x"]}, "'5' must be an index below 2"),
        ({"overrides": ["classifiers.5.entry=x"]}, "'5' must be an index below 2"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        verify(stored_run(), **options)


def test_overrides_say_where_things_are() -> None:
    overrides = ["dataset.root=/elsewhere", "classifiers.1.checkpoint=other.safetensors"]
    config = verify(stored_run(), overrides=overrides).record.config
    assert config.dataset.root == "/elsewhere"
    assert [classifier.checkpoint for classifier in config.classifiers] == ["weights.safetensors", "other.safetensors"]


def test_the_store_is_only_read() -> None:
    class ReadOnly(MemoryStore):
        def put(self, key: str, data: bytes) -> None:
            raise AssertionError(key)

        create = put  # type: ignore[assignment]

    filled = stored_run()
    store = ReadOnly()
    store.objects = filled.objects
    read: Store = store
    verify(read).check()


# One image that was named.


def test_a_named_image_is_counted_again_in_all_of_its_units_and_alone() -> None:
    store, record = stored_run(samples_per_unit=100), record_of(samples_per_unit=100)
    report = verify(store, image=4)
    report.check()
    mine = [unit for unit in plan_units(record) if 4 in unit.positions]  # ids are positions here
    assert sorted(report.checked) == sorted(unit.key for unit in mine)
    assert {unit.positions for unit in Runner.asked} == {(4,)}
    assert report.samples == 2 * (50 + 400)
    assert (report.image, report.images, report.share_found) == (4, len(mine), 1.0)


def test_a_wrong_vote_of_a_named_image_is_found_and_of_another_is_not_looked_for() -> None:
    store, unit = stored_run(), plan_units(record_of())[0]
    change(store, unit, one_vote_moved(0))
    wrong = record_of().image_ids[unit.positions[0]]
    found = verify(store, image=wrong)
    assert [(item.unit, item.image_id) for item in found.differences] == [(unit.key, wrong)]
    with pytest.raises(CountsError, match="1 of 10 comparisons differ, in 1 of 2 units checked"):
        found.check()
    verify(store, image=record_of().image_ids[unit.positions[1]]).check()


def test_a_named_image_must_be_there() -> None:
    with pytest.raises(ConfigError, match=r"image 12 is not of the run in memory \(12 images\); nearest: 9, 10, 11$"):
        verify(stored_run(), image=12)
    with pytest.raises(CountsError, match="memory: no counts of image 11 to verify yet; run `drs-ray certify` first"):
        verify(stored_run(units=2), image=11)


def test_the_level_of_a_named_image_is_shared_by_its_comparisons() -> None:
    assert _level_of_one_image(record_of(), 1e-3) == pytest.approx(1e-3 / (2 * 2 * CLASSES))
    adaptive = record_of(stages=3)  # without R, for nothing was drawn
    assert _level_of_one_image(adaptive, 1e-3) == pytest.approx(1e-3 / (3 * 2 * 2 * CLASSES))


def test_independent_noise_fails_named_images_no_more_often_than_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    store, failed = stored_run(changes=OTHER_KIND), 0
    for noise in range(1, 121):
        monkeypatch.setattr(Runner, "noise", noise)
        failed += bool(verify(store, image=noise % 12, level=0.5).differences)
    assert 0 < failed <= 60  # at a level this large it must fail now and then
    monkeypatch.setattr(Runner, "noise", 5)
    unit = plan_units(record_of())[0]
    store.put(unit.key, encode_part(rows_of(record_of(), unit, own=0.4), record_of().run_id, unit.key))
    assert verify(store, image=record_of().image_ids[unit.positions[0]]).differences
