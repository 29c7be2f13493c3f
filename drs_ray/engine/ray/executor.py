"""Computes units in Ray workers, on a Ray of this machine (`local`) or on a cluster.

Ray is imported and connected only when it is needed. A connection that this process already has is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from drs_ray.config import EngineConfig
from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.executor import check_this_machine
from drs_ray.engine.observer import Observer, Observers
from drs_ray.engine.outcome import Measured
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.models import precision
from drs_ray.storage import Store


class RayExecutor:
    """See `drs_ray.engine.executor.Executor`. The resources of a local Ray are read from this machine."""

    def __init__(self, engine: EngineConfig, observer: Observer) -> None:
        """observer: receives a note of the Ray that `auto` found."""
        self._engine = engine
        self._is_local = engine.address == "local"
        self._observer = observer
        self._is_connected = False
        self._is_ours = False

    def has_gpus(self) -> bool:
        """See `Executor.has_gpus`."""
        if self._is_local:
            return bool(torch.cuda.is_available())
        self._connect()
        from drs_ray.engine.ray import driver

        return driver.cluster_gpus(self._engine) > 0

    def has_bfloat16(self, device: str, observer: Observer) -> bool:
        """See `Executor.has_bfloat16`."""
        if self._is_local:
            return precision.has_bfloat16(device)
        self._connect()
        from drs_ray.engine.ray import driver

        return driver.workers_have_bfloat16(self._engine, device, observer)

    def check(self, engine: EngineConfig) -> None:
        """See `Executor.check`."""
        if self._is_local:
            check_this_machine(engine)

    def room(self, engine: EngineConfig) -> int:
        """See `Executor.room`."""
        self._connect()
        from drs_ray.engine.ray import driver

        return max(1, driver.room(engine))

    def measure(self, units: Sequence[Unit], record: RunRecord, observer: Observer) -> Mapping[int, Sequence[Measured]]:
        """See `Executor.measure`."""
        self._connect()
        from drs_ray.engine.ray import driver

        return driver.measure_on_ray(units, record, observer)

    def run(
        self, units: Sequence[Unit], record: RunRecord, remaining: RemainingUnits, store: Store, observer: Observer
    ) -> dict[Unit, str]:
        """See `Executor.run`. Events also go to Ray's metrics."""
        observer.step("starting Ray workers")
        self._connect()
        from drs_ray.engine.ray import driver
        from drs_ray.engine.ray.metrics import MetricsObserver

        observers = Observers(observer, MetricsObserver(record.run_id, len(units)))
        return driver.run_on_ray(units, record, remaining, store.uri, observers)

    def close(self) -> None:
        """Stop or leave the Ray that this executor started or joined."""
        if self._is_ours:
            import ray

            ray.shutdown()

    def _connect(self) -> None:
        if not self._is_connected:
            from drs_ray.engine.ray.connection import connect

            self._is_ours = connect(self._engine, self._observer.event)
            self._is_connected = True
