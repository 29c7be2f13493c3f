"""Image folders, root/split/class/image: `imagenet` and `folder`. Images are decoded one at a time, when requested."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drs_ray.config.class_names import shown
from drs_ray.data.image_files import UnfitImageError, decode, encode_png, header
from drs_ray.data.listing import Listing, list_classes
from drs_ray.data.split import Split
from drs_ray.errors import DataError

_LOOKS = 8
"""Headers that are read concurrently, because each read waits on a shared file system."""
_BATCH = 4096


@dataclass(frozen=True, eq=False)
class FolderDataset(Split):
    """A split of an image folder (see `drs_ray.data.datasets.Dataset`): RGB.

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
    warnings: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(3, H, W)."""
        return 3, *self.size

    def __len__(self) -> int:
        return len(self.files)

    def check(self, image_ids: Sequence[int]) -> None:
        """Read the headers of some images, which takes about 0.25 ms each from a local disk.

        Raises:
            DataError: naming the first file that is missing, no image, not 8-bit, or of another size than the others.
        """
        with ThreadPoolExecutor(_LOOKS) as pool:
            for start in range(0, len(image_ids), _BATCH):
                for _ in pool.map(self._check_header, image_ids[start : start + _BATCH]):
                    pass

    def pixels_of(self, image_id: int) -> NDArray[np.uint8]:
        """One image, uint8 [3, H, W].

        Raises:
            DataError: naming the file, if it is missing, broken, not 8-bit, or of another size than the others.
        """
        return self._read(image_id)[1]

    def encoded(self, image_id: int) -> tuple[bytes, NDArray[np.uint8]]:
        """The file's bytes, or a PNG if images are resized; and its pixels."""
        data, pixels = self._read(image_id)
        return (data if self.image_size is None else encode_png(pixels)), pixels

    def label(self, image_id: int) -> int:
        """Class index of one image."""
        return int(self.targets[self.known(image_id)])

    def _file(self, image_id: int) -> Path:
        return self.directory / self.files[self.known(image_id)]

    def _check_header(self, image_id: int) -> None:
        file = self._file(image_id)
        width, height = _size(file)
        if self.image_size is None:
            self._check_size(file, height, width)

    def _read(self, image_id: int) -> tuple[bytes, NDArray[np.uint8]]:
        file = self._file(image_id)
        try:
            data = file.read_bytes()
            pixels = decode(data, 3, self.image_size)
        except (OSError, ValueError) as error:
            raise _broken(file, error) from error
        self._check_size(file, *pixels.shape[1:])
        return data, pixels

    def _check_size(self, file: Path, height: int, width: int) -> None:
        if (height, width) != self.size:
            raise DataError(
                f"image {file}: {width}x{height} pixels, but the first image of the split has "
                f"{self.size[1]}x{self.size[0]}; set dataset.image_size to resize and crop all images alike"
            )


def load_folder(
    name: str, root: Path, split: str, image_size: int | None, classes: Sequence[str] | None = None
) -> FolderDataset:
    """List the images of root/split/class/. Nothing is decoded, but the first image's size is read.

    Args:
        name: `folder` or `imagenet`.
        root: see `drs_ray.data.datasets.load_dataset`.
        split: a directory of root.
        image_size: size to which images are resized and cropped, or None.
        classes: names of all classes in order of class number; None: the directories in text order.

    Raises:
        DataError: the root, the split, the classes or the images are missing or invalid.
    """
    directory = split_directory(name, root, split, ("train", "val", "test") if name == "imagenet" else None)
    return folder_dataset(name, split, directory, image_size, list_classes(name, directory, classes))


def split_directory(name: str, root: Path, split: str, allowed: Sequence[str] | None) -> Path:
    """The directory root/split; `split` must be one of `allowed` unless that is None.

    Raises:
        DataError: the directory does not exist; the message lists the existing ones.
    """
    if not root.is_dir():
        raise DataError(f"data set {name}: root {root} is not a directory; correct dataset.root")
    try:
        with os.scandir(root) as entries:
            there = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"data set {name}: root {root} cannot be read ({error.strerror})") from error
    there = [found for found in there if allowed is None or found in allowed]
    if split not in there:
        hint = " (ImageNet's labelled test images are its val split)" if name == "imagenet" else ""
        raise DataError(
            f"data set {name}: dataset.split must be a sub-directory of {root} that holds one directory per class, "
            f"got {split!r}; there: {', '.join(map(shown, there)) or 'none'}{hint}"
        )
    return root / split


def folder_dataset(name: str, split: str, directory: Path, image_size: int | None, listing: Listing) -> FolderDataset:
    """The data set of a listing with at least one image.

    The digest covers class names in their order, relative paths, file sizes in bytes and image_size, not the pixels:
    hashing the content of all of ImageNet at every start would take longer than most runs.

    Raises:
        DataError: image_size is None, and the size of the first image cannot be read.
    """
    content = hashlib.sha256(f"{name}/{split}/{image_size}/".encode())
    files: list[str] = []
    targets: list[int] = []
    for index, (class_name, images) in enumerate(listing.images.items()):
        content.update(f"class {class_name}\n".encode())
        for path, size in images:
            content.update(f"{size} {path}\n".encode())
            files.append(path)
        targets += [index] * len(images)
    if image_size is None:
        width, height = _size(directory / files[0])
    else:
        width = height = image_size
    return FolderDataset(
        name=name,
        split=split,
        directory=directory,
        classes=tuple(listing.images),
        files=tuple(files),
        targets=np.array(targets, dtype=np.int64),
        size=(height, width),
        image_size=image_size,
        digest=content.hexdigest(),
        warnings=listing.warnings,
    )


def _size(file: Path) -> tuple[int, int]:
    """(width, height) of a usable image file, by its header."""
    try:
        with file.open("rb") as opened, header(opened) as image:
            return image.size
    except (OSError, ValueError) as error:
        raise _broken(file, error) from error


def _broken(file: Path, error: Exception) -> DataError:
    if isinstance(error, UnfitImageError):
        return DataError(f"image {file}: {error}")
    reason = "file not found" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())
    return DataError(
        f"image {file}: cannot be read ({reason}); restore the file (one of another size, or other image ids, make "
        "another data set and another run)"
    )
