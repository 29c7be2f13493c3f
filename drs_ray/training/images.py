"""Whole images on their way to a classifier in training: read in batches, augmented."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader

from drs_ray.data.datasets import Dataset
from drs_ray.errors import DataError

_Batch = tuple[Tensor, Tensor]


class _Batches(torch.utils.data.Dataset[_Batch | DataError]):
    """A data set whose items are whole batches, by their list of image ids.

    What cannot be read is returned, not raised: an exception of a reading process arrives as a page of text.
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
    """The batches in order, read when they are needed or, by so many processes, ahead.

    The split is never in memory as floats: a data set keeps its pixels as it likes, and gives one batch at a time.

    Yields:
        images float32 [n, C, H, W] in [0, 1], labels int64 [n], on the CPU.

    Raises:
        DataError: an image that cannot be read.
    """
    loader: DataLoader[_Batch | DataError] = DataLoader(
        _Batches(dataset), batch_size=None, sampler=batches, num_workers=loaders
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
