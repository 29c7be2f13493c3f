"""The data set `parquet`, written by `drs-ray pack`; only the row groups that are needed are read."""

from __future__ import annotations

import hashlib
import io
import itertools
from bisect import bisect_right
from typing import NamedTuple

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from drs_ray.data.image_files import decode
from drs_ray.data.packed_format import INDEX, ROWS, SCHEMA, PackedIndex, Shard, index_key, parse_index, rows_digest
from drs_ray.data.split import Split
from drs_ray.errors import ConfigError, DataError, MissingObjectError
from drs_ray.storage import Store, open_store

_REMEDY = "pack the data set again into another place"


class _RowGroup(NamedTuple):
    """Position of a row group, and the ids of its images: first, ..., stop - 1."""

    shard: Shard
    number: int
    first: int
    stop: int
    sha256: str


class PackedDataset(Split):
    """A packed split (see `drs_ray.data.datasets.Dataset`), under the name of its source.

    Holds the index and one row group in memory: some 2 MiB, and 100 bytes per row group.
    """

    def __init__(self, store: Store, index: PackedIndex) -> None:
        """`index` is the split's index in `store`. Nothing is read before the first access to an image or a label."""
        self.name, self.split = index.name, index.split
        self.num_classes, self.classes, self.digest = index.num_classes, index.classes, index.digest
        self._store, self._index = store, index
        stops = itertools.accumulate(group.images for shard in index.shards for group in shard.row_groups)
        self._groups = [
            _RowGroup(shard, number, stop - group.images, stop, group.sha256)
            for (shard, number, group), stop in zip(
                ((shard, *numbered) for shard in index.shards for numbered in enumerate(shard.row_groups)),
                stops,
                strict=True,
            )
        ]
        self._stops = [group.stop for group in self._groups]
        self._footer: tuple[str, pq.FileMetaData] | None = None
        self._held: tuple[_RowGroup, pa.Table] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._index.image_shape

    def __len__(self) -> int:
        return self._index.images

    def pixels_of(self, image_id: int) -> NDArray[np.uint8]:
        """One image, uint8 [C, H, W].

        Raises:
            DataError: naming the image, its shard and row group, if it is missing, broken, or changed since packing.
            StoreError: the store cannot be read.
        """
        return self.encoded(image_id)[1]

    def encoded(self, image_id: int) -> tuple[bytes, NDArray[np.uint8]]:
        """The packed image file, and its pixels. Errors: see `pixels_of`."""
        group = self._group_of(image_id)
        table = self._rows(group, with_images=True)
        row = image_id - group.first
        image: bytes | None = table["image"][row].as_py()
        where = f"image {image_id}: {self._place(group)}"
        if not image:
            raise DataError(f"{where}: the image is missing; {_REMEDY}, or leave its image id out")
        try:
            pixels = decode(image, self.image_shape[0])
        except ValueError as error:
            raise DataError(f"{where}: cannot be read ({error}); {_REMEDY}, or leave its image id out") from error
        if pixels.shape != self.image_shape:
            shapes = [" x ".join(map(str, shape)) for shape in (pixels.shape, self.image_shape)]
            raise DataError(f"{where}: has the shape {shapes[0]}, the data set {shapes[1]}; {_REMEDY}")
        if hashlib.sha256(pixels.data).digest() != table["pixels_sha256"][row].as_py():
            versions = f"packed with Pillow {self._index.pillow}, read with {PIL.__version__}"
            other = " (another Pillow may decode a JPEG otherwise)" if PIL.__version__ != self._index.pillow else ""
            raise DataError(f"{where}: its pixels are not those that were packed; {versions}{other}; {_REMEDY}")
        return image, pixels

    def label(self, image_id: int) -> int:
        """Class index of one image, read without images unless these are in memory. Errors: see `pixels_of`."""
        group = self._group_of(image_id)
        label: int = self._rows(group, with_images=False)["label"][image_id - group.first].as_py()
        return label

    def _group_of(self, image_id: int) -> _RowGroup:
        return self._groups[bisect_right(self._stops, self.known(image_id))]

    def _place(self, group: _RowGroup) -> str:
        return f"{self._store.uri}/{group.shard.key}, row group {group.number}"

    def _rows(self, group: _RowGroup, with_images: bool) -> pa.Table:
        if self._held is not None:
            held, table = self._held
            if held is group and (not with_images or "image" in table.column_names):
                return table
        table = self._read(group, [*ROWS, "image"] if with_images else [*ROWS])
        self._held = group, table
        return table

    def _read(self, group: _RowGroup, columns: list[str]) -> pa.Table:
        where = f"images {group.first}..{group.stop - 1}: {self._place(group)}"
        try:
            table = self._open(group.shard).read_row_group(group.number, columns=columns, use_threads=False)
        except MissingObjectError as error:
            raise DataError(f"{where}: the shard is missing; {_REMEDY}, or bring it back") from error
        except (pa.ArrowException, OSError, ValueError, IndexError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise DataError(f"{where}: cannot be read ({reason}); {_REMEDY}, or bring the shard back") from error
        ids, labels, digests = (table[name].to_pylist() for name in ROWS)
        if (
            ids != list(range(group.first, group.stop))
            or None in labels
            or None in digests
            or rows_digest(ids, labels, digests) != group.sha256
        ):
            raise DataError(f"{where}: ids, labels or digests of pixels are not those of {INDEX}; {_REMEDY}")
        return table

    def _open(self, shard: Shard) -> pq.ParquetFile:
        """Open the shard. Each call makes a new file, since one with `pre_buffer` keeps all bytes that it has read."""
        footer = self._footer[1] if self._footer is not None and self._footer[0] == shard.key else None
        # pre_buffer: the columns of a row group are adjacent, and are read in one request.
        file = pq.ParquetFile(_StoredFile(self._store, shard), metadata=footer, pre_buffer=True)
        if footer is None:
            if not file.schema_arrow.equals(SCHEMA):
                raise ValueError("it has other columns than a shard of a packed data set")
            self._footer = shard.key, file.metadata
        return file


class _StoredFile(io.RawIOBase):
    """A stored object as a file; only the requested bytes are fetched."""

    def __init__(self, store: Store, shard: Shard) -> None:
        self._store, self._shard = store, shard
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._shard.size}[whence]
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._shard.size - self._at, 0)
        wanted = left if size < 0 else min(size, left)
        data = self._store.get_range(self._shard.key, self._at, wanted)
        if len(data) != wanted:
            raise ValueError(f"it ends before byte {self._at + wanted}; it should have {self._shard.size}")
        self._at += wanted
        return data


def load_packed(root: str, split: str, endpoint_url: str | None) -> PackedDataset:
    """Open the packed split below `root`, a directory or s3:// URI; reads only its index.

    Raises:
        ConfigError: an invalid root or split.
        DataError: the split is not packed below `root`, or its index is damaged.
        StoreError: `root` cannot be read.
    """
    if not split or "/" in split or split.startswith("."):
        raise ConfigError(f"dataset.split must be the name of a packed split, got {split!r}")
    store = open_store(root, endpoint_url)
    key = index_key(split)
    try:
        index = parse_index(store.get(key), f"{store.uri}/{key}")
    except MissingObjectError as error:
        names = (stored.key.split("/") for stored in store.list())
        there = ", ".join(name[0] for name in names if len(name) == 2 and name[1] == INDEX) or "none"
        raise DataError(
            f"data set parquet: no split {split!r} is packed in {store.uri}; there: {there}; correct dataset.root or "
            "dataset.split, or write it with `drs-ray pack`"
        ) from error
    if index.split != split:
        raise DataError(
            f"{store.uri}/{key}: is the index of the split {index.split!r}; rename its directory back to that"
        )
    return PackedDataset(store, index)
