"""Compacted objects: the rows of many units in one Parquet file, which other readers see as one counts table.

The metadata of an object lists the units in the order of their rows: key, number of rows, and a digest of the rows. The
name of an object is the SHA-256 of its bytes, so equal units make equal objects, and any change is detected.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from drs_ray.counts.encoding import UnitRows
from drs_ray.counts.rows import PER_ROW, UnsoundError, check_metadata, first_problem, open_table, rows_of
from drs_ray.counts.run_record import RunRecord
from drs_ray.counts.schema import COMPACTED_PREFIX, COUNTS, with_metadata
from drs_ray.counts.unit_keys import RunUnits

_UNITS = b"drs_ray.units"
_ROW_GROUP = 1 << 17


class Entry(NamedTuple):
    """One unit of a compacted object: its key, its number of rows, and the digest of the rows."""

    key: str
    rows: int
    digest: str


def digests(units: UnitRows) -> list[str]:
    """A digest of each unit's rows, equal for a part and a compacted object."""
    rows, votes_end = units.rows, np.searchsorted(units.rows.row_of_vote, np.cumsum(units.lengths))
    found, vote = [], 0
    for mine, end in zip(units.slices().values(), votes_end.tolist(), strict=True):
        digest = hashlib.sha256()
        for name in PER_ROW:
            digest.update(getattr(rows, name)[mine].tobytes())
        for column in (rows.row_of_vote[vote:end] - mine.start, rows.classes[vote:end], rows.votes[vote:end]):
            digest.update(column.tobytes())
        found.append(digest.hexdigest()[:16])
        vote = end
    return found


def encode_compacted(units: UnitRows, run_id: str) -> tuple[str, bytes]:
    """The key and the bytes of the object that holds these units. The same units give the same object."""
    index = [Entry(*entry) for entry in zip(units.keys, units.lengths.tolist(), digests(units), strict=True)]
    sink = io.BytesIO()
    schema = with_metadata(COUNTS, run_id, table="counts")
    with pq.ParquetWriter(sink, schema, compression="zstd", write_page_checksum=True) as writer:
        writer.write_table(units.table.replace_schema_metadata(schema.metadata), row_group_size=_ROW_GROUP)
        writer.add_key_value_metadata({_UNITS: json.dumps(index, separators=(",", ":")).encode()})
    data = sink.getvalue()
    return _key(data), data


def read_index(data: bytes, key: str, run_id: str) -> tuple[Entry, ...]:
    """The units of a compacted object. Its name is checked against its bytes; its rows are not decoded.

    Raises:
        UnsoundError: changed since it was written, or of another run or version.
    """
    if _key(data) != key:
        raise UnsoundError(key, "its bytes are not those that it is named after")
    try:
        file = pq.read_metadata(pa.BufferReader(data))
    except (pa.ArrowException, OSError) as error:
        raise UnsoundError(key, "not Parquet") from error
    check_metadata(file.metadata or {}, key, {"run_id": run_id})
    return _index(file.metadata, file.num_rows, key)


def decode_compacted(data: bytes, key: str, record: RunRecord, wanted: Sequence[str] | None = None) -> UnitRows:
    """The `wanted` units of a compacted object (None: all), in its order. All its rows are checked.

    Raises:
        UnsoundError: as `decode_parts`, or rows that do not belong to the unit they are listed under.
    """
    if _key(data) != key:
        raise UnsoundError(key, "its bytes are not those that it is named after")
    table, metadata = open_table(data, key, {"run_id": record.run_id})
    index = _index(metadata, len(table), key)
    lengths = np.array([entry.rows for entry in index])
    rows = rows_of(table)
    problem = first_problem(table, rows, record.dataset.num_classes)
    if problem is not None:
        raise UnsoundError(key, problem[1])
    units = RunUnits(record)
    names = [units.parse(entry.key) for entry in index]
    known = [name for name in names if name is not None]
    if len(known) < len(index):
        raise UnsoundError(key, f"{index[names.index(None)].key} is no unit of this run")
    misplaced = units.misplaced(rows, known, lengths)
    if misplaced is not None:
        raise UnsoundError(key, f"{index[misplaced[0]].key}: {misplaced[1]}")
    everything = UnitRows(tuple(entry.key for entry in index), lengths, table, rows)
    return everything if wanted is None else everything.only(set(wanted))


def _index(metadata: dict[bytes, bytes], rows: int, key: str) -> tuple[Entry, ...]:
    try:
        index = tuple(Entry(str(unit), int(count), str(digest)) for unit, count, digest in json.loads(metadata[_UNITS]))
    except (KeyError, ValueError, TypeError) as error:
        raise UnsoundError(key, "does not list its units") from error
    if sum(entry.rows for entry in index) != rows or len({entry.key for entry in index}) < len(index) or not index:
        raise UnsoundError(key, "its list of units is not that of its rows")
    return index


def _key(data: bytes) -> str:
    return f"{COMPACTED_PREFIX}{hashlib.sha256(data).hexdigest()[:32]}.parquet"
