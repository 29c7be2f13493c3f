"""Splitting an image into pixel-disjoint sub-images, and laying a sub-image out for its classifier.

A partition is one map, pixel -> owner; everything else follows from it. The own pixels of a sub-image, in row-major
order, are its **values** [..., C, d_k]. Noise is added to values, so a layout can neither read nor move another
sub-image's pixels, and the noise of an image is the same in every layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from drs_ray.arguments import checked, optional, several, text, whole
from drs_ray.config.dataset import MOST_SUB_IMAGES
from drs_ray.errors import ConfigError

if TYPE_CHECKING:
    from drs_ray.config import PartitionConfig

Owner = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SubImage:
    """Positions of the pixels of one sub-image in the image, and in the layout that its classifier sees.

    pixels: int64 [d_k], flat positions in the image, increasing. cells: int64 [d_k], flat positions in the layout of
    height x width. Cells that hold no pixel are always exactly 0. filled: whether each value has the largest value of
    its 2x2 block of cells added (empty cells count as 0).
    """

    pixels: Tensor
    cells: Tensor
    height: int
    width: int
    filled: bool = False

    @property
    def is_dense(self) -> bool:
        """Whether the layout is just the values in order, so that `arrange` can return a view."""
        return len(self.cells) == self.height * self.width and not self.filled

    @cached_property
    def blocks(self) -> Tensor:
        """The 2x2 block of each cell: int64 [d_k], flat positions among ceil(height / 2) x ceil(width / 2) blocks."""
        rows, columns = self.cells // self.width, self.cells % self.width
        return rows // 2 * -(-self.width // 2) + columns // 2


@dataclass(frozen=True, eq=False)
class Partition:
    """K disjoint sub-images that together cover an H x W image; all channels of a pixel belong to one sub-image."""

    name: str
    layout: str
    height: int
    width: int
    parts: tuple[SubImage, ...]

    def __len__(self) -> int:
        return len(self.parts)

    def pixels(self, sub_image: int) -> Tensor:
        """Flat positions of the sub-image's pixels: int64 [d_k], increasing."""
        return self.parts[sub_image].pixels

    def layout_shape(self, sub_image: int, channels: int) -> tuple[int, int, int]:
        """Shape (C, h, w) of the input of the sub-image's classifier."""
        part = self.parts[sub_image]
        return channels, part.height, part.width

    def extract(self, images: Tensor, sub_image: int) -> Tensor:
        """Images [..., C, H, W] -> values of one sub-image [..., C, d_k].

        Raises:
            ConfigError: the images are not H x W.
        """
        if tuple(images.shape[-2:]) != (self.height, self.width):
            raise ConfigError(
                f"partition {self.name} is for {self.height}x{self.width} images, got {tuple(images.shape[-2:])}"
            )
        return images.flatten(-2)[..., self.parts[sub_image].pixels.to(images.device)]

    def arrange(self, values: Tensor, sub_image: int) -> Tensor:
        """Values [..., C, d_k] -> the classifier's input [..., C, h, w]; a view where the layout has no empty cell."""
        part = self.parts[sub_image]
        if part.is_dense:
            return values.reshape(*values.shape[:-1], part.height, part.width)
        flat = values.new_zeros((*values.shape[:-1], part.height * part.width))
        cells = part.cells.to(values.device)
        flat[..., cells] = values
        if part.filled:
            # The DRS authors' CIFAR-10 code: masked + nearest(max_pool2d(masked, 2)) * mask, on the noisy sub-image.
            pooled = functional.max_pool2d(flat.reshape(-1, 1, part.height, part.width), 2, ceil_mode=True)
            pooled = pooled.reshape(*values.shape[:-1], -1)
            flat = torch.zeros_like(flat)  # not in place: gradients of the pooling need its input
            flat[..., cells] = values + pooled[..., part.blocks.to(values.device)]
        return flat.reshape(*flat.shape[:-1], part.height, part.width)


def partition_of(cut: PartitionConfig, image_shape: Sequence[int]) -> Partition:
    """The partition that a config's section `partition` names, for images (C, H, W)."""
    _, height, width = image_shape
    return make_partition(cut.name, height, width, cut.layout, cut.interleave)


