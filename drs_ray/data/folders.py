"""Image folders, root/split/class/image: `imagenet` and `folder`. Images are decoded one at a time, when asked for."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from drs_ray.data.pixels import decode, encode_png
from drs_ray.data.split import Split
from drs_ray.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
"""File names that are images; other files and hidden files are not looked at."""


@dataclass(frozen=True, eq=False)
class FolderDataset(Split):
    """A split of an image folder (see `drs_ray.data.datasets.Dataset`): RGB, classes in order of directory name.

    files: path below the split's directory, in order of class, then of name; the position is the image id. size:
    (height, width) of every image.
    """

    name: str
    split: str
    directory: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    targets: NDArray[np.int64]
    size: tuple[int, int]
    image_size: int | None
    digest: str

    @property
    def num_classes(self) -> int:
        """Number of class directories."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W)."""
        return 3, *self.size

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def pixels_of(self, image_id: int) -> NDArray[np.uint8]:
        """One image, decoded now: uint8 [3, H, W].

        Raises:
            DataError: naming the file, if it is gone, broken, not of 8 bits, or of another size than the others.
        """
        return self._read(image_id)[1]

    def encoded(self, image_id: int) -> tuple[bytes, NDArray[np.uint8]]:
        """The file as it is, or a PNG where images are resized; and its pixels."""
        data, pixels = self._read(image_id)
        return (data if self.image_size is None else encode_png(pixels)), pixels

    def label(self, image_id: int) -> int:
        """Class index of one image."""
        return int(self.targets[self.known(image_id)])

    def _read(self, image_id: int) -> tuple[bytes, NDArray[np.uint8]]:
        file = self.directory / self.files[self.known(image_id)]
        try:
            data = file.read_bytes()
            pixels = decode(data, 3, self.image_size)
        except (OSError, ValueError) as error:
            raise _broken(file, error) from error
        if pixels.shape != self.image_shape:
            height, width = self.size
            raise DataError(
                f"image {file}: {pixels.shape[2]}x{pixels.shape[1]} pixels, but the first image of the split has "
                f"{width}x{height}; set dataset.image_size to resize and crop all images alike"
            )
        return data, pixels


def load_folder(name: str, root: Path, split: str, image_size: int | None) -> FolderDataset:
    """List the images of root/split/class/. Nothing is decoded, but the first image's size is read.

    The digest covers class names, relative paths, file sizes in bytes and image_size, not the pixels: hashing the
    content of all of ImageNet at every start would take longer than most runs.

    Raises:
        DataError: if the root, the split, the classes or the images are missing.
    """
    if not root.is_dir():
        raise DataError(f"data set {name}: root {root} is not a directory; correct dataset.root")
    splits = _directories(root)
    allowed = ("train", "val", "test") if name == "imagenet" else tuple(splits)
    directory = root / split
    if split not in splits or split not in allowed:
        there = ", ".join(s for s in splits if s in allowed) or "none"
        hint = " (ImageNet's labelled test images are its val split)" if name == "imagenet" else ""
        raise DataError(
            f"data set {name}: dataset.split must be a sub-directory of {root} that holds one directory per class, "
            f"got {split!r}; there: {there}{hint}"
        )
    classes = _directories(directory)
    if not classes:
        raise DataError(f"data set {name}: {directory} has no class directories; sort images into {split}/<class>/")
    listing = hashlib.sha256(f"{name}/{split}/{image_size}/".encode())
    files: list[str] = []
    targets: list[int] = []
    for index, class_name in enumerate(classes):
        listing.update(f"class {class_name}\n".encode())
        for file_name, size in _images(directory / class_name):
            files.append(f"{class_name}/{file_name}")
            targets.append(index)
            listing.update(f"{size} {files[-1]}\n".encode())
    if not files:
        raise DataError(f"data set {name}: {directory} has no images ({', '.join(SUFFIXES)}) in its class directories")
    if image_size is None:
        width, height = _size(directory / files[0])
    else:
        width = height = image_size
    return FolderDataset(
        name=name,
        split=split,
        directory=directory,
        classes=tuple(classes),
        files=tuple(files),
        targets=np.array(targets, dtype=np.int64),
        size=(height, width),
        image_size=image_size,
        digest=listing.hexdigest(),
    )


def _directories(parent: Path) -> list[str]:
    with os.scandir(parent) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _images(directory: Path) -> list[tuple[str, int]]:
    with os.scandir(directory) as entries:
        return sorted(
            (entry.name, entry.stat().st_size)
            for entry in entries
            if entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
        )


def _size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return image.size
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise _broken(file, error) from error


def _broken(file: Path, error: Exception) -> DataError:
    reason = "file not found" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
    return DataError(f"image {file}: cannot be read ({reason}); replace the file, or leave its image id out")
