"""Encodes the rows of a unit as one Parquet object, its part, and decodes parts with every check.

A part that is read must be complete, belong to this run, and be stored under the key it was written for, and its votes
must sum to its samples.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drs_ray.counts.rows import Rows, UnsoundError, first_problem, open_table, rows_of
from drs_ray.counts.schema import COUNTS, with_metadata


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
class UnitRows:
    """The checked rows of some units, one unit after another.

    keys: keys of the units. lengths: int64 [units], number of rows of each. table, rows: all rows as a table and as
    numpy columns.
    """

    keys: tuple[str, ...]
    lengths: NDArray[np.int64]
    table: pa.Table
    rows: Rows

    def slices(self) -> dict[str, slice]:
        """The range of rows of each unit."""
        ends = np.cumsum(self.lengths).tolist()
        return {key: slice(a, b) for key, a, b in zip(self.keys, [0, *ends], ends, strict=False)}

    def only(self, wanted: Collection[str]) -> UnitRows:
        """The units whose keys are `wanted`, in the same order."""
        chosen = np.array([key in wanted for key in self.keys], np.bool_)
        if chosen.all():
            return self
        table = self.table.filter(pa.array(np.repeat(chosen, self.lengths)))
        keys = tuple(key for key in self.keys if key in wanted)
        return UnitRows(keys, self.lengths[chosen], table, rows_of(table))


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
    return encode_table(pa.Table.from_arrays([*columns, votes], schema=COUNTS), run_id, key)


def encode_table(table: pa.Table, run_id: str, key: str) -> bytes:
    """The counts table of one unit -> the bytes of its part, equal to those from `encode_part`."""
    sink = io.BytesIO()
    pq.write_table(
        # Reading renames the fields of a map; the names of COUNTS make the bytes equal again.
        pa.Table.from_arrays(table.columns, schema=with_metadata(COUNTS, run_id, table="counts", unit=key)),
        sink,
        compression="snappy",  # zstd needs 0.15 ms per part for its contexts, more than the rest of reading
        use_dictionary=["phase"],
        write_statistics=False,
        write_page_checksum=True,  # detects flipped bits
    )
    return sink.getvalue()


def decode_parts(parts: Sequence[tuple[str, bytes]], run_id: str, num_classes: int) -> UnitRows:
    """(key, bytes) of parts -> their checked rows: checking a hundred parts costs as much as checking one.

    Raises:
        UnsoundError: names the first part that is truncated, not a part, of another run or version, under another key,
            or with a wrong sum of votes.
    """
    tables = [open_table(data, key, {"run_id": run_id, "unit": key})[0] for key, data in parts]
    table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
    rows = rows_of(table)
    lengths = np.array([len(part) for part in tables])
    problem = first_problem(table, rows, num_classes)
    if problem is not None:
        row, message = problem
        key, _ = parts[int(np.searchsorted(np.cumsum(lengths), row, side="right"))]
        raise UnsoundError(key, message)
    return UnitRows(tuple(key for key, _ in parts), lengths, table, rows)
