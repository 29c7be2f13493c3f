"""The engine in the driver's own process: for debugging, notebooks and tests. The same units, the same rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from drs_ray.engine.ledger import Ledger
from drs_ray.engine.observer import Observer
from drs_ray.engine.plan import Unit
from drs_ray.engine.worker import UnitRunner, make_cuda_reproducible, threads_of
from drs_ray.errors import DrsError
from drs_ray.results.run_record import RunRecord
from drs_ray.results.store import Store


def run_inline(units: Sequence[Unit], record: RunRecord, store: Store, observer: Observer) -> dict[Unit, str]:
    """Do the units one after another.

    Returns:
        The units that were set aside, with the reason.
    """
    engine = record.config.engine
    ledger = Ledger(observer)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads_of(engine.cpus_per_worker))
    if engine.device == "cuda":
        make_cuda_reproducible()
    try:
        for sub_image in range(record.sub_images):
            mine = [unit for unit in units if unit.sub_image == sub_image]
            if not mine:
                continue
            runner = UnitRunner(record, sub_image)
            for unit in mine:
                try:
                    runner.run(unit, store)
                except DrsError as error:
                    ledger.raised(unit, str(error))
                else:
                    ledger.done(unit)
    finally:
        torch.set_num_threads(threads)
    return ledger.set_aside
