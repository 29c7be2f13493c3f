"""Cutting a run into units of work. A unit's key names its part; what lies under the key is done. No Ray here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from drs_ray.results.run_record import RunRecord
from drs_ray.results.schema import COUNTS_PREFIX
from drs_ray.results.store import Store
from drs_ray.smoothing.keys import Phase


@dataclass(frozen=True)
class Draw:
    """A range of samples of one phase, drawn for every image of a unit."""

    phase: Phase
    stage: int
    first_sample: int
    samples: int


@dataclass(frozen=True)
class Unit:
    """One sub-image, a block of images (positions in the run's image ids), and the samples to draw for each of them.

    A unit's part is a function of the run's identity and the unit alone: it may be done twice, anywhere.
    """

    sub_image: int
    first: int
    images: int
    draws: tuple[Draw, ...]

    @property
    def key(self) -> str:
        """Where its part is stored, below the run's place."""
        last = self.draws[-1]
        return (
            f"{COUNTS_PREFIX}k{self.sub_image}/s{last.stage}/"
            f"i{self.first:08d}-{self.first + self.images - 1:08d}-n{last.first_sample:010d}.parquet"
        )

    @property
    def samples(self) -> int:
        """Forward passes of the whole unit."""
        return self.images * sum(draw.samples for draw in self.draws)


def plan_units(record: RunRecord) -> list[Unit]:
    """All units of a run, in the order in which they are best begun. A pure function of run.json.

    Selection samples are drawn with the first estimation samples of their images. A fixed budget is one stage.
    """
    config = record.config
    ranges = _estimation_ranges(config.budget.estimation, config.engine.samples_per_unit)
    size = config.engine.images_per_unit
    selection = Draw("selection", 0, 0, config.budget.selection)
    units = []
    for first in range(0, len(record.image_ids), size):
        images = min(size, len(record.image_ids) - first)
        for sub_image in range(record.sub_images):
            for first_sample, samples in ranges:
                estimation = Draw("estimation", 0, first_sample, samples)
                draws = (selection, estimation) if first_sample == 0 else (estimation,)
                units.append(Unit(sub_image, first, images, draws))
    return units


def missing_units(units: Iterable[Unit], store: Store) -> list[Unit]:
    """The units whose parts are not stored: listing keys is all that resuming takes."""
    there = {item.key for item in store.list(COUNTS_PREFIX)}
    return [unit for unit in units if unit.key not in there]


def _estimation_ranges(samples: int, per_unit: int | None) -> list[tuple[int, int]]:
    step = samples if per_unit is None else per_unit
    return [(first, min(step, samples - first)) for first in range(0, samples, step)]
