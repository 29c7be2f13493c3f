"""The format of a packed data set: Parquet shards of encoded images below OUT/<split>/, and an index written last.

The index (`_dataset.json`) has the digest of all content, and for each row group a sha256 over its ids, labels and the
sha256 of each image's pixels. Readers check row groups against it, so that changed images are detected.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from drs_ray.errors import DataError, counted

INDEX = "_dataset.json"
"""Name of a split's index, beside its shards. Readers of Parquet directories ignore names that begin with `_`."""

SCHEMA = pa.schema(
    [
        pa.field("image_id", pa.int64(), nullable=False),
        pa.field("label", pa.int64(), nullable=False),
        pa.field("pixels_sha256", pa.binary(32), nullable=False),  # of the decoded uint8 [C, H, W]
        pa.field("image", pa.binary(), nullable=False),  # an image file: the source's own, or PNG
    ]
)
"""Columns of a shard. The three short columns come first, so that labels are read without images."""

ROWS = ("image_id", "label", "pixels_sha256")
"""The columns that `rows_digest` covers."""

_Sha256 = Field(pattern="^[0-9a-f]{64}$")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RowGroup(_Part):
    """Number of images of a row group, and its `rows_digest`."""

    images: int = Field(ge=1)
    sha256: str = _Sha256


class Shard(_Part):
    """One Parquet object: its key below OUT, its size in bytes, and its row groups in order of image id."""

    key: str
    size: int = Field(ge=1)
    row_groups: tuple[RowGroup, ...] = Field(min_length=1)


class PackedIndex(_Part):
    """The index of a packed split: the source's name and split, its shape and classes, digests, and the shards.

    digest: of the content (see `drs_ray.data.split.ContentDigest`), equal to the digest of an in-memory source.
    source_digest: the source's own digest. classes: names in order of class number, or None if unknown. pillow: the
    version that decoded the images; another version may decode a JPEG differently.
    """

    format: Literal["drs-ray images 1"] = "drs-ray images 1"
    name: str
    split: str
    image_size: int | None
    num_classes: int = Field(ge=1)
    classes: tuple[str, ...] | None = None
    image_shape: tuple[Literal[1, 3], int, int]
    images: int = Field(ge=1)
    digest: str = _Sha256
    source_digest: str
    pillow: str
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        found = sum(group.images for shard in self.shards for group in shard.row_groups)
        if found != self.images:
            raise ValueError(f"its row groups have {counted(found, 'image')}, not {self.images}")
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"it names {counted(len(self.classes), 'class')}, not {self.num_classes}")
        return self

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)


def index_key(split: str) -> str:
    """The key of a split's index."""
    return f"{split}/{INDEX}"


def parse_index(data: bytes, place: str) -> PackedIndex:
    """The index stored at `place`.

    Raises:
        DataError: the data are no index, or of a version that this drs-ray cannot read.
    """
    try:
        return PackedIndex.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{place}: not the index of a packed data set, or damaged ({f'{at}: ' if at else ''}{first['msg']}); "
            "pack the data set again with this version of drs-ray, into another place"
        ) from error


def rows_digest(image_ids: Sequence[int], labels: Sequence[int], pixel_digests: Sequence[bytes]) -> str:
    """sha256 (hex) of a row group; `pixel_digests` are 32 bytes each."""
    result = hashlib.sha256()
    for image_id, label, pixels in zip(image_ids, labels, pixel_digests, strict=True):
        result.update(image_id.to_bytes(8, "little") + label.to_bytes(8, "little", signed=True) + pixels)
    return result.hexdigest()
