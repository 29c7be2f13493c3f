"""Random but real networks and images for the benchmarks: the speed of a classifier does not depend on its weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from drs_ray.models.architectures import build_architecture


def resnet20(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """ResNet-20 with random weights."""
    return _random("resnet20", image_shape, num_classes)


def digits_cnn(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The demo's CNN with random weights."""
    return _random("digits-cnn", image_shape, num_classes)


def _random(name: str, image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    torch.manual_seed(0)
    return build_architecture(name, image_shape, num_classes, {}).eval()


def write_images(root: Path, count: int, classes: int = 10, size: int = 32) -> None:
    """A `folder` data set of random RGB images."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        (root / "test" / f"{label}").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = generator.integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(root / "test" / f"{index % classes}" / f"{index}.png")
