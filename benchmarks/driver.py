"""What the driver itself can sustain: units that do nothing on a few workers, and its own cost with thousands."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import ray

from drs_ray.config import EngineConfig
from drs_ray.counts.plan import Draw, Unit
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.ray import dispatcher
from drs_ray.engine.ray.connection import connect
from drs_ray.engine.ray.dispatcher import Dispatcher

UNITS = 4000
SECONDS_PER_UNIT = 30
WORKERS = (10, 10_000)
ANSWERS_AT_ONCE = 3  # of 10,000 workers at 30 s a unit, in the 8 ms that a ray.wait for so many takes
UNITS_PER_WORKER = 10


class _Idle:
    """A worker whose units take no time."""

    def start(self) -> None:
        """Nothing to load."""

    def run(self, unit: Unit) -> None:
        """Nothing to do."""


class _NoRay:
    """Stands for Ray where it costs nothing: some calls have always ended."""

    def __init__(self) -> None:
        self._open: deque[object] = deque()

    def start(self, sub_image: int) -> tuple[object, object]:
        return object(), self.call()

    def call(self, *actor_and_unit: object) -> object:
        call = object()
        self._open.append(call)
        return call

    def wait(self, calls: Sequence[object], num_returns: int, timeout: float) -> tuple[list[object], list[object]]:
        return [self._open.popleft() for _ in range(min(ANSWERS_AT_ONCE, num_returns))], []

    def get(self, call: object) -> None:
        """Nothing."""

    def kill(self, actor: object) -> None:
        """Nothing."""

    def is_initialized(self) -> bool:
        return True


def measure() -> Iterator[tuple[str, str, str]]:
    rate = _units_per_second()
    yield (
        f"driver, units that do nothing (feeds {rate * SECONDS_PER_UNIT:,.0f} GPUs at 30 s)",
        f"{rate:,.0f}/s",
        ">= 500/s",
    )
    for workers in WORKERS:
        yield (
            f"driver, its own cost per answer with {workers:,} workers",
            f"{_seconds_per_answer(workers) * 1e3:.3f} ms",
            "< 0.1 ms",
        )


def _units_per_second() -> float:
    """Through a real Ray, on four actors."""
    connect(EngineConfig(address="local"))
    try:
        actors = ray.remote(_Idle).options(num_cpus=0, max_restarts=0, max_task_retries=0)

        def start(sub_image: int) -> tuple[Any, Any]:
            actor = actors.remote()
            return actor, actor.start.remote()

        clock = _Clock()
        Dispatcher(
            _units(UNITS),
            start=start,
            call=lambda actor, unit: actor.run.remote(unit),
            done=clock.done,
            limit=lambda: 4,
            hang_seconds=60.0,
            needs="nothing",
            free=str,
            observer=clock,
        ).run(60.0)
    finally:
        ray.shutdown()
    return (UNITS - 1) / (clock.last - clock.first)


def _seconds_per_answer(workers: int) -> float:
    """Without Ray: what is left is the dispatcher."""
    units = _units(max(workers * UNITS_PER_WORKER, UNITS))
    fake = _NoRay()
    dispatching = Dispatcher(
        units,
        start=fake.start,
        call=fake.call,
        done=lambda unit, result: [],
        limit=lambda: workers,
        hang_seconds=60.0,
        needs="nothing",
        free=str,
        observer=Observer(),
    )
    with patch.object(dispatcher, "ray", fake):
        started = time.perf_counter()
        dispatching.run(60.0)
        return (time.perf_counter() - started) / (workers + len(units))


def _units(count: int) -> list[Unit]:
    draw = Draw("estimation", 0, 0, 1)
    return [Unit(index % 2, (index, index), (index,), (draw,)) for index in range(count)]


class _Clock(Observer):
    """Times of the first and the last unit."""

    first = last = 0.0

    def done(self, unit: Unit, outcome: Outcome) -> list[Unit]:
        """It calls for no other."""
        self.last = time.perf_counter()
        self.first = self.first or self.last
        return []
