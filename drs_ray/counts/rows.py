"""The counts table as flat numpy columns, and the checks of its rows for parts and compacted objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drs_ray.counts.schema import COUNTS, PHASES, SCHEMA_VERSION
from drs_ray.errors import CountsError

REMEDY = "`drs-ray repair RUN` moves it aside, then `drs-ray certify` computes it again"
"""The remedy in messages about an object that cannot be trusted."""


class UnsoundError(CountsError):
    """An object of the counts cannot be trusted. key: its key. reason: why."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"counts part {key}: {reason}; {REMEDY}")
        self.key = key
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Rows:
    """R rows with V votes: the columns of COUNTS, int [R]; votes and classes are flat, int [V].

    phase: index in PHASES, or -1 for another phase. row_of_vote: int64 [V], the row of each vote, increasing.
    """

    image_id: NDArray[np.int64]
    label: NDArray[np.int32]
    sub_image: NDArray[np.int8]
    phase: NDArray[np.int8]
    stage: NDArray[np.int8]
    first_sample: NDArray[np.int64]
    samples: NDArray[np.int64]
    row_of_vote: NDArray[np.int64]
    classes: NDArray[np.int32]
    votes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.samples)

    def between(self, first: int, end: int) -> Rows:
        """A copy of rows [first, end), which does not keep the other rows in memory."""
        low, high = np.searchsorted(self.row_of_vote, (first, end))
        columns = {name: getattr(self, name)[first:end].copy() for name in PER_ROW}
        columns |= {name: getattr(self, name)[low:high].copy() for name in ("classes", "votes")}
        return Rows(**columns, row_of_vote=self.row_of_vote[low:high] - first)

    def where(self, kept: NDArray[np.bool_]) -> Rows:
        """The rows with `kept`, bool [R], in the same order."""
        votes = kept[self.row_of_vote]
        columns = {name: getattr(self, name)[kept] for name in PER_ROW}
        columns |= {name: getattr(self, name)[votes] for name in ("classes", "votes")}
        return Rows(**columns, row_of_vote=(np.cumsum(kept) - 1)[self.row_of_vote[votes]])


PER_ROW = ("image_id", "label", "sub_image", "phase", "stage", "first_sample", "samples")
"""The columns of `Rows` with one value per row."""


def rows_of(table: pa.Table) -> Rows:
    """The columns of a counts table."""
    votes = table["votes"].combine_chunks()
    if isinstance(votes, pa.ChunkedArray):
        votes = votes.chunk(0) if votes.num_chunks else pa.array([], votes.type)
    offsets = votes.offsets.to_numpy()
    flat = slice(int(offsets[0]), int(offsets[-1])) if len(offsets) else slice(0, 0)  # the array may be a slice
    phase = pc.fill_null(pc.index_in(table["phase"], pa.array(PHASES)), -1)
    return Rows(
        image_id=table["image_id"].to_numpy(),
        label=table["label"].to_numpy(),
        sub_image=table["sub_image"].to_numpy(),
        phase=phase.to_numpy().astype(np.int8),
        stage=table["stage"].to_numpy(),
        first_sample=table["first_sample"].to_numpy(),
        samples=table["samples"].to_numpy(),
        row_of_vote=np.repeat(np.arange(len(table)), np.diff(offsets)),
        classes=votes.keys.to_numpy()[flat],
        votes=votes.items.to_numpy()[flat],
    )


def joined(parts: Sequence[Rows]) -> Rows:
    """All rows, one after another."""
    offsets = np.cumsum([0, *(len(part) for part in parts)])
    columns = {field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Rows)}
    columns["row_of_vote"] = np.concatenate(
        [part.row_of_vote + offset for part, offset in zip(parts, offsets, strict=False)]
    )
    return Rows(**columns)


def open_table(data: bytes, key: str, expected: dict[str, str]) -> tuple[pa.Table, dict[bytes, bytes]]:
    """The bytes of an object -> its counts table and the metadata of the file, every page checked.

    Args:
        data: the object.
        key: its key.
        expected: required metadata besides the version and the name of the table.

    Raises:
        UnsoundError: truncated, not Parquet, of another run or version, or with other columns.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        found = file.metadata.metadata or {}
        check_metadata(found, key, expected)
        table = file.read(use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnsoundError(key, "truncated, damaged or not Parquet") from error
    if not table.schema.equals(COUNTS):
        raise UnsoundError(key, "its columns are not those of the counts table")
    return table, found


def check_metadata(found: dict[bytes, bytes], key: str, expected: dict[str, str]) -> None:
    """Refuse another run, table or version.

    Raises:
        UnsoundError: naming the metadata key that differs.
    """
    for name, value in {"schema_version": str(SCHEMA_VERSION), "table": "counts", **expected}.items():
        stored = found.get(f"drs_ray.{name}".encode())
        if stored != value.encode():
            text = None if stored is None else stored.decode(errors="replace")
            raise UnsoundError(key, f"{name} is {text}, expected {value}")


def first_problem(table: pa.Table, rows: Rows, num_classes: int) -> tuple[int, str] | None:
    """The first invalid row and the reason; None if all rows are valid. Votes of a row must sum to its samples."""
    unknown = np.flatnonzero(rows.phase < 0)
    if len(unknown):
        return int(unknown[0]), f"unknown phase [{table['phase'][int(unknown[0])].as_py()!r}]"
    negative = rows.row_of_vote[rows.votes < 0]
    empty = np.flatnonzero(rows.samples < 1)
    if len(negative) or len(empty):
        return int(min([*negative[:1], *empty[:1]])), "negative votes or empty rows"
    outside = rows.row_of_vote[(rows.classes < 0) | (rows.classes >= num_classes)]
    if len(outside):
        return int(outside[0]), f"votes for a class outside 0..{num_classes - 1}"
    before = np.concatenate([[0], np.cumsum(rows.votes)])  # exact, unlike float weights of np.bincount
    ends = np.searchsorted(rows.row_of_vote, np.arange(len(rows) + 1))
    sums = np.diff(before[ends])
    wrong = np.flatnonzero(sums != rows.samples)
    if len(wrong):
        first = int(wrong[0])
        return first, f"votes of image {rows.image_id[first]} sum to {sums[first]}, expected {rows.samples[first]}"
    return None
