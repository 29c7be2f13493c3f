"""Combines the votes of all parts of a run, and checks them together.

encoding.py and merged_parts.py check each part alone. Together, the parts must hold every sample of every image,
sub-image and phase exactly once.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.sparse import csr_array

from drs_ray.counts.parts import list_parts, read_units
from drs_ray.counts.rows import REMEDY, Rows, joined, rows_of
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.schema import PHASES
from drs_ray.counts.unit_keys import RunUnits
from drs_ray.errors import ConfigError, CountsError, counted
from drs_ray.storage import Store

_NEAREST = 3


@dataclass(frozen=True, eq=False)
class Counts:
    """Votes after one number of samples. Rows are images in the order of the run's image ids; K sub-images, C classes.

    image_ids, labels: int64 [N]. selection, estimation: one sparse int64 [N, C] per sub-image.
    """

    image_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    selection: tuple[csr_array, ...]
    estimation: tuple[csr_array, ...]

    def images(self, which: NDArray[np.int64]) -> Counts:
        """The votes of some images, by position."""
        return Counts(
            self.image_ids[which],
            self.labels[which],
            tuple(votes[which] for votes in self.selection),
            tuple(votes[which] for votes in self.estimation),
        )


@dataclass(frozen=True, eq=False)
class CountsHistory:
    """All votes of a set of images, also after fewer estimation samples.

    image_ids, labels: int64 [N]. drawn: int64 [N], estimation samples of each sub-image. cuts: the numbers of
    estimation samples after which the votes of some image are known.
    """

    image_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    drawn: NDArray[np.int64]
    cuts: tuple[int, ...]
    _rows: Rows
    _at: NDArray[np.int64]
    _shape: tuple[int, int]
    _sub_images: int

    def at(self, samples: int) -> Counts:
        """The votes after at most `samples` estimation samples of each image, without rows that end later."""
        early = self._rows.first_sample + self._rows.samples <= samples
        selection, estimation = (
            tuple(self._gather(rows, k) for k in range(self._sub_images))
            for rows in (self._rows.phase == 0, (self._rows.phase == 1) & early)
        )
        return Counts(self.image_ids, self.labels, selection, estimation)

    def _gather(self, rows: NDArray[np.bool_], sub_image: int) -> csr_array:
        mine = (rows & (self._rows.sub_image == sub_image))[self._rows.row_of_vote]
        where = (self._at[self._rows.row_of_vote[mine]], self._rows.classes[mine])
        return csr_array((self._rows.votes[mine], where), shape=self._shape, dtype=np.int64)  # duplicates are summed


def read_counts(store: Store, record: RunRecord) -> CountsHistory:
    """Read every part of a run and check that together they hold each planned sample exactly once.

    With adaptive stages, an image may end after any stage, the same for all its sub-images. `results.selected_votes`
    checks whether this was the right stage.

    Args:
        store: the run's store.
        record: its run.json.

    Raises:
        CountsError: a part that cannot be trusted, or duplicate, foreign or missing samples.
    """
    rows, history = _read(store, record)
    _check_complete(rows, history._at, record)
    return history


def read_reached_counts(store: Store, record: RunRecord) -> CountsHistory:
    """The votes of an unfinished run: of images that have reached a stage, up to the last stage reached.

    A stage is reached when all sub-images have all its samples. Whether an image is included does not depend on its
    votes, because its first stage is always drawn. The last stage reached may depend on them, as in any stopping rule.

    Raises:
        CountsError: a part that cannot be trusted, duplicate or foreign samples, or no image that has reached a stage.
    """
    rows, history = _read(store, record)
    at = history._at
    _check_disjoint(rows, at, record)
    reached = _reached(rows, at, record)
    if not reached.any():
        raise CountsError(
            f"{store.uri}: no image is finished yet (0 of {len(record.image_ids)}); resume it with `drs-ray certify`"
        )
    if (
        rows.first_sample + rows.samples
        > np.where(rows.phase == 0, record.config.budget.selection, record.schedule.samples[-1])
    ).any():
        raise CountsError(f"counts: more samples than planned; a part is of another budget: {REMEDY}")
    within = (rows.phase == 0) | (rows.first_sample + rows.samples <= reached[at])
    included = [image_id for image_id, end in zip(record.image_ids, reached, strict=True) if end]
    return assemble(rows.where((reached[at] > 0) & within), record, included)


def position_of(image_id: int, record: RunRecord, store: Store) -> int:
    """Position of an image in the run's image ids.

    Raises:
        ConfigError: the image does not belong to the run; the message has the nearest ids that do.
    """
    if image_id not in record.image_ids:
        nearest = sorted(heapq.nsmallest(_NEAREST, record.image_ids, key=lambda known: abs(known - image_id)))
        raise ConfigError(
            f"image {image_id} is not of the run in {store.uri} ({counted(len(record.image_ids), 'image')}); nearest: "
            f"{', '.join(map(str, nearest))}"
        )
    return record.image_ids.index(image_id)


def read_image(store: Store, record: RunRecord, image_id: int) -> tuple[CountsHistory, tuple[str, ...]]:
    """The votes of one image, and the keys of its units. Only parts that may hold the image are read.

    Raises:
        ConfigError: the image does not belong to the run. CountsError: as `read_counts`.
    """
    position, units, parts = position_of(image_id, record, store), RunUnits(record), list_parts(store, record)
    keys = [key for key in parts if (name := units.parse(key)) and name.block[0] <= position <= name.block[1]]
    holding: list[str] = []
    tables: list[pa.Table] = []
    for found in read_units(store, record, parts, keys):
        mine = found.rows.image_id == image_id  # units of later stages lack the images that have ended
        holding += [key for key, rows in found.slices().items() if mine[rows].any()]
        tables.append(found.table.filter(pa.array(mine)))
    if not holding:
        raise CountsError(f"{store.uri}: no counts of image {image_id}; resume the run with `drs-ray certify`")
    alone = record.model_copy(update={"image_ids": (image_id,)})
    rows = rows_of(pa.concat_tables(tables).combine_chunks())
    history = assemble(rows, alone, alone.image_ids)
    _check_complete(history._rows, history._at, alone)
    return history, tuple(sorted(holding))


def assemble(rows: Rows, record: RunRecord, image_ids: Sequence[int]) -> CountsHistory:
    """The votes of some images, from rows of these images and no others.

    Raises:
        CountsError: rows of other images or sub-images, or labels that disagree.
    """
    ids = np.asarray(image_ids, np.int64)
    order = np.argsort(ids)
    at = order[np.minimum(np.searchsorted(ids, rows.image_id, sorter=order), len(ids) - 1)]
    foreign = (ids[at] != rows.image_id) | (rows.sub_image < 0) | (rows.sub_image >= record.sub_images)
    if foreign.any():
        first = np.flatnonzero(foreign)[0]
        raise CountsError(
            f"counts: image {rows.image_id[first]}, sub-image {rows.sub_image[first]} is not part of this run; {REMEDY}"
        )
    labels = np.zeros(len(ids), np.int64)
    labels[at] = rows.label
    if (labels[at] != rows.label).any():
        raise CountsError(f"counts: two parts give one image different labels; {REMEDY}")
    estimation = rows.phase == 1
    ends = (rows.first_sample + rows.samples)[estimation]
    drawn = np.zeros(len(ids), np.int64)
    np.maximum.at(drawn, at[estimation], ends)
    cuts = tuple(int(end) for end in np.unique(ends))
    shape = (len(ids), record.dataset.num_classes)
    return CountsHistory(ids, labels, drawn, cuts, rows, at, shape, record.sub_images)


def _read(store: Store, record: RunRecord) -> tuple[Rows, CountsHistory]:
    """All stored rows, and the history assembled from them."""
    parts = list_parts(store, record)
    if not len(parts):
        raise CountsError(
            f"{store.uri}: no counts yet (0 of {counted(len(record.image_ids), 'image')}); run `drs-ray certify` first"
        )
    rows = joined([units.rows for units in read_units(store, record, parts)])
    return rows, assemble(rows, record, record.image_ids)


def _check_complete(rows: Rows, at: NDArray[np.int64], record: RunRecord) -> None:
    """Check that the ranges of every (image, sub-image, phase) tile [0, n), without overlaps and gaps.

    n of an image is the end of the last stage that any of its sub-images has reached.
    """
    _check_disjoint(rows, at, record)
    k = record.sub_images
    cell = _cells(rows, at, record)
    total = np.bincount(cell, rows.samples, minlength=len(record.image_ids) * k * len(PHASES)).astype(np.int64)
    stages = np.asarray(record.schedule.samples)
    drawn = total.reshape(-1, k, len(PHASES))[:, :, 1].max(axis=1)
    reached = stages[np.minimum(np.searchsorted(stages, drawn), len(stages) - 1)]
    estimation = np.repeat(reached, k)
    planned = np.stack([np.full_like(estimation, record.config.budget.selection), estimation], axis=1).ravel()
    missing = np.flatnonzero(total < planned)
    if len(missing):
        images = len(np.unique(missing // (k * len(PHASES))))
        raise CountsError(
            f"counts: the run is not finished: {images:,} of {counted(len(record.image_ids), 'image')} "
            f"{'lacks' if images == 1 else 'lack'} samples, first {_describe(int(missing[0]), record)} "
            f"({total[missing[0]]} of {planned[missing[0]]}); resume it with `drs-ray certify`"
        )
    ends = rows.first_sample + rows.samples
    beyond = np.flatnonzero(ends > planned[cell])  # detects gaps too, because no total is too small here
    if len(beyond):
        raise CountsError(
            f"counts: more samples than planned for {_describe(int(cell[beyond].min()), record)}; a part is of another "
            f"budget: {REMEDY}"
        )


def _check_disjoint(rows: Rows, at: NDArray[np.int64], record: RunRecord) -> None:
    """Check that no sample is stored twice."""
    cell = _cells(rows, at, record)
    order = np.lexsort((rows.first_sample, cell))
    cell, first, samples = cell[order], rows.first_sample[order], rows.samples[order]
    before = np.where(np.r_[True, cell[1:] != cell[:-1]], 0, np.r_[0, (first + samples)[:-1]])
    twice = np.flatnonzero(first < before)
    if len(twice):
        raise CountsError(
            f"counts: samples are there twice for {_describe(int(cell[twice[0]]), record)}; two parts overlap: {REMEDY}"
        )


def _reached(rows: Rows, at: NDArray[np.int64], record: RunRecord) -> NDArray[np.int64]:
    """Estimation samples of each image [N] up to the last stage that all its sub-images have reached; 0 if none."""
    images, k = len(record.image_ids), record.sub_images
    cell = _cells(rows, at, record)
    ends = rows.first_sample + rows.samples

    def have(phase: int, end: int) -> NDArray[np.bool_]:
        mine = (rows.phase == phase) & (ends <= end)
        total = np.bincount(cell[mine], rows.samples[mine], minlength=images * k * len(PHASES))
        return np.asarray((total.reshape(images, k, len(PHASES))[:, :, phase] == end).all(axis=1), np.bool_)

    selected = have(0, record.config.budget.selection)
    reached = np.zeros(images, np.int64)
    for end in record.schedule.samples:
        reached[selected & have(1, end)] = end
    return reached


def _cells(rows: Rows, at: NDArray[np.int64], record: RunRecord) -> NDArray[np.int64]:
    """The index of each row's (image, sub-image, phase)."""
    return np.asarray((at * record.sub_images + rows.sub_image) * len(PHASES) + rows.phase, np.int64)


def _describe(cell: int, record: RunRecord) -> str:
    position, rest = divmod(cell, record.sub_images * len(PHASES))
    return f"image {record.image_ids[position]}, sub-image {rest // len(PHASES)}, {PHASES[rest % len(PHASES)]}"
