"""The data set `huggingface`: a data set that the library `datasets` saved to disk, or Parquet files of the hub.

The library is not needed. Images are decoded one at a time, when requested.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from drs_ray.data.image_files import UnfitImageError, decode, encode_png, header
from drs_ray.data.listing import few
from drs_ray.data.split import Split
from drs_ray.data.table_files import TableFile, split_files
from drs_ray.errors import DataError, counted

_GREY = ("1", "L", "LA")


class _Columns(NamedTuple):
    """The columns of images and labels, and the names of the labels; empty: not known."""

    image: str
    label: str
    names: tuple[str, ...]


class _Group(NamedTuple):
    """A group of rows of a file. stop: the image id after its last. row: number of its first row in the file."""

    file: TableFile
    number: int
    stop: int
    row: int


class HuggingFaceDataset(Split):
    """A split of a Hugging Face data set (see `drs_ray.data.datasets.Dataset`).

    Holds the labels and, of Parquet files, some 100 images; Arrow files are memory-mapped.
    """

    name = "huggingface"

    def __init__(
        self,
        split: str,
        files: Sequence[TableFile],
        columns: _Columns,
        targets: NDArray[np.int64],
        classes: tuple[str, ...],
        channels: Literal[1, 3] | None,
        image_size: int | None,
        warnings: tuple[str, ...],
    ) -> None:
        """Read the header of the first image, which decides what the arguments leave open.

        Args:
            split: as in the config.
            files: the files of the split, in order; together they have at least one row.
            columns: the columns of all `files`.
            targets: int64 [N], class index of each row.
            classes: names of all classes, in order of class index.
            channels: 1 (grey) or 3 (RGB); None: 1 if the first image is grey.
            image_size: size to which images are resized and cropped; None: all have the size of the first.
            warnings: see `Dataset`.

        Raises:
            DataError: the first image cannot be read.
        """
        self.split, self.classes, self.num_classes, self.warnings = split, classes, len(classes), warnings
        self._targets, self._image_column, self._image_size = targets, columns.image, image_size
        self._groups = list(_groups(files))
        self._stops = [group.stop for group in self._groups]
        self._held: tuple[_Group, pa.Array] | None = None
        mode, size = self._header(0)
        self._channels = channels or (1 if mode in _GREY else 3)
        self._size = size if image_size is None else (image_size, image_size)
        described = [split, image_size, self._channels, columns.image, columns.label, classes]
        content = hashlib.sha256(json.dumps([self.name, *described]).encode())
        for file in files:
            content.update(f"\n{file.path.stat().st_size} {file.path.name} {file.fingerprint}".encode())
        content.update(targets.astype("<i8").data)
        self.digest = content.hexdigest()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._channels, *self._size

    def __len__(self) -> int:
        return len(self._targets)

    def check(self, image_ids: Sequence[int]) -> None:
        """Read the headers of some images; of Parquet files, the row groups up to these images.

        Raises:
            DataError: naming the first image that is missing, no image, not 8-bit, in colour if the data set is grey,
                or of another size than the first.
        """
        for image_id in image_ids:
            mode, size = self._header(image_id)
            self._check_kind(image_id, mode, size if self._image_size is None else self._size)

    def pixels_of(self, image_id: int) -> NDArray[np.uint8]:
        """One image, uint8 [C, H, W].

        Raises:
            DataError: naming the image, its file and row, if it cannot be decoded, or for what `check` finds.
        """
        return self.encoded(image_id)[1]

    def encoded(self, image_id: int) -> tuple[bytes, NDArray[np.uint8]]:
        """The stored image file, or a PNG if images are resized; and its pixels. Errors: see `pixels_of`."""
        mode, _ = self._header(image_id)
        data = self._file(image_id).to_pybytes()
        try:
            pixels = decode(data, self._channels, self._image_size)
        except ValueError as error:
            raise self._broken(image_id, error) from error
        self._check_kind(image_id, mode, (pixels.shape[1], pixels.shape[2]))
        return (data if self._image_size is None else encode_png(pixels)), pixels

    def label(self, image_id: int) -> int:
        """Class index of one image."""
        return int(self._targets[self.known(image_id)])

    def _file(self, image_id: int) -> pa.Buffer:
        """The image file, not copied."""
        group = self._group_of(image_id)
        if self._held is None or self._held[0] is not group:
            column = group.file.column(group.number, self._image_column)
            self._held = group, pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column
        files = self._held[1]
        file = files[image_id - group.stop + len(files)].as_buffer()
        if file is None:
            raise DataError(
                f"{self._place(image_id)}: has no image, or only its path; save the data set again with its images "
                "embedded, or leave the image id out"
            )
        return file

    def _header(self, image_id: int) -> tuple[str, tuple[int, int]]:
        """Pillow's colour mode of an image, and (H, W)."""
        file = self._file(image_id)
        try:
            with header(pa.BufferReader(file)) as image:
                return image.mode, (image.height, image.width)
        except ValueError as error:
            raise self._broken(image_id, error) from error

    def _check_kind(self, image_id: int, mode: str, size: tuple[int, int]) -> None:
        if self._channels == 1 and mode not in _GREY:
            raise DataError(
                f"{self._place(image_id)}: has colours, but dataset.channels or the first image of the split is grey; "
                "set dataset.channels: 3"
            )
        if size != self._size:
            raise DataError(
                f"{self._place(image_id)}: {size[1]}x{size[0]} pixels, but the first image of the split has "
                f"{self._size[1]}x{self._size[0]}; set dataset.image_size to resize and crop all images alike"
            )

    def _group_of(self, image_id: int) -> _Group:
        return self._groups[bisect_right(self._stops, self.known(image_id))]

    def _place(self, image_id: int) -> str:
        group = self._group_of(image_id)
        rows = group.file.group_sizes[group.number]
        return f"image {image_id}: {group.file.path}, row {group.row + image_id - group.stop + rows}"

    def _broken(self, image_id: int, error: ValueError) -> DataError:
        if isinstance(error, UnfitImageError):
            return DataError(f"{self._place(image_id)}: {error}")
        return DataError(
            f"{self._place(image_id)}: cannot be read ({error}); bring back the original, or leave the image id out"
        )


