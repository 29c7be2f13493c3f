"""The engine in the driver's own process: for debugging, notebooks and tests. The same units, the same rows."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

from drs_ray.engine.frontier import Frontier
from drs_ray.engine.ledger import RETRY_SECONDS, Ledger
from drs_ray.engine.observer import Observer
from drs_ray.engine.plan import Unit
from drs_ray.engine.worker import UnitRunner
from drs_ray.errors import DrsError, StoreError
from drs_ray.models.torch_state import fixed_kernels
from drs_ray.results.run_record import RunRecord
from drs_ray.results.store import Store


def run_inline(
    units: Sequence[Unit], record: RunRecord, frontier: Frontier, store: Store, observer: Observer
) -> dict[Unit, str]:
    """Do the units, and those that they call for, one after another.

    Returns:
        The units that were set aside, with the reason.
    """
    engine = record.config.engine
    ledger = Ledger(observer)
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
            except StoreError as error:
                if ledger.not_stored(unit, str(error)):
                    queue.append(unit)
                    time.sleep(RETRY_SECONDS)  # the next unit would meet the same store
                continue
            except DrsError as error:
                ledger.raised(unit, str(error))
                continue
            ledger.done(unit, outcome)
            if frontier.adaptive:
                further = frontier.done(unit, outcome)
                observer.added(further)
                queue.extendleft(reversed(further))
    return ledger.set_aside
