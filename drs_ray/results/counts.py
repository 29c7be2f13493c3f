"""Vote counts: encoding a part, and reading all parts of a run back with every invariant checked.

A part is one Parquet object, the result of one unit of work. Nothing is believed on reading: a part must be whole, of
this run, stored under the key it was written for, and its votes must sum to its samples; together the parts must hold
every sample of every image, sub-image and phase exactly once.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.sparse import csr_array

from drs_ray.errors import CountsError
from drs_ray.results.run_record import RunRecord
from drs_ray.results.schema import COUNTS, COUNTS_PREFIX, PHASES, SCHEMA_VERSION, metadata, with_metadata
from drs_ray.results.store import Store

_READERS = 16  # parts are small: reading them is waiting


@dataclass(frozen=True)
class CountsRow:
    """Votes of one image's sub-image over one range of samples; votes: int64 [num_classes]."""

    image_id: int
    label: int
    sub_image: int
    phase: str
    stage: int
    first_sample: int
    samples: int
    votes: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Counts:
    """Votes at one number of samples. Rows are images in the order of the run's image ids; K sub-images, C classes.

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
    """All votes of a set of images, and what they were after fewer estimation samples.

    image_ids, labels: int64 [N]. drawn: int64 [N], estimation samples of each sub-image. cuts: the numbers of
    estimation samples after which the votes of some image are known.
    """

    image_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    drawn: NDArray[np.int64]
    cuts: tuple[int, ...]
    _rows: _Rows
    _at: NDArray[np.int64]
    _shape: tuple[int, int]
    _sub_images: int

    def at(self, samples: int) -> Counts:
        """The votes after at most `samples` estimation samples of each image: no row that ends later is in them."""
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


def encode_part(rows: Iterable[CountsRow], run_id: str, key: str) -> bytes:
    """Rows -> the bytes of one Parquet part. A pure function: the same rows give the same bytes."""
    rows = list(rows)
    present = [np.flatnonzero(row.votes) for row in rows]
    offsets = np.cumsum([0, *(len(classes) for classes in present)]).astype(np.int32)
    classes = np.concatenate(present).astype(np.int32)
    counts = np.concatenate([row.votes[seen] for row, seen in zip(rows, present, strict=True)]).astype(np.int64)
    votes = pa.MapArray.from_arrays(pa.array(offsets), pa.array(classes), pa.array(counts))
    columns = [
        pa.array([getattr(row, field.name) for row in rows], field.type) for field in COUNTS if field.name != "votes"
    ]
    table = pa.Table.from_arrays([*columns, votes], schema=with_metadata(COUNTS, run_id, table="counts", unit=key))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)  # a flipped bit is no vote
    return sink.getvalue()


def decode_part(data: bytes, key: str, run_id: str, num_classes: int) -> pa.Table:
    """The bytes of one part -> its table, checked on its own.

    Raises:
        CountsError: truncated, foreign, of another run or version, under another key, or with votes that do not add up.
    """
    where = f"counts part {key}"
    try:
        table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True).read(use_threads=False)
        found = metadata(table.schema)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CountsError(f"{where}: truncated, damaged or not Parquet; {_REMEDY}") from error
    expected = {"schema_version": str(SCHEMA_VERSION), "run_id": run_id, "table": "counts", "unit": key}
    for name, value in expected.items():
        if found.get(name) != value:
            raise CountsError(f"{where}: {name} is {found.get(name)}, expected {value}; {_REMEDY}")
    if not table.schema.equals(COUNTS):
        raise CountsError(f"{where}: its columns are not those of the counts table; {_REMEDY}")
    rows = _columns(table)
    negative = rows.votes < 0
    if negative.any() or (rows.samples < 1).any():
        raise CountsError(f"{where}: negative votes or empty rows; {_REMEDY}")
    if ((rows.classes < 0) | (rows.classes >= num_classes)).any():
        raise CountsError(f"{where}: votes for a class outside 0..{num_classes - 1}; {_REMEDY}")
    sums = np.bincount(rows.row_of_vote, rows.votes, minlength=len(rows.samples)).astype(np.int64)
    wrong = np.flatnonzero(sums != rows.samples)
    if len(wrong):
        first = wrong[0]
        raise CountsError(
            f"{where}: votes of image {rows.image_id[first]} sum to {sums[first]}, expected {rows.samples[first]}; "
            f"{_REMEDY}"
        )
    return table


def read_counts(store: Store, record: RunRecord) -> CountsHistory:
    """Read every part of a run and check that together they hold each planned sample exactly once.

    With adaptive stages, an image may end after any stage, the same for all its sub-images; whether it was right to
    end there is for `results.adaptive` to say.

    Args:
        store: where the run is.
        record: its run.json.

    Raises:
        CountsError: a part that cannot be trusted, or duplicate, foreign or missing samples.
    """
    keys = [item.key for item in store.list(COUNTS_PREFIX)]
    if not keys:
        raise CountsError(
            f"{store.uri}: no counts yet (0 of {len(record.image_ids)} images); run `drs-ray certify` first"
        )
    history = _assemble(_read_parts(store, keys, record), record, record.image_ids)
    _check_complete(history._rows, history._at, record)
    return history


def assemble(tables: Iterable[pa.Table], record: RunRecord, image_ids: Sequence[int]) -> CountsHistory:
    """The votes of some images from decoded parts that hold them and no others.

    Raises:
        CountsError: rows of other images or sub-images, or labels that disagree.
    """
    return _assemble(_joined([_columns(table) for table in tables]), record, image_ids)


def _assemble(rows: _Rows, record: RunRecord, image_ids: Sequence[int]) -> CountsHistory:
    ids = np.asarray(image_ids, np.int64)
    order = np.argsort(ids)
    at = order[np.minimum(np.searchsorted(ids, rows.image_id, sorter=order), len(ids) - 1)]
    foreign = (ids[at] != rows.image_id) | (rows.sub_image < 0) | (rows.sub_image >= record.sub_images)
    if foreign.any():
        first = np.flatnonzero(foreign)[0]
        raise CountsError(
            f"counts: image {rows.image_id[first]}, sub-image {rows.sub_image[first]} is not part of this run; "
            f"{_REMEDY}"
        )
    labels = np.zeros(len(ids), np.int64)
    labels[at] = rows.label
    if (labels[at] != rows.label).any():
        raise CountsError("counts: two parts give one image different labels; the data set changed during the run")
    estimation = rows.phase == 1
    ends = (rows.first_sample + rows.samples)[estimation]
    drawn = np.zeros(len(ids), np.int64)
    np.maximum.at(drawn, at[estimation], ends)
    cuts = tuple(int(end) for end in np.unique(ends))
    shape = (len(ids), record.dataset.num_classes)
    return CountsHistory(ids, labels, drawn, cuts, rows, at, shape, record.sub_images)


_REMEDY = "delete that object and resume the run to compute it again"


@dataclass(frozen=True, eq=False)
class _Rows:
    """The counts table as numpy columns; votes and classes are flat, row_of_vote says whose they are."""

    image_id: NDArray[np.int64]
    label: NDArray[np.int64]
    sub_image: NDArray[np.int64]
    phase: NDArray[np.int64]
    first_sample: NDArray[np.int64]
    samples: NDArray[np.int64]
    row_of_vote: NDArray[np.int64]
    classes: NDArray[np.int64]
    votes: NDArray[np.int64]


def _read_parts(store: Store, keys: Sequence[str], record: RunRecord) -> _Rows:
    """All parts as plain columns: a table of a hundred rows costs more in schema than in rows."""

    def read(key: str) -> _Rows:
        return _columns(decode_part(store.get(key), key, record.run_id, record.dataset.num_classes))

    with ThreadPoolExecutor(_READERS) as pool:
        return _joined(list(pool.map(read, keys)))


def _joined(parts: Sequence[_Rows]) -> _Rows:
    offsets = np.cumsum([0, *(len(part.samples) for part in parts)])
    columns = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(_Rows)}
    columns["row_of_vote"] = np.concatenate(
        [part.row_of_vote + offset for part, offset in zip(parts, offsets, strict=False)]
    )
    return _Rows(**columns)


def _columns(table: pa.Table) -> _Rows:
    votes = table["votes"].combine_chunks()
    if isinstance(votes, pa.ChunkedArray):
        votes = votes.chunk(0)
    lengths = np.diff(votes.offsets.to_numpy())

    def column(name: str) -> NDArray[np.int64]:
        return np.asarray(table[name].to_numpy(), np.int64)

    phase = np.asarray(table["phase"].to_numpy(zero_copy_only=False), object)
    unknown = set(phase) - set(PHASES)
    if unknown:
        raise CountsError(f"counts: unknown phase {sorted(unknown)}; {_REMEDY}")
    return _Rows(
        image_id=column("image_id"),
        label=column("label"),
        sub_image=column("sub_image"),
        phase=np.asarray(phase == PHASES[1], np.int64),
        first_sample=column("first_sample"),
        samples=column("samples"),
        row_of_vote=np.repeat(np.arange(len(table)), lengths),
        classes=np.asarray(votes.keys.to_numpy(), np.int64),
        votes=np.asarray(votes.items.to_numpy(), np.int64),
    )


def _check_complete(rows: _Rows, at: NDArray[np.int64], record: RunRecord) -> None:
    """Every (image, sub-image, phase) has ranges that tile [0, n): nothing twice, nothing missing.

    n of an image is the end of the stage that some sub-image of it has reached.
    """
    k = record.sub_images
    cell = (at * k + rows.sub_image) * len(PHASES) + rows.phase
    order = np.lexsort((rows.first_sample, cell))
    cell, first, samples = cell[order], rows.first_sample[order], rows.samples[order]
    starts_cell = np.r_[True, cell[1:] != cell[:-1]]
    expected_first = np.where(starts_cell, 0, np.r_[0, (first + samples)[:-1]])
    cells = len(record.image_ids) * k * len(PHASES)
    total = np.bincount(cell, samples, minlength=cells).astype(np.int64)
    stages = np.asarray(record.schedule.samples)
    drawn = total.reshape(-1, k, len(PHASES))[:, :, 1].max(axis=1)
    reached = stages[np.minimum(np.searchsorted(stages, drawn), len(stages) - 1)]
    estimation = np.repeat(reached, k)
    planned = np.stack([np.full_like(estimation, record.config.budget.selection), estimation], axis=1).ravel()

    def describe(which: int) -> str:
        position, rest = divmod(which, k * len(PHASES))
        return f"image {record.image_ids[position]}, sub-image {rest // len(PHASES)}, {PHASES[rest % len(PHASES)]}"

    twice = np.flatnonzero(first < expected_first)
    if len(twice):
        raise CountsError(
            f"counts: samples are there twice for {describe(int(cell[twice[0]]))}; two parts overlap: "
            "delete one of them and resume the run"
        )
    missing = np.flatnonzero(total < planned)
    if len(missing):
        images = len(np.unique(missing // (k * len(PHASES))))
        raise CountsError(
            f"counts: the run is not finished: {images} of {len(record.image_ids)} images lack samples, first "
            f"{describe(int(missing[0]))} ({total[missing[0]]} of {planned[missing[0]]}); "
            "resume it with `drs-ray certify`"
        )
    beyond = np.flatnonzero(first + samples > planned[cell])  # the end of any gap too, as the totals fit or exceed
    if len(beyond):
        raise CountsError(
            f"counts: more samples than planned for {describe(int(cell[beyond[0]]))}; a part is of another budget: "
            "delete it and resume the run"
        )
