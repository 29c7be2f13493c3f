"""The inverses of what a partition does to an image."""

from __future__ import annotations

from torch import Tensor

from drs_ray.smoothing.partition import Partition


def merge(partition: Partition, values: list[Tensor]) -> Tensor:
    """Values of all K sub-images -> images [..., C, H, W]: the exact inverse of `extract`."""
    flat = values[0].new_empty((*values[0].shape[:-1], partition.height * partition.width))
    for part, own in zip(partition.parts, values, strict=True):
        flat[..., part.pixels] = own
    return flat.reshape(*flat.shape[:-1], partition.height, partition.width)


def collect(partition: Partition, arranged: Tensor, sub_image: int) -> Tensor:
    """The classifier's input [..., C, h, w] -> values [..., C, d_k]: the exact inverse of `arrange`, unless filled."""
    assert not partition.parts[sub_image].filled
    return arranged.flatten(-2)[..., partition.parts[sub_image].cells]
