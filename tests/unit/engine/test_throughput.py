"""How fast parts come in: bursts, long units, stalls and first parts must not tilt it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from drs_ray.engine.throughput import WINDOW_SECONDS, Meter, throughput_of

SAMPLES = 100


def arrivals(workers: int, unit_seconds: float, end: float, spread: float = 0.0) -> list[tuple[float, int]]:
    """Parts of workers that begin together at 0; a unit takes its seconds, give or take the share `spread`."""

    def of_one(rng: random.Random) -> Iterator[tuple[float, int]]:
        moment = rng.random() * min(1.0, unit_seconds / 10)
        while True:
            moment += unit_seconds * (1 + spread * rng.uniform(-1, 1))
            if moment > end:
                return
            yield moment, SAMPLES

    return [part for worker in range(workers) for part in of_one(random.Random(worker))]


@pytest.mark.parametrize(
    ("workers", "unit_seconds", "spread"),
    [(1, 0.05, 0.1), (8, 5, 0.05), (8, 30, 0.01), (64, 30, 0.3), (64, 120, 0.01), (1, 1200, 0.05), (200, 1200, 0.01)],
)
@pytest.mark.parametrize("units", [2.5, 4.9, 9.1])
def test_the_speed_is_that_of_all_workers(workers: int, unit_seconds: float, spread: float, units: float) -> None:
    end = max(units * unit_seconds, 60.0)
    speed = throughput_of(arrivals(workers, unit_seconds, end, spread), 0.0, end).samples_per_second
    assert speed == pytest.approx(workers * SAMPLES / unit_seconds, rel=0.2)


def test_a_first_burst_of_many_workers_is_not_taken_for_their_speed() -> None:
    parts = arrivals(64, 600, 660)
    assert len(parts) == 64
    assert throughput_of(parts, 0.0, 660.0).samples_per_second == pytest.approx(64 * SAMPLES / 600, rel=0.01)


def test_one_part_tells_how_long_a_unit_takes() -> None:
    pace = throughput_of([(1040.0, 500)], 1000.0, 1050.0)
    assert (pace.samples_per_second, pace.longest_gap) == (12.5, 40.0)


@pytest.mark.parametrize("parts", [[], [(5.0, 100)], [(10.0, 100)]], ids=["none", "of an earlier session", "at once"])
def test_without_a_part_that_took_time_there_is_no_speed(parts: list[tuple[float, int]]) -> None:
    assert throughput_of(parts, 10.0, 60.0).samples_per_second is None


def test_long_ago_does_not_count() -> None:
    slow = [(10.0 * i, SAMPLES) for i in range(1, 100)]
    fast = [(1000.0 + i, SAMPLES) for i in range(int(WINDOW_SECONDS) + 1)]
    pace = throughput_of(slow + fast, 0.0, fast[-1][0])
    assert pace.samples_per_second == pytest.approx(SAMPLES)
    assert pace.longest_gap == 10.0  # the one that ends in the window


def test_the_order_and_the_sizes_of_parts_do_not_matter() -> None:
    parts = [(float(i), 10 * (1 + i % 3)) for i in range(1, 301)]
    assert throughput_of(parts[::-1], 0.0, 300.0) == throughput_of(parts, 0.0, 300.0)
    assert throughput_of(parts, 0.0, 300.0).samples_per_second == pytest.approx(20, rel=0.01)


@pytest.mark.parametrize(("workers", "unit_seconds", "end"), [(4, 0.01, 2000), (8, 30, 300), (8, 1200, 6100)])
def test_a_meter_measures_the_same_in_bounded_memory(workers: int, unit_seconds: float, end: float) -> None:
    parts = sorted(arrivals(workers, unit_seconds, end, 0.02))
    meter = Meter(0.0)
    for moment, samples in parts:
        meter.add(moment, samples)
    expected = throughput_of(parts, 0.0, end).samples_per_second
    assert meter.throughput(end).samples_per_second == pytest.approx(expected, rel=0.05)
    assert len(meter._parts) <= 1000
