"""Estimates a run's units, samples, bytes and hours, from a short probe on the workers. Nothing is written.

The size of an adaptive run lies between two bounds: the first stage of all images, and all stages of all images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from drs_ray.config import RunConfig
from drs_ray.counts.encoding import CountsRow, encode_part
from drs_ray.counts.plan import Unit, blocks, stage_units
from drs_ray.counts.run_record import RunRecord, with_engine
from drs_ray.engine.description import describe_on
from drs_ray.engine.first_start import decide_first_start
from drs_ray.engine.observer import Observer
from drs_ray.engine.opening import open_executor
from drs_ray.engine.placement import Placement
from drs_ray.engine.probe import Speed, measure, workers_of
from drs_ray.errors import EngineError


@dataclass(frozen=True)
class Size:
    """Numbers of units, noise samples, bytes of parts, and hours of one worker."""

    units: int
    samples: int
    bytes: int
    worker_hours: float


@dataclass(frozen=True)
class RunPlan:
    """A run's size, and its expected time on `workers` workers like those that were measured.

    least, most: bounds of the size, equal for a fixed number of samples. speeds: of one worker, by sub-image.
    float32_speeds: in float32 without torch.compile; `speeds` if the run computes so. gpus, cpus: of one worker.
    """

    record: RunRecord
    least: Size
    most: Size
    speeds: Mapping[int, Speed]
    float32_speeds: Mapping[int, Speed]
    workers: int
    gpus: float
    cpus: float

    def hours(self, size: Size) -> float:
        """Expected wall time on all workers; a run with fewer units than workers uses one worker per unit."""
        return size.worker_hours / min(self.workers, size.units)

    @property
    def saving(self) -> float:
        """How many times longer the run would take in float32 without torch.compile."""
        seconds = (sum(1 / speed.mean for speed in speeds.values()) for speeds in (self.float32_speeds, self.speeds))
        return next(seconds) / next(seconds)

    def device_hours(self, size: Size) -> float:
        """GPU hours if workers have GPUs or a share of one, else CPU hours."""
        return size.worker_hours * (self.gpus or self.cpus)


def plan_run(config: RunConfig, observer: Observer | None = None) -> RunPlan:
    """Estimate a run's size and time; workers of the config's cluster are measured.

    Raises:
        ConfigError, DataError, ClassifierError: as `certify_run`.
        EngineError: no worker can be started, or a classifier fails on the image of the measurement.
    """
    from drs_ray.models.torch_state import plain_torch

    observer = observer or Observer()
    with plain_torch(), open_executor(config.engine, observer) as executor:
        described = describe_on(executor, config, observer)
        workers = workers_of(described.config.engine, executor)
        record, settled_speeds = decide_first_start(described, executor, observer)
        speeds = settled_speeds or measure(record, executor, observer)
        plain = with_engine(record, precision="float32", compile=False)
        float32_speeds = speeds if plain == record else measure(plain, executor, observer)
    missing = sorted(set(range(record.sub_images)) - (set(speeds) & set(float32_speeds)))
    if missing:
        raise EngineError(
            f"sub-image {missing[0]}: its speed could not be measured: its classifier failed on the image that was "
            "tried, or its worker died; run `drs-ray certify`, which names the image and the cause"
        )
    placement = Placement.of(record.config.engine)
    stages = [_stage_size(record, stage, speeds) for stage in range(len(record.schedule.samples))]
    return RunPlan(
        record,
        stages[0],
        _sum(stages),
        speeds,
        float32_speeds,
        max(1, workers),
        gpus=placement.gpus,
        cpus=placement.cpus,
    )


def _stage_size(record: RunRecord, stage: int, speeds: Mapping[int, Speed]) -> Size:
    """The size of one stage of all images. All blocks but the last one have the same size."""
    last = blocks(record)[-1]
    whole = (0, record.images_per_unit - 1)
    kinds = [(last, 1)] if last[0] == 0 else [(whole, len(blocks(record)) - 1), (last, 1)]
    units = samples = size = 0
    seconds = 0.0
    for (first, end), count in kinds:
        block_units = stage_units(record, (first, end), stage, range(first, end + 1))
        units += count * len(block_units)
        samples += count * sum(unit.samples for unit in block_units)
        size += count * sum(_part_bytes(record, unit, speeds[unit.sub_image].classes) for unit in block_units)
        seconds += count * sum(unit.samples / speeds[unit.sub_image].mean for unit in block_units)
    return Size(units, samples, size, seconds / 3600)


def _part_bytes(record: RunRecord, unit: Unit, classes: float) -> int:
    """Bytes of a part whose rows have votes for `classes` classes, most of them for one class."""
    present = max(1, min(round(classes), record.dataset.num_classes))
    rows = []
    for position in unit.positions:
        image_id = record.image_ids[position]
        for draw in unit.draws:
            rest = np.arange(1, present, dtype=np.int64) * 7919 % max(1, draw.samples // present) + 1
            votes = np.zeros(record.dataset.num_classes, np.int64)
            at = (image_id + np.arange(present)) % record.dataset.num_classes
            votes[at] = [max(1, draw.samples - rest.sum()), *rest]
            rows.append(
                CountsRow(image_id, 0, unit.sub_image, draw.phase, draw.stage, draw.first_sample, draw.samples, votes)
            )
    return len(encode_part(rows, record.run_id, unit.key))


def _sum(sizes: list[Size]) -> Size:
    return Size(
        sum(size.units for size in sizes),
        sum(size.samples for size in sizes),
        sum(size.bytes for size in sizes),
        sum(size.worker_hours for size in sizes),
    )
