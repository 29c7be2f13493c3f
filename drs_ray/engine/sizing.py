"""Chooses the sizes of units: large enough to cost the driver little, small enough to keep all workers busy.

The rule: a unit of the first stage takes `engine.seconds_per_unit`. In a short run it takes less, so that every worker
gets about eight units or more: then the others wait for the last unit for at most an eighth of the run. But no unit is
made shorter than about a second for this. If one image takes more than twice as long, its samples are cut at multiples
of `noise.block`. Later stages of an adaptive run have fewer images and more samples: they are cut if a unit with all
its images would take more than eight times as long. A run that was not measured, because it is small or its classifiers
failed, gets eight units per worker too, of at most 16 images.

Votes do not depend on the sizes. A run's first start fixes the sizes in run.json, because they determine part names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from drs_ray.counts.run_record import RunRecord

UNITS_PER_WORKER = 8
SHORTEST_SECONDS = 1.0
MOST_IMAGES = 1000
MOST_IMAGES_UNMEASURED = 16
LATER_STAGES = 4
"""Size of a unit of a later stage, in units of the first stage, if all images are still open (most are not)."""
SMALL_RUN = 2_000_000
"""Noise samples of 28x28 values below which measuring costs more than it gains; fewer for larger sub-images."""


@dataclass(frozen=True)
class Sizes:
    """Images of a unit, and the largest number of estimation samples of one image in a unit (None: a whole stage)."""

    images_per_unit: int
    samples_per_unit: int | None


def most_samples(record: RunRecord) -> int:
    """Noise samples of the whole run, if no image of an adaptive run stops before its last stage."""
    per_image = record.config.budget.selection + record.schedule.samples[-1]
    return len(record.image_ids) * record.sub_images * per_image


def is_small(record: RunRecord, workers: int) -> bool:
    """Whether a run is too small to be measured: few samples if all workers get images, else very few."""
    goes_round = len(record.image_ids) * record.sub_images >= 2 * workers
    larger = max(1.0, math.prod(record.dataset.image_shape) / record.sub_images / 28**2)
    return most_samples(record) * larger <= (SMALL_RUN if goes_round else SMALL_RUN // 100)


def sized(record: RunRecord, workers: int, rate: float | None) -> RunRecord:
    """The record with sizes of units by the rule. Sizes that the config gives are kept.

    Args:
        record: a run that is not started yet.
        workers: number of workers of the run.
        rate: samples per second of one worker; None: not measured.
    """
    engine = record.config.engine
    if engine.images_per_unit is not None:
        return record
    stages = [samples for _, samples in record.schedule.ranges()]
    sizes = unit_sizes(
        len(record.image_ids) * record.sub_images,
        record.config.budget.selection,
        stages if engine.samples_per_unit is None else [min(stages[0], engine.samples_per_unit)],
        record.config.noise.block,
        workers,
        None if rate is None else rate * engine.seconds_per_unit,
        0.0 if rate is None else rate * SHORTEST_SECONDS,
    )
    config = record.config.updated(
        "engine",
        images_per_unit=min(sizes.images_per_unit, len(record.image_ids)),
        samples_per_unit=engine.samples_per_unit or sizes.samples_per_unit,
    )
    return record.model_copy(update={"config": config})


def unit_sizes(
    images: int,
    selection: int,
    stages: Sequence[int],
    block: int,
    workers: int,
    target: float | None,
    shortest: float,
) -> Sizes:
    """Apply the rule in the module docstring.

    Args:
        images: images of the run times sub-images.
        selection: selection samples of an image.
        stages: estimation samples of an image in each stage.
        block: samples of a block of noise.
        workers: number of workers.
        target: samples of a unit that takes `engine.seconds_per_unit`; None: not measured.
        shortest: least samples of a unit that is made smaller to give every worker several units.
    """
    first = selection + stages[0]
    share = images * first / (UNITS_PER_WORKER * workers)
    if target is None:
        return Sizes(_within(share / first, MOST_IMAGES_UNMEASURED), None)
    wanted = min(target, max(shortest, share))
    images_per_unit = _within(wanted / first, MOST_IMAGES)
    piece = wanted / images_per_unit * (LATER_STAGES if len(stages) > 1 else 1)
    samples_per_unit = max(1, math.floor(piece / block)) * block
    return Sizes(images_per_unit, samples_per_unit if max(stages) > 2 * samples_per_unit else None)


def _within(images: float, most: int) -> int:
    return max(1, min(most, math.floor(images)))
