"""Recounting: units are counted again in this process, and paired with the stored votes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from drs_ray.certificates.homogeneity import homogeneity_p_values
from drs_ray.counts.encoding import CountsRow
from drs_ray.counts.parts import Parts, read_units
from drs_ray.counts.plan import Unit
from drs_ray.counts.run_record import RunRecord
from drs_ray.engine.observer import Observer
from drs_ray.engine.outcome import Outcome
from drs_ray.engine.stored_run import on_device
from drs_ray.engine.unit_runner import UnitRunner
from drs_ray.errors import CountsError, counted
from drs_ray.models.torch_state import fixed_kernels
from drs_ray.storage import Store

_CLASSES_NAMED = 4
_RowKey = tuple[int, str, int, int, int]
_Votes = list[tuple[int, int]]


@dataclass(frozen=True)
class Difference:
    """Stored votes of one image that differ from the recount.

    phase, first_sample, samples: of the votes. classes: classes whose votes differ; stored, counted: their stored and
    recounted votes. labels: (stored, the data set's) if these differ.
    """

    unit: str
    image_id: int
    phase: str
    first_sample: int
    samples: int
    classes: tuple[int, ...]
    stored: tuple[int, ...]
    counted: tuple[int, ...]
    labels: tuple[int, int] | None = None

    def __str__(self) -> str:
        last = self.first_sample + self.samples - 1
        what = [] if self.labels is None else [f"the label is {self.labels[0]}, here {self.labels[1]}"]
        counts = list(zip(self.classes, self.stored, self.counted, strict=True))
        what += [f"class {number} has {stored} votes, here {here}" for number, stored, here in counts[:_CLASSES_NAMED]]
        if len(counts) > _CLASSES_NAMED:
            what.append(f"and {counted(len(counts) - _CLASSES_NAMED, 'more class')}")
        return (
            f"{self.unit}: image {self.image_id}, {self.phase} samples {self.first_sample}..{last}: {', '.join(what)}"
        )


@dataclass(frozen=True, eq=False)
class Compared:
    """Stored and recounted votes, int64 [C], with both labels."""

    unit: str
    image_id: int
    phase: str
    first_sample: int
    samples: int
    labels: tuple[int, int]
    stored: NDArray[np.int64]
    counted: NDArray[np.int64]

    def difference(self, level: float | None) -> Difference | None:
        """The difference: of all votes if level is None, else of the classes with a p-value of at most `level`."""
        if level is None:
            differs = self.stored != self.counted
        else:
            differs = homogeneity_p_values(self.stored, self.counted) <= level
        other_label = self.labels[0] != self.labels[1]
        if not differs.any() and not other_label:
            return None
        return Difference(
            self.unit,
            self.image_id,
            self.phase,
            self.first_sample,
            self.samples,
            classes=tuple(np.flatnonzero(differs).tolist()),
            stored=tuple(self.stored[differs].tolist()),
            counted=tuple(self.counted[differs].tolist()),
            labels=self.labels if other_label else None,
        )


def recount(
    todo: Mapping[Unit, Unit],
    record: RunRecord,
    device: str,
    exact: bool,
    store: Store,
    parts: Parts,
    observer: Observer,
) -> Iterator[Compared]:
    """Count some images of stored units again, and pair the votes.

    Args:
        todo: stored units, each with the same unit cut down to the images to count.
        record: the run's record.
        device: cpu or cuda.
        exact: count as the run's workers did, and pair row by row; else all rows of an image and phase together.
        store: the run's store.
        parts: the listing of the run's stored units.
        observer: receives progress.

    Raises:
        CountsError: a part that cannot be trusted. DataError, ClassifierError: see `UnitRunner`.
    """
    here = record if exact else on_device(record, device)
    with fixed_kernels(device, record.config.engine.cpus_per_worker if exact else None):
        dataset = None
        for sub_image in sorted({unit.sub_image for unit in todo}):
            mine = {unit: part for unit, part in todo.items() if unit.sub_image == sub_image}
            observer.step(f"loading {'data set and ' if dataset is None else ''}classifier {sub_image}")
            runner = UnitRunner(here, sub_image, dataset)
            dataset = runner.dataset
            for unit, part in mine.items():
                there = _stored_rows(store, record, parts, unit)
                started = time.perf_counter()
                rows = [_row_pair(unit.key, row, there) for row in runner.count(part)]
                observer.unit_done(part, Outcome(time.perf_counter() - started, 0.0))
                yield from rows if exact else _by_phase(rows)


def _stored_rows(store: Store, record: RunRecord, parts: Parts, unit: Unit) -> dict[_RowKey, tuple[int, _Votes]]:
    """Label and votes of every row of the unit's part, by image, phase, stage, first sample and samples.

    Raises:
        CountsError: a part that cannot be trusted, or whose rows are not those of the unit.
    """
    rows = next(read_units(store, record, parts, [unit.key])).table.to_pylist()
    keys = [(row["image_id"], row["phase"], row["stage"], row["first_sample"], row["samples"]) for row in rows]
    expected = [
        (record.image_ids[position], draw.phase, draw.stage, draw.first_sample, draw.samples)
        for position in unit.positions
        for draw in unit.draws
    ]
    if sorted(keys) != sorted(expected) or {row["sub_image"] for row in rows} != {unit.sub_image}:
        raise CountsError(
            f"counts part {unit.key}: its rows are not those of its images and samples; find out who wrote it, move it "
            f"aside with `drs-ray repair {store.uri} --unit {unit.key}`, then `drs-ray certify` computes it again"
        )
    return {key: (row["label"], row["votes"]) for key, row in zip(keys, rows, strict=True)}


def _row_pair(unit: str, counted: CountsRow, there: Mapping[_RowKey, tuple[int, _Votes]]) -> Compared:
    label, votes = there[counted.image_id, counted.phase, counted.stage, counted.first_sample, counted.samples]
    stored = np.zeros_like(counted.votes)
    for number, count in votes:
        stored[number] += count
    return Compared(
        unit,
        counted.image_id,
        counted.phase,
        counted.first_sample,
        counted.samples,
        (label, counted.label),
        stored,
        counted.votes,
    )


def _by_phase(rows: Iterable[Compared]) -> list[Compared]:
    """Sum the rows of one unit per image and phase: more samples find smaller differences."""
    joined: dict[tuple[int, str], Compared] = {}
    for row in rows:
        before = joined.get((row.image_id, row.phase))
        joined[row.image_id, row.phase] = (
            row
            if before is None
            else replace(
                before,
                samples=before.samples + row.samples,
                stored=before.stored + row.stored,
                counted=before.counted + row.counted,
            )
        )
    return list(joined.values())