def load_huggingface(
    root: Path,
    split: str,
    image_size: int | None = None,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    channels: Literal[1, 3] | None = None,
) -> HuggingFaceDataset:
    """Open a split. Its labels are read, but none of its images except the first.

    Args:
        root: directory of the data set; see `drs_ray.data.table_files.split_files`.
        split: name of the split.
        image_size: size to which images are resized and cropped, or None.
        classes: names of all classes in order of class number; None: the names in the files, in their order.
        image_column: None: the only column that is an image by the features in the files.
        label_column: None: the only column that has class labels by the features in the files.
        channels: 1 (grey) or 3 (RGB); None: 1 if the first image is grey.

    Raises:
        DataError: files, columns, labels, class names or the first image are missing or invalid.
    """
    who = f"data set huggingface: {root}"
    files = [file for file in split_files(root, split) if sum(file.group_sizes)]
    if not files:
        raise DataError(f"{who} has no rows in the split {split!r}; correct dataset.root or dataset.split")
    columns = _columns(files[0], image_column, label_column)
    for file in files[1:]:
        if _columns(file, image_column, label_column) != columns:
            raise DataError(f"{file.path}: has other columns or class names than {files[0].path}; save them alike")
    stored = np.concatenate([_labels(file, columns.label) for file in files])
    names = columns.names or tuple(classes or ())
    if len(names) < 2 or len(set(names)) < len(names):
        raise DataError(
            f"{who}: the column {columns.label!r} must have the names of two classes at least, each once, got "
            f"{few(names) or 'none'}; correct dataset.label_column, or name the classes in dataset.classes, in order"
        )
    wrong = np.flatnonzero((stored < 0) | (stored >= len(names)))
    if wrong.size:
        raise DataError(
            f"{who}: labels must be in 0..{len(names) - 1}, image {wrong[0]} has {stored[wrong[0]]} (-1: not known); "
            "choose a split or dataset.label_column with labels"
        )
    order = tuple(classes or names)
    number = {name: index for index, name in enumerate(order)}
    unlisted = [name for name in names if name not in number]
    if unlisted:
        raise DataError(f"{who} has classes that are not in dataset.classes: {few(unlisted)}; add them in their place")
    unused = [name for name in order if name not in set(names)]
    warning = f"{who} does not know {counted(len(unused), 'class')} of dataset.classes ({few(unused)})"
    return HuggingFaceDataset(
        split=split,
        files=files,
        columns=columns,
        targets=np.array([number[name] for name in names])[stored],
        classes=order,
        channels=channels,
        image_size=image_size,
        warnings=(warning,) if unused else (),
    )


def _groups(files: Sequence[TableFile]) -> Iterator[_Group]:
    stop = 0
    for file in files:
        row = 0
        for number, rows in enumerate(file.group_sizes):
            stop += rows
            yield _Group(file, number, stop, row)
            row += rows


def _columns(file: TableFile, image_column: str | None, label_column: str | None) -> _Columns:
    """The columns of a file, by their names or else by the features in its metadata."""
    features = _features(file)
    image = _column(file, features, "Image", "image_column", image_column)
    label = _column(file, features, "ClassLabel", "label_column", label_column)
    kind = file.schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"{file.path}: the column {image!r} must hold image files, as bytes or as bytes and path, it is {kind}; "
            "correct dataset.image_column"
        )
    if not pa.types.is_integer(kind := file.schema.field(label).type):
        raise DataError(
            f"{file.path}: the column {label!r} must hold class numbers, it is {kind}; correct dataset.label_column"
        )
    names = features.get(label, {}).get("names")
    return _Columns(image, label, tuple(str(name) for name in names) if isinstance(names, list) else ())


def _column(file: TableFile, features: dict[str, Any], kind: str, key: str, given: str | None) -> str:
    there = file.schema.names
    found = [name for name in there if features.get(name, {}).get("_type") == kind] if given is None else [given]
    if len(found) == 1 and there.count(found[0]) == 1:
        return found[0]
    if given is not None:
        rule = f"dataset.{key} must be one of its columns, got {given!r}"
    elif found:
        rule = f"has {counted(len(found), 'column')} of the kind {kind} ({few(found)}); name one in dataset.{key}"
    else:
        rule = f"has no column of the kind {kind} by its metadata; name the column in dataset.{key}"
    raise DataError(f"{file.path}: {rule}; its columns: {few(there) or 'none'}")


def _features(file: TableFile) -> dict[str, Any]:
    """The features by column that the library `datasets` keeps in a schema's metadata; empty if there are none."""
    try:
        features = json.loads((file.schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _labels(file: TableFile, name: str) -> NDArray[np.int64]:
    """The labels of a file, int64 [N]; -1 where there is none."""
    columns = [file.column(group, name) for group in range(len(file.group_sizes))]
    return np.concatenate([pc.fill_null(pc.cast(column, pa.int64(), safe=False), -1).to_numpy() for column in columns])
