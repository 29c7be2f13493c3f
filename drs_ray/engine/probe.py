"""A short measured probe: how many samples per second a worker draws of each sub-image. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Protocol

from drs_ray.config import EngineConfig
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Measured
from drs_ray.engine.plan import Draw, Unit
from drs_ray.errors import DrsError
from drs_ray.results.run_record import RunRecord

PROBE_SECONDS = 1.0
PROBE_WORKERS = 4
"""So many measurements at least, where there are workers for them: they share GPUs and memory as in the run."""

Measurements = Mapping[int, Sequence[Measured]]
"""By sub-image; one that could not be measured is not there."""


class Prober(Protocol):
    """Where a run will be carried out: see `drs_ray.engine.certify.Session`."""

    def room(self, engine: EngineConfig) -> int:
        """How many workers would find room now."""

    def measure(self, units: list[Unit], record: RunRecord, observer: Observer) -> Measurements:
        """How fast workers are with each unit's classifier on each unit's image; the units are not carried out."""


@dataclass(frozen=True)
class Speed:
    """One worker's samples per second of one sub-image: the mean, and the least and the most of several workers.

    classes: how many classes get votes in a range of samples.
    """

    mean: float
    least: float
    most: float
    classes: float = 1.0

    @classmethod
    def of(cls, measured: Sequence[Measured]) -> Speed:
        """Several measurements together."""
        rates = [item.rate for item in measured]
        return cls(mean(rates), min(rates), max(rates), mean(item.classes for item in measured))


def slowest(speeds: Mapping[int, Speed]) -> float | None:
    """Samples per second of the sub-image that takes longest; None where nothing could be measured."""
    return min((speed.mean for speed in speeds.values()), default=None)


def workers_of(engine: EngineConfig, prober: Prober) -> int:
    """How many workers a run will have: those asked for, or those that the cluster has room for now."""
    return engine.workers if engine.workers is not None else prober.room(engine)


def measure(record: RunRecord, prober: Prober, observer: Observer) -> dict[int, Speed]:
    """The speed of every sub-image's classifier on workers as the run will have them; those that fail are left out.

    Classifiers of one architecture, with the same arguments and the same shape of input, are as fast as each other:
    one of each kind is measured, by several workers at a time.

    Raises:
        DrsError: a worker cannot start, or none can be had.
    """
    observer.step("measuring")
    kinds = _kinds(record)
    leaders = sorted(set(kinds.values()))
    each = -(-min(PROBE_WORKERS, workers_of(record.config.engine, prober)) // len(leaders))
    units = [
        Unit(leader, (at, at), (at % len(record.image_ids),), (Draw("estimation", 0, 0, record.config.noise.block),))
        for at in range(each)
        for leader in leaders
    ]
    measured = prober.measure(units, record, observer)
    for leader in leaders:
        if leader not in measured:
            observer.event(
                f"warning: sub-image {leader} could not be measured: its classifier failed, or its workers died",
                "warning",
                sub_image=leader,
            )
    found = {leader: Speed.of(mine) for leader, mine in measured.items()}
    return {sub_image: found[leader] for sub_image, leader in kinds.items() if leader in found}


def measure_inline(units: list[Unit], record: RunRecord) -> Measurements:
    """`Prober.measure` in this process."""
    from drs_ray.engine.worker import UnitRunner
    from drs_ray.models.torch_state import fixed_kernels

    engine = record.config.engine
    found: dict[int, list[Measured]] = {}
    with fixed_kernels(engine.device, engine.cpus_per_worker):
        dataset = None
        for unit in units:
            runner = UnitRunner(record, unit.sub_image, dataset)
            dataset = runner.dataset
            try:
                measured = runner.measure(unit, PROBE_SECONDS)
            except DrsError:  # the run itself will say what is wrong with which image
                continue
            found.setdefault(unit.sub_image, []).append(measured)
    return found


def _kinds(record: RunRecord) -> dict[int, int]:
    """For each sub-image the first one whose classifier does the same work."""
    from drs_ray.smoothing.partition import partition_of

    config, channels = record.config, record.dataset.image_shape[0]
    partition = partition_of(config.partition, record.dataset.image_shape)
    work = [
        (
            classifier.architecture,
            classifier.arguments,
            classifier.pixels,
            classifier.denoiser and (classifier.denoiser.architecture, classifier.denoiser.arguments),
            partition.layout_shape(sub_image, channels),
        )
        for sub_image, classifier in enumerate(config.classifiers)
    ]
    return {sub_image: work.index(mine) for sub_image, mine in enumerate(work)}
