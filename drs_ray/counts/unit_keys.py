"""The keys of units: their meaning, the keys that a run can have, and the rows that belong to a key.

Two units of a run never share a sample, so parts with exactly the samples of their keys do not overlap.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from drs_ray.counts.rows import Rows
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.schema import COUNTS_PREFIX, PHASES

_KEY = re.compile(re.escape(COUNTS_PREFIX) + r"k(\d+)/s(\d+)/i(\d+)-(\d+)-n(\d+)\.parquet")


@dataclass(frozen=True)
class UnitName:
    """A sub-image, a stage, the first and last position of a block of images, and the first estimation sample."""

    sub_image: int
    stage: int
    block: tuple[int, int]
    first_sample: int

    @property
    def key(self) -> str:
        """Key of the unit's part in the run's store."""
        first, last = self.block
        return (
            f"{COUNTS_PREFIX}k{self.sub_image}/s{self.stage}/i{first:08d}-{last:08d}-n{self.first_sample:010d}.parquet"
        )


class RunUnits:
    """The units that a run can have: a function of run.json."""

    def __init__(self, record: RunRecord) -> None:
        """record: the run's record."""
        self._record = record
        self._ids = np.asarray(record.image_ids, np.int64)
        self._order = np.argsort(self._ids)
        self._ranges = record.schedule.ranges()

    def parse(self, key: str) -> UnitName | None:
        """The unit name of a key; None if no unit of the run has this key."""
        found = _KEY.fullmatch(key)
        if found is None:
            return None
        sub_image, stage, first, last, sample = map(int, found.groups())
        name = UnitName(sub_image, stage, (first, last), sample)
        size, images = self._record.images_per_unit, len(self._ids)
        if name.key != key or sub_image >= self._record.sub_images or stage >= len(self._ranges):
            return None
        if first % size or first >= images or last != min(first + size, images) - 1:
            return None
        start, samples = self._ranges[stage]
        inside = start <= sample < start + samples
        return name if inside and (sample - start) % self._per_unit(stage) == 0 else None

    def end(self, name: UnitName) -> int:
        """One past the last estimation sample of a unit."""
        start, samples = self._ranges[name.stage]
        return min(name.first_sample + self._per_unit(name.stage), start + samples)

    def misplaced(self, rows: Rows, names: Sequence[UnitName], lengths: NDArray[np.int64]) -> tuple[int, str] | None:
        """The first unit whose rows are not exactly the samples of its name, and the reason; None if there is none.

        Args:
            rows: the rows of all units, one unit after another.
            names: the units.
            lengths: int64 [units], number of rows of each unit.
        """
        unit = np.repeat(np.arange(len(names)), lengths)
        position = self._order[
            np.minimum(np.searchsorted(self._ids, rows.image_id, sorter=self._order), len(self._ids) - 1)
        ]
        # Columns of the names, and the range of samples that each row must lie in.
        sub_image, stage, first, last, start, end = np.array(
            [(n.sub_image, n.stage, *n.block, n.first_sample, self.end(n)) for n in names], np.int64
        ).T
        estimation = rows.phase == PHASES.index("estimation")
        selection = np.where(start == 0, self._record.config.budget.selection, 0)
        low, high = np.where(estimation, start[unit], 0), np.where(estimation, end[unit], selection[unit])
        elsewhere = (self._ids[position] != rows.image_id) | (position < first[unit]) | (position > last[unit])
        elsewhere |= (rows.sub_image != sub_image[unit]) | (rows.stage != np.where(estimation, stage[unit], 0))
        elsewhere |= (rows.first_sample < low) | (rows.first_sample + rows.samples > high)
        if elsewhere.any():
            row = int(np.flatnonzero(elsewhere)[0])
            return int(unit[row]), f"{_describe(rows, row)} does not belong to this unit"
        # The rows of each cell (unit, image, phase) must be contiguous from low to high.
        order = np.lexsort((rows.first_sample, rows.phase, position, unit))
        cell = np.stack([unit, position, rows.phase])[:, order]
        begins = np.append(True, (cell[:, 1:] != cell[:, :-1]).any(axis=0)) if len(order) else np.zeros(0, np.bool_)
        ends_at = (rows.first_sample + rows.samples)[order]
        expected = np.where(begins, low[order], np.concatenate([[0], ends_at[:-1]]) if len(order) else 0)
        misaligned = rows.first_sample[order] != expected
        misaligned |= np.append(begins[1:], True)[: len(order)] & (ends_at != high[order])
        if misaligned.any():
            row = int(order[np.flatnonzero(misaligned)[0]])
            return int(unit[row]), f"{_describe(rows, row)} leaves a gap or overlaps another row"
        label, same = rows.label[order], (cell[:2, 1:] == cell[:2, :-1]).all(axis=0)
        if (same & (label[1:] != label[:-1])).any():
            row = int(order[1:][same & (label[1:] != label[:-1])][0])
            return int(unit[row]), f"image {rows.image_id[row]} has two labels"
        return self._incomplete(cell[:, begins], names, start, last - first + 1)

    def _incomplete(
        self,
        cells: NDArray[np.int64],
        names: Sequence[UnitName],
        start: NDArray[np.int64],
        images: NDArray[np.int64],
    ) -> tuple[int, str] | None:
        """The first unit that lacks images or a phase of an image; later stages need not have all images."""
        unit, _, phase = cells
        drawn, selected = (np.bincount(unit[phase == which], minlength=len(names)) for which in (1, 0))
        lacking = (drawn == 0) | (selected != np.where(start == 0, drawn, 0))
        lacking |= (drawn != images) & (np.array([name.stage for name in names]) == 0)
        if lacking.any():
            return int(np.flatnonzero(lacking)[0]), "images or samples of this unit are missing"
        paired = start[unit] == 0
        if not np.array_equal(cells[:2, paired & (phase == 0)], cells[:2, paired & (phase == 1)]):
            differ = (cells[:2, paired & (phase == 0)] != cells[:2, paired & (phase == 1)]).any(axis=0)
            first = int(unit[paired & (phase == 0)][differ][0])
            return first, "its selection and estimation samples are of other images"
        return None

    def _per_unit(self, stage: int) -> int:
        return self._record.config.engine.samples_per_unit or self._ranges[stage][1]


def _describe(rows: Rows, row: int) -> str:
    first = rows.first_sample[row]
    return (
        f"image {rows.image_id[row]}, sub-image {rows.sub_image[row]}, {PHASES[rows.phase[row]]} samples "
        f"{first}..{first + rows.samples[row] - 1}"
    )
