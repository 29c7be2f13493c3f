"""Files of a Hugging Face data set: where the files of a split are, and their columns, a group of rows at a time.

They are read with pyarrow alone: Arrow streams, as `datasets.Dataset.save_to_disk` writes them, are memory-mapped;
Parquet files, as they lie on the hub, are read in batches.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from drs_ray.data.listing import few
from drs_ray.errors import DataError, counted

_DICT, _STATE = "dataset_dict.json", "state.json"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?")
_ROWS = 100
_BEGINNING = 4096
"""Bytes of a column that enter a fingerprint: the first images, or a part of the first."""
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class ArrowFile:
    """An Arrow stream, memory-mapped: its groups are its record batches, and nothing is copied.

    schema: of its columns. group_sizes: number of rows of each group. fingerprint: see `__init__`.
    """

    def __init__(self, path: Path, fingerprint: str) -> None:
        """Read the schema and where the batches begin.

        fingerprint: the library's own hash of the data and of how they were made, in `state.json`.

        Raises:
            DataError: the file is missing, damaged or truncated.
        """
        self.path, self.fingerprint = path, fingerprint
        with _readable(path):
            source = pa.memory_map(str(path))
            with pa.ipc.open_stream(source) as reader:
                self.schema = reader.schema
                self._batches = list(reader)
            # A stream that was cut between two batches would be read as a shorter one.
            source.seek(source.size() - len(_END_OF_STREAM))
            if source.read() != _END_OF_STREAM:
                raise ValueError("it is truncated: the end of the stream is missing")
        self.group_sizes = [batch.num_rows for batch in self._batches]

    def column(self, group: int, name: str) -> pa.Array:
        """The column `name` of a group. Errors: see `ArrowFile`."""
        with _readable(self.path):
            column = self._batches[group].column(name)
            column.validate(full=True)  # else a damaged offset would read beyond the file
        return column


class ParquetFile:
    """A Parquet file: its groups are up to 100 rows of a row group.

    A row group may have 100 MB and more, so it is memory-mapped and decoded batch by batch. Reading a group that comes
    before the last one that was read, or lies in another row group, begins at the start of its row group.

    schema: of its columns. group_sizes: number of rows of each group. fingerprint: see `_fingerprint`.
    """

    def __init__(self, path: Path) -> None:
        """Read the footer. Errors: see `ArrowFile`."""
        self.path = path
        with _readable(path):
            self._file = pq.ParquetFile(path, memory_map=True)
            self.fingerprint = _fingerprint(path, self._file.metadata)
            self.schema = self._file.schema_arrow
            rows = [self._file.metadata.row_group(number).num_rows for number in range(self._file.num_row_groups)]
        starts = [(row_group, start) for row_group, count in enumerate(rows) for start in range(0, count, _ROWS)]
        self._groups = [(row_group, start // _ROWS) for row_group, start in starts]
        self.group_sizes = [min(_ROWS, rows[row_group] - start) for row_group, start in starts]
        self._reading: tuple[int, str] | None = None  # row group and column of `_batches`
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._given = 0  # of `_batches`

    def column(self, group: int, name: str) -> pa.Array:
        """The column `name` of a group. Errors: see `ArrowFile`."""
        row_group, wanted = self._groups[group]
        reading, self._reading = self._reading, None  # it stays None if reading fails
        with _readable(self.path):
            if reading != (row_group, name) or self._given > wanted:
                self._given = 0
                self._batches = iter(())  # frees what it holds, before the next one reads
                self._batches = self._file.iter_batches(_ROWS, [row_group], [name], use_threads=False)
            for batch in self._batches:
                self._given += 1
                if self._given > wanted and batch.num_rows == self.group_sizes[group]:
                    self._reading = row_group, name
                    return batch.column(name)
            raise ValueError(f"row group {row_group} has fewer rows than the footer says")


def _fingerprint(path: Path, metadata: pq.FileMetaData) -> str:
    """sha256 (hex) of the footer and the beginning of each column of each row group: other rows there are noticed."""
    found = hashlib.sha256()
    with path.open("rb") as raw:
        raw.seek(-8, os.SEEK_END)  # the file ends with the footer, its length and the four bytes PAR1
        raw.seek(-8 - int.from_bytes(raw.read(4), "little"), os.SEEK_END)
        found.update(raw.read())
        for row_group in map(metadata.row_group, range(metadata.num_row_groups)):
            for column in map(row_group.column, range(row_group.num_columns)):
                raw.seek(column.data_page_offset)
                found.update(raw.read(_BEGINNING))
    return found.hexdigest()


TableFile = ArrowFile | ParquetFile


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = "file not found" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({reason}); bring back the whole file") from error


def split_files(root: Path, split: str) -> list[TableFile]:
    """The files of a split, in order: of a data set or `DatasetDict` that was saved to disk, or Parquet files.

    Parquet files may be anywhere below root: `<split>-00000-of-00002.parquet`, `<split>.parquet`, or with a number for
    a name in a directory named as the split. Directories whose names begin with `.` are left out.

    Raises:
        DataError: root is no such directory, does not have the split, or a file is missing or damaged.
    """
    who = f"data set huggingface: {root}"
    if not root.is_dir():
        raise DataError(f"data set huggingface: root {root} is not a directory; correct dataset.root")
    if (root / _DICT).is_file():
        splits = _names(root / _DICT, "splits")
        if split not in splits:
            raise DataError(f"{who} has no split {split!r}; there: {few(splits)}; correct dataset.split")
        return _saved(root / split)
    if (root / _STATE).is_file():
        saved = _content(root / _STATE).get("_split")
        if saved not in (None, split):
            raise DataError(f"{who} holds the split {saved!r}, not {split!r}; correct dataset.split or dataset.root")
        return _saved(root)
    return [ParquetFile(path) for path in _parquet_files(root, split, who)]


def _saved(directory: Path) -> list[TableFile]:
    state = directory / _STATE
    fingerprint = str(_content(state).get("_fingerprint"))
    return [ArrowFile(directory / name, fingerprint) for name in _names(state, "_data_files")]


def _names(file: Path, key: str) -> list[str]:
    """A list in a JSON file, of names or of objects with a `filename`."""
    found = _content(file).get(key)
    entries = found if isinstance(found, list) else [None]
    names = [entry.get("filename") if isinstance(entry, dict) else entry for entry in entries]
    if not all(isinstance(name, str) for name in names):
        raise DataError(f"{file}: {key!r} is not a list of names; save the data set again with save_to_disk")
    return [str(name) for name in names]


def _content(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise DataError(
            f"{file}: cannot be read ({reason}); save the data set again with save_to_disk of the library datasets"
        ) from error
    return content


def _parquet_files(root: Path, split: str, who: str) -> list[Path]:
    found: dict[str, dict[Path, list[Path]]] = {}  # split -> directory of the split -> its files
    for path in sorted(root.rglob("*.parquet")):
        if any(part.startswith(".") for part in path.relative_to(root).parts):
            continue
        shard = _SHARD.fullmatch(path.stem)
        if shard is None and path.stem.isdigit():
            name, directory = path.absolute().parent.name, path.parent
        else:
            name, directory = path.stem if shard is None else shard[1], path.parent
        found.setdefault(name, {}).setdefault(directory, []).append(path)
    if not found:
        raise DataError(
            f"{who} is neither a data set that save_to_disk of the library datasets wrote ({_DICT} or {_STATE}), nor "
            "has Parquet files; correct dataset.root"
        )
    if split not in found:
        raise DataError(
            f"{who} has no Parquet files of the split {split!r}; there: {few(sorted(found))}; correct dataset.split"
        )
    if len(found[split]) > 1:
        raise DataError(
            f"{who} has the split {split!r} in {counted(len(found[split]), 'directory', 'directories')} "
            f"({few([str(directory.relative_to(root)) for directory in found[split]])}); set dataset.root to one of "
            "them, or to the directory above it"
        )
    (files,) = found[split].values()
    shards = [(int(shard[2]), int(shard[3])) for path in files if (shard := _SHARD.fullmatch(path.stem))]
    if shards and shards != [(number, len(files)) for number in range(len(files))]:
        raise DataError(
            f"{who} must have the Parquet files 0 to {shards[-1][1] - 1} of the split {split!r} once each, it has "
            f"{len(files)}: {few([path.name for path in files])}; bring back the others"
        )
    return files
