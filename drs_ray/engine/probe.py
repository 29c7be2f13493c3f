"""What a run will take, from a short measured probe of each sub-image's classifier. Nothing is written."""

from __future__ import annotations

import time
from dataclasses import dataclass

from drs_ray.config import RunConfig
from drs_ray.engine.certify import describe_run, open_session, resolve
from drs_ray.engine.observer import Observer
from drs_ray.engine.plan import Draw, Unit, plan_units
from drs_ray.errors import ConfigError
from drs_ray.results.run_record import RunRecord

PROBE_SECONDS = 2.0


@dataclass(frozen=True)
class RunPlan:
    """A run's size, and its expected cost on `workers` workers like the one that was probed.

    samples_per_second: one per sub-image, of one worker on this machine's device.
    """

    record: RunRecord
    units: int
    samples: int
    samples_per_second: tuple[float, ...]
    workers: int

    @property
    def worker_hours(self) -> float:
        """Hours of one worker; GPU hours where a worker has a GPU of its own."""
        per_sub_image = self.samples / self.record.sub_images
        return sum(per_sub_image / rate for rate in self.samples_per_second) / 3600

    @property
    def hours(self) -> float:
        """Expected wall time in hours on all workers."""
        return self.worker_hours / self.workers


def plan_run(config: RunConfig, observer: Observer | None = None) -> RunPlan:
    """Size a run and measure how fast one worker draws votes here.

    Raises:
        ConfigError, DataError, ClassifierError: what `certify_run` would refuse.
    """
    observer = observer or Observer()
    with open_session(config.engine) as session:
        config = resolve(config, session)
        session.check(config.engine)
        _check_can_measure(config)
        record = describe_run(config, observer)
        units = plan_units(record)
        observer.step("measuring")
        rates = tuple(_measure(record, sub_image) for sub_image in range(record.sub_images))
        workers = record.config.engine.workers or session.room(record.config.engine)
    return RunPlan(record, len(units), sum(unit.samples for unit in units), rates, workers)


def _check_can_measure(config: RunConfig) -> None:
    import torch

    if config.engine.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "engine.device: plan measures on this machine, which has no GPU, and the run is for cuda; "
            "run it on a node with a GPU"
        )


def _measure(record: RunRecord, sub_image: int) -> float:
    """Samples per second of one worker: whole blocks of one image, after one to warm up, for about two seconds."""
    import torch

    from drs_ray.engine.worker import UnitRunner, threads_of

    threads = torch.get_num_threads()
    torch.set_num_threads(threads_of(record.config.engine.cpus_per_worker))
    try:
        runner = UnitRunner(record, sub_image)
        size = min(record.config.noise.block, record.config.budget.estimation)
        unit = Unit(sub_image, (0, 0), (0,), (Draw("estimation", 0, 0, size),))
        list(runner.count(unit))
        started = time.perf_counter()
        drawn = 0
        while time.perf_counter() - started < PROBE_SECONDS:
            list(runner.count(unit))
            drawn += size
        return drawn / (time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
