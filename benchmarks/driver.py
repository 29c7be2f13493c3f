"""What the driver itself can sustain: units per second that do nothing, on two workers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import ray

from drs_ray.config import EngineConfig
from drs_ray.engine.driver import Dispatcher, connect
from drs_ray.engine.observer import Observer
from drs_ray.engine.plan import Draw, Unit

UNITS = 4000
SECONDS_PER_UNIT = 30


class _Idle:
    """A worker whose units take no time."""

    def start(self) -> None:
        """Nothing to load."""

    def run(self, unit: Unit) -> None:
        """Nothing to do."""


def measure() -> Iterator[tuple[str, str, str]]:
    connect(EngineConfig(address="local"))
    try:
        actors = ray.remote(_Idle).options(num_cpus=0, max_restarts=0, max_task_retries=0)

        def start(sub_image: int) -> tuple[Any, Any]:
            actor = actors.remote()
            return actor, actor.start.remote()

        draw = Draw("estimation", 0, 0, 1)
        units = [Unit(index % 2, (index, index), (index,), (draw,)) for index in range(UNITS)]
        clock = _Clock()
        Dispatcher(
            units,
            start=start,
            call=lambda actor, unit: actor.run.remote(unit),
            further=lambda unit, result: [],
            limit=lambda: 4,
            needs="nothing",
            observer=clock,
        ).run(60.0)
    finally:
        ray.shutdown()
    rate = (UNITS - 1) / (clock.last - clock.first)
    yield (
        f"driver, units that do nothing (feeds {rate * SECONDS_PER_UNIT:,.0f} GPUs at 30 s)",
        f"{rate:,.0f}/s",
        ">= 500/s",
    )


class _Clock(Observer):
    """Times of the first and the last unit."""

    first = last = 0.0

    def unit_done(self, unit: Unit) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