@checked(
    name=text,
    height=whole,
    width=whole,
    layout=text,
    interleave=optional(several(whole, "two whole numbers")),
)
def make_partition(
    name: str, height: int, width: int, layout: str, interleave: tuple[int, int] | None = None
) -> Partition:
    """A partition of height x width images.

    Odd sizes: a packed checkerboard row that owns one pixel less than the others ends in one cell that is always 0;
    packed interleaved sub-images may differ in size by one row and one column.

    Args:
        name: none (K = 1), checkerboard (K = 2: pixel (r, c) belongs to sub-image (r + c) mod 2), checkerboard-2024
            ((r + c) mod 2 in columns 0 and 1, (r + c + 1) mod 2 elsewhere: the mask of the DRS authors' code,
            docs/theory.md 9), or interleave.
        height: H, in pixels.
        width: W, in pixels.
        layout: packed, masked, or filled (masked, and each own pixel has the maximum of its 2x2 block added).
        interleave: (rows, columns), only for the name interleave: pixel (r, c) belongs to sub-image
            (r mod rows) * columns + (c mod columns), so K = rows * columns, 2 to 64.

    Raises:
        ConfigError: unknown name or layout, an interleave that does not fit, or an image too small for every sub-image
            to own a pixel.
    """
    if name not in _NAMES:
        raise ConfigError(f"partition.name must be one of {', '.join(_NAMES)}, got '{name}'")
    if layout not in _LAYOUTS:
        raise ConfigError(f"partition.layout must be one of {', '.join(_LAYOUTS)}, got '{layout}'")
    if (name == "interleave") != (interleave is not None):
        raise ConfigError(
            f"partition.interleave must be (rows, columns) for the partition interleave and for no other, "
            f"got {interleave} for {name}"
        )
    if height < 1 or width < 1:
        raise ConfigError(f"images must have height and width >= 1, in pixels, got {height}x{width}")
    if interleave is not None and len(interleave) != 2:
        raise ConfigError(f"partition.interleave must be (rows, columns), got {interleave}")
    if interleave is not None and (min(interleave) < 1 or not 2 <= interleave[0] * interleave[1] <= MOST_SUB_IMAGES):
        raise ConfigError(
            f"partition.interleave must make 2 to {MOST_SUB_IMAGES} sub-images (rows * columns), got {interleave}"
        )
    owner, count = _owners(name, height, width, interleave)
    present = len(np.unique(owner))
    if present != count:
        raise ConfigError(
            f"partition.name: {name} has {count} sub-images but a {height}x{width} image gives pixels to only {present}"
        )
    parts = tuple(_LAYOUTS[layout](owner == index) for index in range(count))
    return Partition(name, layout, height, width, parts)


def _owners(name: str, height: int, width: int, interleave: tuple[int, int] | None) -> tuple[Owner, int]:
    """The sub-image that each pixel belongs to, and their number K."""
    row, column = np.indices((height, width))
    if name == "checkerboard":
        return np.asarray((row + column) % 2, np.int64), 2
    if name == "checkerboard-2024":
        return np.asarray((row + column + (column >= 2)) % 2, np.int64), 2
    rows, columns = interleave or (1, 1)  # none: one sub-image, the whole image
    return np.asarray(row % rows * columns + column % columns, np.int64), rows * columns


def _packed(mine: NDArray[np.bool_]) -> SubImage:
    """Own pixels of each row moved together to the left; rows without own pixels are left out."""
    per_row = mine.sum(axis=1)
    rows = np.flatnonzero(per_row)
    width = int(per_row.max())
    cells = np.concatenate([at * width + np.arange(per_row[row]) for at, row in enumerate(rows)])
    return SubImage(torch.from_numpy(np.flatnonzero(mine)), torch.from_numpy(cells.astype(np.int64)), len(rows), width)


def _masked(mine: NDArray[np.bool_]) -> SubImage:
    """Full size, own pixels at their positions, all others 0."""
    pixels = torch.from_numpy(np.flatnonzero(mine))
    return SubImage(pixels, pixels, mine.shape[0], mine.shape[1])


def _filled(mine: NDArray[np.bool_]) -> SubImage:
    """As masked, and the maximum of its 2x2 block is added to each own pixel."""
    return replace(_masked(mine), filled=True)


_NAMES = ("none", "checkerboard", "checkerboard-2024", "interleave")
_LAYOUTS: Mapping[str, Callable[[NDArray[np.bool_]], SubImage]] = {
    "packed": _packed,
    "masked": _masked,
    "filled": _filled,
}
