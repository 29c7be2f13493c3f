"""Cuts a run into units of work, without Ray. A unit is done if its part is stored under its key."""

from __future__ import annotations

import itertools
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass

from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.unit_keys import UnitName
from drs_ray.smoothing.keys import Phase

CONVERGENCE_CUTS = 3
"""Counts are also known at 1/2, 1/4 and 1/8 of a stage's samples, to see how radii depend on n."""


@dataclass(frozen=True)
class Draw:
    """A range of samples of one phase, drawn for every image of a unit."""

    phase: Phase
    stage: int
    first_sample: int
    samples: int


@dataclass(frozen=True)
class Unit:
    """One sub-image, images of one block, and the samples to draw for each of them.

    block: first and last position of the block in the run's image ids. positions: the images of the unit, all images of
    the block except those that ended in an earlier stage. A unit's part is a function of the run's identity and the
    unit alone, so a unit may be computed twice and on any worker.
    """

    sub_image: int
    block: tuple[int, int]
    positions: tuple[int, ...]
    draws: tuple[Draw, ...]

    @property
    def key(self) -> str:
        """Key of its part in the run's store."""
        estimation = next(draw for draw in self.draws if draw.phase == "estimation")
        return UnitName(self.sub_image, estimation.stage, self.block, estimation.first_sample).key

    @property
    def samples(self) -> int:
        """Forward passes of the whole unit."""
        return len(self.positions) * sum(draw.samples for draw in self.draws)


def blocks(record: RunRecord) -> list[tuple[int, int]]:
    """First and last position of every block of images."""
    images, size = len(record.image_ids), record.images_per_unit
    return [(first, min(first + size, images) - 1) for first in range(0, images, size)]


def stage_units(record: RunRecord, block: tuple[int, int], stage: int, positions: Sequence[int]) -> list[Unit]:
    """The units of one block and stage, one per sub-image and range of samples. A pure function of run.json.

    Selection samples are drawn with the first estimation samples of their images.
    """
    first_sample, samples = record.schedule.ranges()[stage]
    per_unit = record.config.engine.samples_per_unit or samples
    units = []
    for sub_image in range(record.sub_images):
        for first in range(first_sample, first_sample + samples, per_unit):
            end = min(first + per_unit, first_sample + samples)
            draws = [Draw("estimation", stage, start, count) for start, count in _cuts(record, first, end)]
            if first == 0:
                draws.insert(0, Draw("selection", 0, 0, record.config.budget.selection))
            units.append(Unit(sub_image, block, tuple(positions), tuple(draws)))
    return units


def plan_units(record: RunRecord) -> list[Unit]:
    """The units of the first stage of all images; with a fixed number of samples, all units of the run."""
    return [
        unit for first, last in blocks(record) for unit in stage_units(record, (first, last), 0, range(first, last + 1))
    ]


def missing_units(units: Iterable[Unit], stored: Container[str]) -> list[Unit]:
    """The units whose keys are not in `stored`, such as the result of `list_parts`: resuming needs only a listing."""
    return [unit for unit in units if unit.key not in stored]


def _cuts(record: RunRecord, first: int, end: int) -> list[tuple[int, int]]:
    """[first, end) cut after an eighth, a quarter and a half of all samples, at multiples of the forward batch.

    The cuts only add rows to a part; they do not change the forward passes. Adaptive stages need no cuts, because they
    double already.
    """
    if len(record.schedule.samples) > 1:
        return [(first, end - first)]
    last, batch = record.schedule.samples[-1], record.config.engine.batch or 1
    inner = {-(-last // (batch << power)) * batch for power in range(1, CONVERGENCE_CUTS + 1)}
    edges = [first, *sorted(cut for cut in inner if first < cut < end), end]
    return [(low, high - low) for low, high in itertools.pairwise(edges)]
