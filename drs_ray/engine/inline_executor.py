"""Computes units in the driver's process, for debugging, notebooks and tests. The rows equal those from Ray workers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

import torch

from drs_ray.config import EngineConfig
from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.executor import check_this_machine
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Measured
from drs_ray.engine.probe import PROBE_SECONDS
from drs_ray.engine.remaining_units import RemainingUnits
from drs_ray.engine.unit_failures import RETRY_SECONDS, UnitFailures
from drs_ray.engine.unit_runner import UnitRunner
from drs_ray.errors import DeviceLostError, DrsError, StoreError
from drs_ray.models import precision
from drs_ray.models.torch_state import fixed_kernels
from drs_ray.storage import Store


class InlineExecutor:
    """See `drs_ray.engine.executor.Executor`."""

    def has_gpus(self) -> bool:
        """See `Executor.has_gpus`."""
        return bool(torch.cuda.is_available())

    def has_bfloat16(self, device: str, observer: Observer) -> bool:
        """See `Executor.has_bfloat16`."""
        return precision.has_bfloat16(device)

    def check(self, engine: EngineConfig) -> None:
        """See `Executor.check`."""
        check_this_machine(engine)

    def room(self, engine: EngineConfig) -> int:
        """One: this process."""
        return 1

    def measure(self, units: Sequence[Unit], record: RunRecord, observer: Observer) -> Mapping[int, Sequence[Measured]]:
        """See `Executor.measure`."""
        engine = record.config.engine
        found: dict[int, list[Measured]] = {}
        with fixed_kernels(engine.device, engine.cpus_per_worker):
            dataset = None
            for unit in units:
                runner = UnitRunner(record, unit.sub_image, dataset)
                dataset = runner.dataset
                try:
                    measured = runner.measure(unit, PROBE_SECONDS)
                except DeviceLostError:
                    raise
                except DrsError:  # the run itself will name the image and the cause
                    continue
                found.setdefault(unit.sub_image, []).append(measured)
        return found

    def run(
        self, units: Sequence[Unit], record: RunRecord, remaining: RemainingUnits, store: Store, observer: Observer
    ) -> dict[Unit, str]:
        """Compute the units one after another; see `Executor.run`."""
        engine = record.config.engine
        failures = UnitFailures(observer)
        with fixed_kernels(engine.device, engine.cpus_per_worker):
            runners: dict[int, UnitRunner] = {}
            queue = deque(sorted(units, key=lambda unit: unit.sub_image))
            while queue:
                unit = queue.popleft()
                if unit.sub_image not in runners:
                    shared = next((runner.dataset for runner in runners.values()), None)
                    runners[unit.sub_image] = UnitRunner(record, unit.sub_image, shared)
                try:
                    outcome = runners[unit.sub_image].run(unit, store)
                except DeviceLostError:  # all further units would fail too
                    raise
                except StoreError as error:
                    if failures.not_stored(unit, str(error)):
                        queue.append(unit)
                        time.sleep(RETRY_SECONDS)  # the store would fail for the next unit too
                    continue
                except DrsError as error:
                    failures.raised(unit, str(error))
                    continue
                failures.done()
                observer.unit_done(unit, outcome)
                further = remaining.done(unit, outcome)
                observer.added(further)
                observer.expected(remaining.later_samples)
                queue.extendleft(reversed(further))
        return failures.set_aside

    def close(self) -> None:
        """Do nothing: nothing was started."""
