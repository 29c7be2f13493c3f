"""A short measured probe: how many samples per second a worker draws of each sub-image. Nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from drs_ray.config import EngineConfig
from drs_ray.counts.plan import Draw, Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.executor import Executor
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Measured

PROBE_SECONDS = 1.0
PROBE_WORKERS = 4
"""So many measurements at least, where there are workers for them: they share GPUs and memory as in the run."""


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


def workers_of(engine: EngineConfig, executor: Executor) -> int:
    """How many workers a run will have: those asked for, or those that the cluster has room for now."""
    return engine.workers if engine.workers is not None else executor.room(engine)


def measure(record: RunRecord, executor: Executor, observer: Observer) -> dict[int, Speed]:
    """The speed of every sub-image's classifier on workers as the run will have them; those that fail are left out.

    Classifiers of one architecture, with the same arguments and the same shape of input, are as fast as each other:
    one of each kind is measured, by several workers at a time.

    Raises:
        DrsError: a worker cannot start, or none can be had.
    """
    observer.step("measuring")
    kinds = _kinds(record)
    leaders = sorted(set(kinds.values()))
    each = -(-min(PROBE_WORKERS, workers_of(record.config.engine, executor)) // len(leaders))
    units = [
        Unit(leader, (at, at), (at % len(record.image_ids),), (Draw("estimation", 0, 0, record.config.noise.block),))
        for at in range(each)
        for leader in leaders
    ]
    measured = executor.measure(units, record, observer)
    for leader in leaders:
        if leader not in measured:
            observer.event(
                f"warning: sub-image {leader} could not be measured: its classifier failed, or its workers died",
                "warning",
                sub_image=leader,
            )
    found = {leader: Speed.of(mine) for leader, mine in measured.items()}
    return {sub_image: found[leader] for sub_image, leader in kinds.items() if leader in found}


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
