"""Image folders, root/split/class/image: `imagenet` and `folder`. Images are decoded one at a time, when asked for."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from drs_ray.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
"""File names that are images; other files and hidden files are not looked at."""

_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True, eq=False)
class FolderDataset:
    """A split of an image folder (see `drs_ray.data.datasets.Dataset`): RGB, classes in order of directory name.

    files: path below the split's directory, in order of class, then of name; the position is the image id.
    """

    name: str
    split: str
    directory: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    targets: NDArray[np.int64]
    image_shape: tuple[int, int, int]
    image_size: int | None
    digest: str

    @property
    def num_classes(self) -> int:
        """Number of class directories."""
        return len(self.classes)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.files)

    def image(self, image_id: int) -> NDArray[np.float32]:
        """One image, decoded now: float32 [3, H, W] in [0, 1], multiples of 1/255.

        Raises:
            DataError: naming the file, if it is gone, broken, not of 8 bits, or of another size than the others.
        """
        file = self.directory / self.files[self._known(image_id)]
        pixels = _decode(file, self.image_size)
        if pixels.shape != self.image_shape:
            _, height, width = self.image_shape
            raise DataError(
                f"image {file}: {pixels.shape[2]}x{pixels.shape[1]} pixels, but the first image of the split has "
                f"{width}x{height}; set dataset.image_size to resize and crop all images alike"
            )
        return pixels.astype(np.float32) / np.float32(255)

    def label(self, image_id: int) -> int:
        """Class index of one image."""
        return int(self.targets[self._known(image_id)])

    def images(self, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Several images, float32 [n, 3, H, W] in [0, 1]."""
        result = np.empty((len(image_ids), *self.image_shape), dtype=np.float32)
        for row, image_id in enumerate(image_ids):
            result[row] = self.image(image_id)
        return result

    def labels(self, image_ids: Sequence[int]) -> NDArray[np.int64]:
        """Class indices of several images, int64 [n]."""
        return self.targets[[self._known(i) for i in image_ids]]

    def _known(self, image_id: int) -> int:
        if not 0 <= image_id < len(self):
            raise DataError(f"image {image_id}: {self.name} {self.split} has the images 0..{len(self) - 1}")
        return image_id


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
        image_shape=(3, height, width),
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


def _decode(file: Path, image_size: int | None) -> NDArray[np.uint8]:
    """uint8 [3, H, W]."""
    try:
        with Image.open(file) as image:
            if image.mode not in _EIGHT_BIT_MODES:
                raise DataError(
                    f"image {file}: mode {image.mode} has more than 8 bits per channel; convert it to an 8-bit image"
                )
            picture = image.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:  # SyntaxError: PIL's broken PNG
        raise _broken(file, error) from error
    if image_size is not None:
        picture = _resize_and_crop(picture, image_size)
    return np.asarray(picture, dtype=np.uint8).transpose(2, 0, 1)


def _resize_and_crop(picture: Image.Image, image_size: int) -> Image.Image:
    """Short side to round(8/7 image_size) (256 for 224), then the centre: pixel for pixel torchvision's transforms."""
    short = round(image_size * 8 / 7)
    width, height = picture.size
    smaller = min(width, height)
    width, height = int(short * width / smaller), int(short * height / smaller)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    return picture.crop((left, top, left + image_size, top + image_size))


def _broken(file: Path, error: Exception) -> DataError:
    reason = "file not found" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
    return DataError(f"image {file}: cannot be read ({reason}); replace the file, or leave its image id out")
