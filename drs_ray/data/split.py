"""Common code of all data sets of 8-bit images: images and labels by id, and a digest of the content."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from drs_ray.data.image_files import encode_png, unit_range
from drs_ray.errors import DataError

if TYPE_CHECKING:
    from drs_ray.data.datasets import Dataset


class Split(ABC):
    """Base of data sets (see `drs_ray.data.datasets.Dataset`), which implement the access to one image and label."""

    name: str
    split: str
    classes: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    def check(self, image_ids: Sequence[int]) -> None:  # noqa: B027 - most sources are checked when they are opened
        """See `drs_ray.data.datasets.Dataset.check`."""

    @abstractmethod
    def pixels_of(self, image_id: int) -> NDArray[np.uint8]:
        """One image, uint8 [C, H, W].

        Raises:
            DataError: if there is no such image or it cannot be decoded.
        """

    @abstractmethod
    def label(self, image_id: int) -> int:
        """Class index of one image."""

    def encoded(self, image_id: int) -> tuple[bytes, NDArray[np.uint8]]:
        """One image as the bytes of an image file, and its decoded pixels."""
        pixels = self.pixels_of(image_id)
        return encode_png(pixels), pixels

    def image(self, image_id: int) -> NDArray[np.float32]:
        """One image, float32 [C, H, W] in [0, 1], multiples of 1/255."""
        return unit_range(self.pixels_of(image_id))

    def images(self, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Several images, float32 [n, C, H, W] in [0, 1]."""
        result = np.empty((len(image_ids), *self.image_shape), dtype=np.float32)
        for row, image_id in enumerate(image_ids):
            result[row] = self.image(image_id)
        return result

    def labels(self, image_ids: Sequence[int]) -> NDArray[np.int64]:
        """Class indices of several images, int64 [n]."""
        return np.array([self.label(image_id) for image_id in image_ids], dtype=np.int64)

    def known(self, image_id: int) -> int:
        """Return the id if it is valid: numpy would count a negative id from the end.

        Raises:
            DataError: if there is no such image.
        """
        if not 0 <= image_id < len(self):
            raise DataError(f"image {image_id}: {self.name} {self.split} has the images 0..{len(self) - 1}")
        return image_id


class View(Split):
    """Base of data sets that wrap another one and have its properties; some replace the digest."""

    def __init__(self, dataset: Dataset) -> None:
        self.name, self.split, self.digest = dataset.name, dataset.split, dataset.digest
        self.num_classes, self.classes, self.warnings = dataset.num_classes, dataset.classes, dataset.warnings
        self._dataset = dataset

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self._dataset.image_shape


class Subset(View):
    """Some images of another data set, under new ids 0 .. len - 1."""

    def __init__(self, dataset: Dataset, image_ids: Sequence[int]) -> None:
        """`image_ids`: the ids in `dataset` of the images 0, 1, ... of the subset."""
        super().__init__(dataset)
        ids = np.asarray(image_ids, dtype="<i8")
        self.digest = hashlib.sha256(dataset.digest.encode() + b"/" + ids.tobytes()).hexdigest()
        self._ids: list[int] = ids.tolist()

    def __len__(self) -> int:
        return len(self._ids)

    def pixels_of(self, image_id: int) -> NDArray[np.uint8]:
        """One image, uint8 [C, H, W]. Errors: see `image`."""
        return np.rint(self.image(image_id) * 255).astype(np.uint8)

    def image(self, image_id: int) -> NDArray[np.float32]:
        """One image, float32 [C, H, W] in [0, 1].

        Raises:
            DataError: if there is no such image or it cannot be decoded.
        """
        return self._dataset.image(self._ids[self.known(image_id)])

    def images(self, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Several images, float32 [n, C, H, W] in [0, 1]. Errors: see `image`."""
        return self._dataset.images([self._ids[self.known(image_id)] for image_id in image_ids])

    def label(self, image_id: int) -> int:
        """Class index of one image. Errors: see `image`."""
        return self._dataset.label(self._ids[self.known(image_id)])

    def labels(self, image_ids: Sequence[int]) -> NDArray[np.int64]:
        """Class indices of several images, int64 [n]. Errors: see `image`."""
        return self._dataset.labels([self._ids[self.known(image_id)] for image_id in image_ids])


class ContentDigest:
    """sha256 of a split's name, shape, classes, pixels and labels, fed in order of image id."""

    def __init__(self, name: str, split: str, shape: tuple[int, int, int, int], num_classes: int) -> None:
        """`shape` is (N, C, H, W)."""
        self._hash = hashlib.sha256(f"{name}/{split}/{shape}/{num_classes}/".encode())

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Add the next images, uint8 [C, H, W] or [n, C, H, W]."""
        self._hash.update(np.ascontiguousarray(pixels).data)

    def hexdigest(self, labels: NDArray[np.int64]) -> str:
        """The digest, after all images were added; call it once. `labels`: [N], of all images."""
        self._hash.update(np.ascontiguousarray(labels, dtype="<i8").data)
        return self._hash.hexdigest()
