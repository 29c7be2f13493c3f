"""Reads training images, once or in batches, and augments them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from drs_ray.data.arrays import ArrayDataset
from drs_ray.data.datasets import Dataset
from drs_ray.data.image_files import unit_range
from drs_ray.data.split import View
from drs_ray.errors import DataError

MOST_BYTES_HELD = 2**31
"""Splits with at most this many bytes of pixels are kept in memory: CIFAR-10 has 150 MB, Tiny ImageNet 1.2 GB."""
_READ_AT_ONCE = 256

_Batch = tuple[Tensor, Tensor]


class HeldDataset(View):
    """A data set whose images are decoded at the first use, in order of id, and then kept as 8-bit pixels.

    The order matters: a packed data set keeps one row group in memory, and would read a row group for almost every
    image of a random batch.
    """

    def __init__(self, dataset: Dataset) -> None:
        """dataset: the data set, which is not read yet. The pixels of an `ArrayDataset` are shared."""
        super().__init__(dataset)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._dataset)

    def pixels_of(self, image_id: int) -> NDArray[np.uint8]:
        """One image, uint8 [C, H, W]. Errors: see `images`."""
        pixels: NDArray[np.uint8] = self._held[0][self.known(image_id)]
        return pixels

    def label(self, image_id: int) -> int:
        """Class index of one image. Errors: see `images`."""
        return int(self._held[1][self.known(image_id)])

    def images(self, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Several images, float32 [n, C, H, W] in [0, 1], bitwise equal to the data set's own.

        Raises:
            DataError: at the first use, if any image of the split cannot be read.
        """
        return unit_range(self._held[0][list(image_ids)])

    def labels(self, image_ids: Sequence[int]) -> NDArray[np.int64]:
        """Class indices of several images, int64 [n]. Errors: see `images`."""
        return self._held[1][list(image_ids)]

    @cached_property
    def _held(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        if isinstance(self._dataset, ArrayDataset):
            return self._dataset.pixels, self._dataset.targets
        pixels = np.empty((len(self), *self.image_shape), dtype=np.uint8)
        labels = np.empty(len(self), dtype=np.int64)
        for first in range(0, len(self), _READ_AT_ONCE):
            ids = range(first, min(first + _READ_AT_ONCE, len(self)))
            pixels[first : ids.stop] = np.rint(self._dataset.images(ids) * 255)
            labels[first : ids.stop] = self._dataset.labels(ids)
        return pixels, labels


def in_memory_if_small(dataset: Dataset) -> Dataset:
    """The data set as a `HeldDataset`, or unchanged if its pixels have more than `MOST_BYTES_HELD` bytes."""
    small = len(dataset) * math.prod(dataset.image_shape) <= MOST_BYTES_HELD
    return HeldDataset(dataset) if small else dataset


class _Batches(torch.utils.data.Dataset[_Batch | DataError]):
    """A data set whose items are whole batches, indexed by lists of image ids.

    A DataError is returned, not raised, because an exception of a reading process would arrive as a long traceback.
    """

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset

    def __getitem__(self, image_ids: Sequence[int]) -> _Batch | DataError:
        try:
            images, labels = self._dataset.images(image_ids), self._dataset.labels(image_ids)
        except DataError as error:
            return error
        return torch.from_numpy(images), torch.from_numpy(labels).long()


def read_batches(dataset: Dataset, batches: Sequence[Sequence[int]], loaders: int) -> Iterator[_Batch]:
    """The batches in order, read when needed, or in advance by `loaders` processes if the data set is not in memory.

    Only single batches are in memory as floats, never the whole split.

    Yields:
        images float32 [n, C, H, W] in [0, 1], labels int64 [n], on the CPU.

    Raises:
        DataError: an image cannot be read.
    """
    loader: DataLoader[_Batch | DataError] = DataLoader(
        _Batches(dataset),
        batch_size=None,
        sampler=batches,
        num_workers=0 if isinstance(dataset, HeldDataset) else loaders,
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise batch
        yield batch


def augment(images: Tensor, shift: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Shift each image by up to `shift` pixels in both directions (filled with 0) and flip half of them, at random."""
    count, channels, height, width = images.shape
    device = images.device
    if shift:
        offsets = torch.randint(0, 2 * shift + 1, (2, count, 1), generator=generator, device=device)
        rows = (torch.arange(height, device=device) + offsets[0])[:, None, :, None]
        columns = (torch.arange(width, device=device) + offsets[1])[:, None, None, :]
        padded = functional.pad(images, (shift, shift, shift, shift))
        index = torch.arange(count, device=device)[:, None, None, None]
        images = padded[index, torch.arange(channels, device=device)[None, :, None, None], rows, columns]
    if flip:
        chosen = torch.rand(count, generator=generator, device=device) < 0.5
        images = torch.where(chosen[:, None, None, None], images.flip(-1), images)
    return images
