"""What each event of a run does to which metric. Ray's own classes check names, tags and values."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.metrics import Counter, Gauge, Histogram

from drs_ray.engine.outcome import Outcome
from drs_ray.engine.ray import metrics
from drs_ray.engine.ray.metrics import PUT_SECONDS, UNIT_SECONDS, MetricsObserver
from tests.unit.engine.factories import unit

RUN = (("run_id", "r"),)


def of(sub_image: int, **more: str) -> tuple[tuple[str, str], ...]:
    """The tags of a sub-image's metrics."""
    return tuple(sorted({"run_id": "r", "sub_image": str(sub_image), **more}.items()))


class Board:
    """What Ray was told, by name and tags: sums of counters, last values of gauges, all values of histograms."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counters: dict[tuple[str, Any], float] = {}
        self.gauges: dict[tuple[str, Any], float] = {}
        self.histograms: dict[tuple[str, Any], list[float]] = {}
        board = self

        def key(metric: Any, tags: dict[str, str]) -> tuple[str, Any]:
            return metric.info["name"], tuple(sorted(tags.items()))

        class Counted(Counter):  # type: ignore[misc]
            def inc(self, value: float, tags: dict[str, str]) -> None:
                super().inc(value, tags)
                name = key(self, tags)
                board.counters[name] = board.counters.get(name, 0) + value

        class Set(Gauge):  # type: ignore[misc]
            def set(self, value: float, tags: dict[str, str]) -> None:
                super().set(value, tags)
                board.gauges[key(self, tags)] = value

        class Observed(Histogram):  # type: ignore[misc]
            def observe(self, value: float, tags: dict[str, str]) -> None:
                super().observe(value, tags)
                board.histograms.setdefault(key(self, tags), []).append(value)

        monkeypatch.setattr(metrics, "Counter", Counted)
        monkeypatch.setattr(metrics, "Gauge", Set)
        monkeypatch.setattr(metrics, "Histogram", Observed)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    return Board(monkeypatch)


@pytest.fixture
def observer(board: Board) -> Iterator[MetricsObserver]:
    """Built, and told of everything, where no Ray is: this must neither fail nor start one."""
    assert not ray.is_initialized()
    yield MetricsObserver("r", todo=5)
    assert not ray.is_initialized()


def test_nothing_is_counted_before_anything_happens(board: Board, observer: MetricsObserver) -> None:
    observer.step("loading")
    observer.planned([unit(1)], 3)
    observer.event("a note")
    observer.event("resuming", "resumed", stored=3, todo=5)
    observer.event("warning: slow", "warning")
    assert (board.counters, board.gauges, board.histograms) == ({}, {}, {})


def test_a_stored_unit(board: Board, observer: MetricsObserver) -> None:
    observer.unit_done(unit(1), Outcome(2.5, 0.1))
    observer.unit_done(unit(2), Outcome(3.5, 0.2, put_retries=2))
    observer.unit_done(unit(3, sub_image=1), Outcome(4.5, 0.0))
    assert board.counters == {
        ("drs_ray_units_total", of(0)): 2,
        ("drs_ray_units_total", of(1)): 1,
        ("drs_ray_samples_total", of(0)): 20,
        ("drs_ray_samples_total", of(1)): 10,
        ("drs_ray_put_retries_total", RUN): 2,
    }
    assert board.histograms == {
        ("drs_ray_unit_seconds", RUN): [2.5, 3.5, 4.5],
        ("drs_ray_put_seconds", RUN): [0.1, 0.2, 0.0],
    }
    assert board.gauges == {("drs_ray_units_todo", RUN): 2}


def test_workers_and_what_they_have_to_do(board: Board, observer: MetricsObserver) -> None:
    observer.workers(0, 3, 2)
    observer.workers(1, 1, 0)
    assert board.gauges == {
        ("drs_ray_workers", of(0, state="working")): 3,
        ("drs_ray_workers", of(0, state="starting")): 2,
        ("drs_ray_workers", of(1, state="working")): 1,
        ("drs_ray_workers", of(1, state="starting")): 0,
        ("drs_ray_units_todo", RUN): 5,
    }
    observer.added([unit(6), unit(7)])
    observer.workers(0, 0, 0)
    assert board.gauges["drs_ray_workers", of(0, state="working")] == 0
    assert board.gauges["drs_ray_units_todo", RUN] == 7
    assert board.counters == {}


@pytest.mark.parametrize(
    ("kind", "fields", "counted"),
    [
        ("worker_lost", {"sub_image": 0, "reason": "killed"}, {"drs_ray_workers_lost_total": RUN}),
        ("worker_start_failed", {"sub_image": 0, "reason": "CUDA"}, {"drs_ray_worker_starts_failed_total": RUN}),
        (
            "unit_retried",
            {"unit": "counts/a", "reason": "killed"},
            {"drs_ray_units_retried_total": (("reason", "worker"), *RUN), "drs_ray_workers_lost_total": RUN},
        ),
        (
            "unit_not_stored",
            {"unit": "counts/a", "reason": "503"},
            {"drs_ray_units_retried_total": (("reason", "store"), *RUN)},
        ),
        ("unit_set_aside", {"unit": "counts/a", "reason": "NaN"}, {"drs_ray_units_set_aside_total": RUN}),
        (
            "unit_set_aside",
            {"unit": "counts/a", "reason": "took down 5 workers", "cause": "worker"},
            {"drs_ray_units_set_aside_total": RUN, "drs_ray_workers_lost_total": RUN},
        ),
    ],
)
def test_what_goes_wrong_is_counted_once(
    board: Board, observer: MetricsObserver, kind: str, fields: dict[str, Any], counted: dict[str, Any]
) -> None:
    observer.event("what happened", kind, **fields)
    assert board.counters == dict.fromkeys(counted.items(), 1)
    assert board.gauges == ({("drs_ray_units_todo", RUN): 4} if kind == "unit_set_aside" else {})


def test_what_is_done_and_what_is_set_aside_leave_nothing_to_do(board: Board, observer: MetricsObserver) -> None:
    for number in range(4):
        observer.unit_done(unit(number), Outcome(1.0, 0.1))
    observer.event("set aside", "unit_set_aside", unit=unit(4).key, reason="NaN")
    assert board.gauges == {("drs_ray_units_todo", RUN): 0}


def test_the_documents_list_every_metric(observer: MetricsObserver) -> None:
    text = (Path(__file__).parents[4] / "docs" / "operations.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `ray_(\w+)` \| (\w+) \| \w+ \| ([^|]*)\|", text, re.MULTILINE)
    made = [metric for metric in vars(observer).values() if isinstance(metric, Counter | Gauge | Histogram)]
    assert len(made) == 11
    assert {(name, kind, frozenset(re.findall(r"`(\w+)`", tags))) for name, kind, tags in listed} == {
        (
            metric.info["name"],
            next(kind.__name__.lower() for kind in (Counter, Gauge, Histogram) if isinstance(metric, kind)),
            frozenset(metric.info["tag_keys"]) - {"run_id"},
        )
        for metric in made
    }


def test_buckets_grow() -> None:
    for bounds in (UNIT_SECONDS, PUT_SECONDS):
        assert bounds[0] > 0
        assert sorted(set(bounds)) == bounds
