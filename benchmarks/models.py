"""Random but real networks and images for the benchmarks: the speed of a classifier does not depend on its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from drs_ray import train
from drs_ray.config import Precision, RunConfig, parse_config
from drs_ray.models.architectures import build_architecture
from drs_ray.models.inference import voting_classifier
from drs_ray.models.precision import has_bfloat16


def resnet20(image_shape: tuple[int, int, int], num_classes: int, unshuffle: int = 1) -> nn.Module:
    """ResNet-20 with random weights."""
    return _random("resnet20", image_shape, num_classes, unshuffle=unshuffle)


def digits_cnn(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The demo's CNN with random weights."""
    return _random("digits-cnn", image_shape, num_classes)


def resnet110(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """ResNet-110 with random weights."""
    return _random("resnet110", image_shape, num_classes)


def resnet50(image_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """ResNet-50 with random weights."""
    return _random("resnet50", image_shape, num_classes)


def voting(
    network: nn.Module,
    image_shape: tuple[int, int, int],
    batch: int,
    precision: Precision,
    compile: bool,
    device: str = "cpu",
) -> nn.Module:
    """What votes, of a network with ten classes."""
    return voting_classifier(
        network,
        precision=precision,
        compile=compile,
        device=torch.device(device),
        batch=batch,
        image_shape=image_shape,
        num_classes=10,
        sub_image=0,
    ).module


def default_precision(device: str = "cpu") -> Precision:
    """What `engine.precision: auto` is on a device of this machine."""
    return "bfloat16" if has_bfloat16(device) else "float32"


def trained_config(directory: Path, architecture: str, **sections: Any) -> RunConfig:
    """DRS on mnist5k with classifiers that are trained there, once: votes as real ones spread."""
    sigma = 0.5**0.5
    classifiers = [
        {"architecture": architecture, "checkpoint": str(directory / f"{architecture}-{k}.safetensors"), "sigma": sigma}
        for k in range(2)
    ]
    data = {
        "dataset": {"name": "mnist5k"},
        "partition": {"name": "checkerboard"},
        "classifiers": classifiers,
        "engine": {"address": "inline", "device": "cpu"},
        "training": {"epochs": 5 if architecture.startswith("resnet") else 20},
        "output": str(directory / "run"),
    }
    config = parse_config({**data, **sections})
    if not all(Path(str(classifier["checkpoint"])).exists() for classifier in classifiers):
        train(config)
    return config


def _random(name: str, image_shape: tuple[int, int, int], num_classes: int, **arguments: int) -> nn.Module:
    torch.manual_seed(0)
    return build_architecture(name, image_shape, num_classes, arguments).eval()


def write_images(root: Path, count: int, classes: int = 10, size: int = 32) -> None:
    """A `folder` data set of random RGB images."""
    generator = np.random.default_rng(0)
    for label in range(classes):
        (root / "test" / f"{label}").mkdir(parents=True, exist_ok=True)
    for index in range(count):
        pixels = generator.integers(0, 256, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(root / "test" / f"{index % classes}" / f"{index}.png")
