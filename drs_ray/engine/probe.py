"""Measures how many samples per second a worker draws of each sub-image. Nothing is written."""

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
"""Least number of measurements, if there are as many workers: they share GPUs and memory as in the run."""


@dataclass(frozen=True)
class Speed:
    """Samples per second of one worker for one sub-image: mean, minimum and maximum over several workers.

    classes: mean number of classes with votes in a range of samples.
    """

    mean: float
    least: float
    most: float
    classes: float = 1.0

    @classmethod
    def of(cls, measured: Sequence[Measured]) -> Speed:
        """The speed from several measurements."""
        rates = [item.rate for item in measured]
        return cls(mean(rates), min(rates), max(rates), mean(item.classes for item in measured))


def slowest(speeds: Mapping[int, Speed]) -> float | None:
    """Samples per second of the slowest sub-image; None if nothing was measured."""
    return min((speed.mean for speed in speeds.values()), default=None)


def workers_of(engine: EngineConfig, executor: Executor) -> int:
    """Number of workers of a run: `engine.workers`, or else as many as the cluster has room for now."""
    return engine.workers if engine.workers is not None else executor.room(engine)


def measure(record: RunRecord, executor: Executor, observer: Observer) -> dict[int, Speed]:
    """The speed of every sub-image's classifier on workers of the run, without classifiers that fail.

    Classifiers with the same architecture, arguments and input shape are assumed to be equally fast: one of each kind
    is measured, by several workers at a time.

    Raises:
        DrsError: a worker cannot start, or none finds room.
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
    found = {leader: Speed.of(results) for leader, results in measured.items()}
    return {sub_image: found[leader] for sub_image, leader in kinds.items() if leader in found}


def _kinds(record: RunRecord) -> dict[int, int]:
    """For each sub-image, the first sub-image with the same kind of classifier."""
    from drs_ray.smoothing.partition import partition_of

    config, channels = record.config, record.dataset.image_shape[0]
    partition = partition_of(config.partition, record.dataset.image_shape)
    work = [
        (
            classifier.architecture,
            classifier.arguments,
            classifier.architecture == "transformers" and classifier.checkpoint,  # the checkpoint says how large it is
            classifier.pixels,
            len(classifier.members),
            (before := classifier.denoiser) and (before.architecture, before.arguments),
            before and before.architecture == "diffusers" and before.checkpoint,  # as well
            partition.layout_shape(sub_image, channels),
        )
        for sub_image, classifier in enumerate(config.classifiers)
    ]
    return {sub_image: work.index(mine) for sub_image, mine in enumerate(work)}
