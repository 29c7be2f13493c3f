"""How large units are: by hand for runs that one meets, and what holds for every run."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drs_ray.counts.plan import plan_units
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.sizing import (
    LATER_STAGES,
    MOST_IMAGES,
    MOST_IMAGES_UNMEASURED,
    UNITS_PER_WORKER,
    Sizes,
    is_small,
    most_samples,
    sized,
    unit_sizes,
)
from tests.unit.engine.factories import record_of

SECOND, UNIT = 1.0, 30.0


@pytest.mark.parametrize(
    ("images", "selection", "stages", "block", "workers", "rate", "sizes"),
    [
        # 100,100 samples of an image, 300,000 in 30 s: two images
        pytest.param(1000, 100, [100_000], 1000, 4, 10_000, Sizes(2, None), id="a small classifier"),
        # 12,000 in 30 s: an image takes 250 s and is cut
        pytest.param(500, 100, [100_000], 1000, 8, 400, Sizes(1, 12_000), id="a large classifier"),
        # 60,000 in 30 s: an image takes 50 s, less than twice as long
        pytest.param(500, 100, [100_000], 1000, 8, 2000, Sizes(1, None), id="an image too long, but not by much"),
        # 200 images x 1,100 for 8 x 8 units: 3,437 samples each, three images
        pytest.param(200, 100, [1000], 1000, 8, 1000, Sizes(3, None), id="a short run is cut for its workers"),
        # 200 x 1,100 for 8 x 8 units would be 0.34 s each: a second is 10,000 samples
        pytest.param(200, 100, [1000], 1000, 8, 10_000, Sizes(9, None), id="but not into units below a second"),
        pytest.param(10**6, 10, [100], 100, 8, 100_000, Sizes(MOST_IMAGES, None), id="cheap images"),
        # 30 s are 60,000 samples or 54 images; a later piece is 4 x 1,111, in blocks 4,000; 16,000 are more than two
        pytest.param(
            5000, 100, [1000, 1000, 2000, 4000, 8000, 16_000], 1000, 2, 2000, Sizes(54, 4000), id="late stages cut"
        ),
        pytest.param(5000, 100, [1000, 1000, 2000, 4000, 8000], 1000, 2, 2000, Sizes(54, None), id="not for little"),
        # 400 images for 2 x 8 units: 25 are more than 16
        pytest.param(400, 100, [1000], 1000, 2, None, Sizes(MOST_IMAGES_UNMEASURED, None), id="not measured"),
        pytest.param(100, 100, [1000], 1000, 2, None, Sizes(6, None), id="not measured, few images"),
        pytest.param(3, 100, [1000], 1000, 100, None, Sizes(1, None), id="fewer images than workers"),
    ],
)
def test_runs_that_one_meets(
    images: int, selection: int, stages: list[int], block: int, workers: int, rate: float | None, sizes: Sizes
) -> None:
    target, shortest = (None, 0.0) if rate is None else (rate * UNIT, rate * SECOND)
    assert unit_sizes(images, selection, stages, block, workers, target, shortest) == sizes


samples = st.integers(1, 200_000)


@st.composite
def measured_runs(draw: st.DrawFn) -> dict[str, Any]:
    """Arguments of `unit_sizes`; a unit takes a second to a minute, at 1 to 1,000,000 samples per second."""
    rate = draw(st.floats(1.0, 1e6))
    return {
        "images": draw(st.integers(1, 10**6)),
        "selection": draw(samples),
        "stages": draw(st.lists(samples, min_size=1, max_size=6)),
        "block": draw(st.sampled_from([1, 50, 1000])),
        "workers": draw(st.integers(1, 10_000)),
        "target": rate * draw(st.floats(1.0, 60.0)),
        "shortest": rate,
    }


@given(measured_runs())
def test_a_unit_takes_no_longer_than_it_should(run: dict[str, Any]) -> None:
    sizes = unit_sizes(**run)
    first = run["selection"] + run["stages"][0]
    if sizes.images_per_unit > 1:
        assert sizes.images_per_unit * first <= run["target"]
    late = LATER_STAGES if len(run["stages"]) > 1 else 1
    longest = max(run["stages"]) if sizes.samples_per_unit is None else sizes.samples_per_unit
    in_one_unit = sizes.images_per_unit * min(longest, max(run["stages"]))
    # Twice the target before an image is cut; a block is never cut.
    assert in_one_unit <= max(2 * late * run["target"], 2 * sizes.images_per_unit * run["block"])


@given(measured_runs())
def test_sizes_are_whole_blocks_and_within_bounds(run: dict[str, Any]) -> None:
    sizes = unit_sizes(**run)
    assert 1 <= sizes.images_per_unit <= MOST_IMAGES
    if sizes.samples_per_unit is not None:
        assert sizes.samples_per_unit >= run["block"]
        assert sizes.samples_per_unit % run["block"] == 0
        assert 2 * sizes.samples_per_unit < max(run["stages"])


@given(measured_runs())
def test_no_unit_is_needlessly_short(run: dict[str, Any]) -> None:
    """Half a second of work at least, unless 1,000 images or all samples of one are less."""
    sizes = unit_sizes(**run)
    first = run["selection"] + run["stages"][0]
    if sizes.samples_per_unit is not None and run["block"] <= run["shortest"]:
        assert sizes.images_per_unit * sizes.samples_per_unit >= run["shortest"] / 2
    if sizes.images_per_unit < MOST_IMAGES:
        assert (sizes.images_per_unit + 1) * first >= run["shortest"]


@given(measured_runs())
def test_a_run_that_is_long_enough_has_work_for_every_worker(run: dict[str, Any]) -> None:
    """Eight units each, but where an image is not worth cutting: two at least. (Selection samples are never cut.)"""
    run["stages"] = [max(run["selection"], run["stages"][0])]
    (stage,) = run["stages"]
    share = run["images"] * (run["selection"] + stage) / (UNITS_PER_WORKER * run["workers"])
    sizes = unit_sizes(**run)
    units = -(-run["images"] // sizes.images_per_unit) * -(-stage // (sizes.samples_per_unit or stage))
    if share >= max(run["shortest"], run["block"]):
        assert units >= (UNITS_PER_WORKER if sizes.images_per_unit > 1 else 2) * run["workers"]


@given(measured_runs(), st.floats(1.0, 10.0))
def test_faster_workers_have_no_smaller_units(run: dict[str, Any], times: float) -> None:
    faster = run | {"target": times * run["target"], "shortest": times * run["shortest"]}
    assert unit_sizes(**faster).images_per_unit >= unit_sizes(**run).images_per_unit


# records


def open_record(images: int = 12, **options: Any) -> RunRecord:
    """A run whose sizes are to be chosen."""
    return record_of(images, images_per_unit=None, **options)


@given(
    images=st.integers(1, 40),
    estimation=st.integers(1, 2000),
    workers=st.integers(1, 50),
    rate=st.none() | st.floats(0.1, 1e5),
)
def test_the_units_of_a_sized_run_are_the_run(images: int, estimation: int, workers: int, rate: float | None) -> None:
    record = sized(open_record(images, estimation=estimation), workers, rate)
    units = plan_units(record)
    assert sum(unit.samples for unit in units) == most_samples(record) == images * 2 * (50 + estimation)
    assert len({unit.key for unit in units}) == len(units)
    assert record.images_per_unit <= images
    assert record.run_id == open_record(images, estimation=estimation).run_id


def test_numbers_of_the_config_stay() -> None:
    given = record_of(12, images_per_unit=5, samples_per_unit=100)
    assert sized(given, 100, 1e9) is given
    # 1,350 samples in 30 s, and a unit draws 150 of an image, not 450: nine images
    record = sized(open_record(10_000, samples_per_unit=100), 1, 45.0)
    assert (record.images_per_unit, record.config.engine.samples_per_unit) == (9, 100)


def test_seconds_per_unit_set_the_size() -> None:
    def images(seconds: float) -> int:
        return sized(open_record(10_000, seconds_per_unit=seconds), 2, 4500.0).images_per_unit

    assert [images(seconds) for seconds in (1.0, 2.0, 30.0)] == [10, 20, 300]


def test_the_samples_of_a_run() -> None:
    assert most_samples(record_of(12)) == 12 * 2 * 450
    assert most_samples(record_of(12, stages=3, estimation=800)) == 12 * 2 * 850


@pytest.mark.parametrize(
    ("images", "estimation", "workers", "small"),
    [
        (1000, 950, 8, True),  # 2,000,000 samples
        (1000, 951, 8, False),
        (12, 950, 12, True),  # 24 images of a sub-image: two for each of 12 workers
        (12, 950, 13, False),  # not enough to go round, and 24,000 samples: an image may have to be cut
        (10, 950, 13, True),  # 20,000
    ],
)
def test_which_runs_are_not_worth_measuring(images: int, estimation: int, workers: int, small: bool) -> None:
    assert is_small(open_record(images, estimation=estimation), workers) is small
