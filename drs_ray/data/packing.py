"""`drs-ray pack`: writes a data set as Parquet row groups of encoded images, to a directory or S3, in bounded memory.

Shards are named by their content. The index is written last; without it nothing can be read. A killed pack starts again
from the first image, but does not store existing shards again.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq

from drs_ray.data.datasets import Dataset
from drs_ray.data.packed_format import SCHEMA, PackedIndex, RowGroup, Shard, index_key, parse_index, rows_digest
from drs_ray.data.split import ContentDigest
from drs_ray.errors import ConfigError, MissingObjectError
from drs_ray.storage import Store

ROW_GROUP_BYTES = 2**20
"""A row group ends when its images reach this size; to get one image, a row group is read in one request."""
SHARD_BYTES = 2**25
"""A shard ends when its row groups reach this size; packing needs three times this memory."""


class _Row(NamedTuple):
    image_id: int
    label: int
    pixels_sha256: bytes
    image: bytes


def pack_dataset(
    dataset: Dataset, image_size: int | None, store: Store, on_progress: Callable[[int], None]
) -> tuple[PackedIndex, bool]:
    """Pack all images of a split below `store`.

    Args:
        dataset: the source.
        image_size: size to which the source's images are resized, for the index.
        store: destination; it may hold several splits, each below its own name.
        on_progress: called after each image with the number of packed images.

    Returns:
        The stored index, and whether the split was packed before: then nothing was written.

    Raises:
        ConfigError: another data set is packed in `store`.
        DataError: naming the image that is missing, broken, or of another size.
        StoreError: `store` cannot be written.
    """
    store.check_writable()
    key = index_key(dataset.split)
    place = f"{store.uri}/{key}"
    try:
        there = parse_index(store.get(key), place)
    except MissingObjectError:
        pass
    else:
        if _source(there) != (dataset.name, image_size, dataset.digest):
            raise ConfigError(
                f"{place}: another data set is packed there ({there.name} {there.split}, digest {there.digest[:12]}); "
                "name another place, or remove that one first"
            )
        return there, True
    content = ContentDigest(dataset.name, dataset.split, (len(dataset), *dataset.image_shape), dataset.num_classes)
    labels = np.empty(len(dataset), dtype=np.int64)
    shards = tuple(_stored(_shards(_groups(_rows(dataset, content, labels, on_progress))), dataset.split, store))
    index = PackedIndex(
        name=dataset.name,
        split=dataset.split,
        image_size=image_size,
        num_classes=dataset.num_classes,
        classes=dataset.classes,
        image_shape=dataset.image_shape,
        images=len(dataset),
        digest=content.hexdigest(labels),
        source_digest=dataset.digest,
        pillow=PIL.__version__,
        shards=shards,
    )
    data = index.model_dump_json(indent=1).encode()
    if store.create(key, data) != data:
        raise ConfigError(f"{place}: another pack has ended there meanwhile; name another place")
    _remove_strays(index, store)
    return index, False


def _source(index: PackedIndex) -> tuple[str, int | None, str]:
    return index.name, index.image_size, index.source_digest


def _rows(
    dataset: Dataset,
    content: ContentDigest,
    labels: np.ndarray[tuple[int], np.dtype[np.int64]],
    on_progress: Callable[[int], None],
) -> Iterator[_Row]:
    for image_id in range(len(dataset)):
        image, pixels = dataset.encoded(image_id)
        labels[image_id] = dataset.label(image_id)
        content.add(pixels)
        yield _Row(image_id, int(labels[image_id]), hashlib.sha256(np.ascontiguousarray(pixels).data).digest(), image)
        on_progress(image_id + 1)


def _groups(rows: Iterable[_Row]) -> Iterator[list[_Row]]:
    group: list[_Row] = []
    size = 0
    for row in rows:
        group.append(row)
        size += len(row.image)
        if size >= ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _shards(groups: Iterable[list[_Row]]) -> Iterator[tuple[bytes, tuple[RowGroup, ...]]]:
    """Whole Parquet files and their row groups: a function of the rows and of pyarrow's version."""
    written: list[RowGroup] = []
    sink = io.BytesIO()
    writer: pq.ParquetWriter | None = None
    for group in groups:
        if writer is None:
            # Images are compressed already, and without compression a flipped bit damages one image, not a whole page.
            writer = pq.ParquetWriter(sink, SCHEMA, compression="none", use_dictionary=False, write_statistics=False)
        writer.write_table(pa.Table.from_pylist([row._asdict() for row in group], SCHEMA), row_group_size=len(group))
        digest = rows_digest(*(list(column) for column in list(zip(*group, strict=True))[:3]))
        written.append(RowGroup(images=len(group), sha256=digest))
        if sink.tell() >= SHARD_BYTES:
            writer.close()
            yield sink.getvalue(), tuple(written)
            writer, sink, written = None, io.BytesIO(), []
    if writer is not None:
        writer.close()
        yield sink.getvalue(), tuple(written)


def _stored(shards: Iterable[tuple[bytes, tuple[RowGroup, ...]]], split: str, store: Store) -> Iterator[Shard]:
    there = {stored.key: stored.size for stored in store.list(f"{split}/")}
    for number, (data, row_groups) in enumerate(shards):
        key = f"{split}/{number:05d}-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        if there.get(key) != len(data):
            store.put(key, data)
        yield Shard(key=key, size=len(data), row_groups=row_groups)


def _remove_strays(index: PackedIndex, store: Store) -> None:
    """Delete shards of killed packs of another source or with another version of pyarrow."""
    ours = {shard.key for shard in index.shards}
    for stored in store.list(f"{index.split}/"):
        if stored.key not in ours and re.fullmatch(r"\d{5,}-[0-9a-f]{16}\.parquet", stored.key.rpartition("/")[2]):
            store.delete(stored.key)
