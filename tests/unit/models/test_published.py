"""Published checkpoints load unchanged. Names and shapes are derived here from the published architectures (bearpaw's
CIFAR ResNet, torchvision's ResNet-50), the answers from functional calls alone, not from this package's modules.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from drs_ray.config import PixelsConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.factory import load_classifier

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

GIVEN: dict[str, Any] = {
    "arguments": {},
    "sub_image": 0,
    "partition": "checkerboard-2024",
    "layout": "filled",
    "sigma": 0.25,
}


def batch_norm(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    for part in ("weight", "bias", "running_mean", "running_var"):
        yield f"{name}.{part}", (size,)
    yield f"{name}.num_batches_tracked", ()


def cifar_resnet(depth: int, classes: int = 10) -> Iterator[tuple[str, tuple[int, ...]]]:
    """bearpaw/pytorch-classification, basic blocks: 16-32-64 channels, 1x1 shortcuts where the size changes."""
    yield "conv1.weight", (16, 3, 3, 3)
    yield from batch_norm("bn1", 16)
    inputs = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            name = f"layer{stage}.{block}"
            yield f"{name}.conv1.weight", (width, inputs, 3, 3)
            yield from batch_norm(f"{name}.bn1", width)
            yield f"{name}.conv2.weight", (width, width, 3, 3)
            yield from batch_norm(f"{name}.bn2", width)
            if inputs != width:
                yield f"{name}.downsample.0.weight", (width, inputs, 1, 1)
                yield from batch_norm(f"{name}.downsample.1", width)
            inputs = width
    yield "fc.weight", (classes, 64)
    yield "fc.bias", (classes,)


def imagenet_resnet50() -> Iterator[tuple[str, tuple[int, ...]]]:
    """torchvision's: bottleneck blocks 3-4-6-3."""
    yield "conv1.weight", (64, 3, 7, 7)
    yield from batch_norm("bn1", 64)
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            for number, (outputs, kernel) in enumerate(((width, 1), (width, 3), (4 * width, 1)), start=1):
                yield f"{name}.conv{number}.weight", (outputs, inputs if number == 1 else width, kernel, kernel)
                yield from batch_norm(f"{name}.bn{number}", outputs)
            if block == 0:
                yield f"{name}.downsample.0.weight", (4 * width, inputs, 1, 1)
                yield from batch_norm(f"{name}.downsample.1", 4 * width)
            inputs = 4 * width
    yield "fc.weight", (1000, 2048)
    yield "fc.bias", (1000,)


def weights(shapes: Iterator[tuple[str, tuple[int, ...]]], prefix: str = "") -> dict[str, Tensor]:
    """Random tensors, scaled so that answers neither vanish nor overflow."""
    generator = torch.Generator().manual_seed(0)
    made: dict[str, Tensor] = {}
    for name, shape in shapes:
        if name.endswith("num_batches_tracked"):
            made[prefix + name] = torch.tensor(78_200)
        elif name.endswith("running_var"):
            made[prefix + name] = 0.5 + torch.rand(shape, generator=generator)
        elif name.endswith("weight") and len(shape) == 1:
            made[prefix + name] = 0.3 + 0.2 * torch.rand(shape, generator=generator)
        else:
            fan_in = max(1, torch.Size(shape[1:]).numel())
            made[prefix + name] = torch.randn(shape, generator=generator) / fan_in**0.5
    return made


def reference_cifar_resnet(tensors: dict[str, Tensor], depth: int, x: Tensor) -> Tensor:
    """The published forward pass, by names: with its AvgPool2d(8), so for 32x32 alone."""

    def normed(name: str, y: Tensor) -> Tensor:
        mean, var, weight, bias = (tensors[f"{name}.{p}"] for p in ("running_mean", "running_var", "weight", "bias"))
        return functional.batch_norm(y, mean, var, weight, bias)

    x = functional.relu(normed("bn1", functional.conv2d(x, tensors["conv1.weight"], padding=1)))
    for stage in (1, 2, 3):
        for block in range((depth - 2) // 6):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = functional.conv2d(x, tensors[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = functional.relu(normed(f"{name}.bn1", y))
            y = normed(f"{name}.bn2", functional.conv2d(y, tensors[f"{name}.conv2.weight"], padding=1))
            if f"{name}.downsample.0.weight" in tensors:
                x = normed(
                    f"{name}.downsample.1", functional.conv2d(x, tensors[f"{name}.downsample.0.weight"], None, 2)
                )
            x = functional.relu(x + y)
    return functional.linear(functional.avg_pool2d(x, 8).flatten(1), tensors["fc.weight"], tensors["fc.bias"])


def save(
    file: Path, tensors: dict[str, Tensor], arch: str, optimizer: object, monkeypatch: pytest.MonkeyPatch, legacy: bool
) -> str:
    """As the papers' train.py saves on a GPU: every tensor is marked as one of cuda:0."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    content = {"epoch": 90, "arch": arch, "state_dict": tensors, "optimizer": optimizer}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()
    return str(file)


def optimizer_state(kind: type[torch.optim.Optimizer]) -> object:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([parameter], lr=0.01)  # type: ignore[call-arg]
    parameter.sum().backward()
    optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("depth", "arch", "kind", "legacy"),
    [
        (20, "cifar_resnet20", torch.optim.SGD, True),  # Cohen et al. saved with torch 0.4
        (110, "cifar_resnet110", torch.optim.SGD, True),
        (110, "cifar10", torch.optim.Adam, False),  # the DRS authors name the data set
    ],
)
def test_cifar_checkpoints(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    depth: int,
    arch: str,
    kind: type[torch.optim.Optimizer],
    legacy: bool,
) -> None:
    """Sequential(NormalizeLayer, ResNet), whose first part has no tensors: every name begins with `1.`"""
    plain = weights(cifar_resnet(depth))
    file = tmp_path / "checkpoint_l.pth.tar"
    prefixed = {f"1.{name}": value for name, value in plain.items()}
    path = save(file, prefixed, arch, optimizer_state(kind), monkeypatch, legacy)
    pixels = PixelsConfig(mean=CIFAR_MEAN, std=CIFAR_STD)
    given = {**GIVEN, "architecture": f"resnet{depth}", "image_shape": (3, 32, 32), "num_classes": 10}
    loaded = load_classifier(**given, checkpoint=path, pixels=pixels)
    x = torch.rand(4, 3, 32, 32) + 0.25 * torch.randn(4, 3, 32, 32)
    normalised = (x - torch.tensor(CIFAR_MEAN).view(3, 1, 1)) / torch.tensor(CIFAR_STD).view(3, 1, 1)
    with torch.inference_mode():
        expected = reference_cifar_resnet(plain, depth, normalised)
        assert float(expected.std()) > 0.05
        torch.testing.assert_close(loaded.module(x), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
        # the same weights take packed halves, which AvgPool2d(8) would not
        packed = load_classifier(**{**given, "layout": "packed", "image_shape": (3, 32, 16)}, checkpoint=path)
        assert packed.module(torch.rand(2, 3, 32, 16)).shape == (2, 10)


@pytest.mark.parametrize("architecture", ["resnet50", "torchvision:resnet50"])
def test_imagenet_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str) -> None:
    """Sequential(NormalizeLayer, DataParallel(resnet50)): `1.module.`; packed and stretched, as the DRS authors do."""
    prefixed = weights(imagenet_resnet50(), "1.module.")
    path = save(tmp_path / "checkpoint.pth.tar", prefixed, "imagenet", {}, monkeypatch, False)
    pixels = PixelsConfig(resize=(64, 64), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    given = {**GIVEN, "architecture": architecture, "image_shape": (3, 64, 32), "num_classes": 1000, "layout": "packed"}
    loaded = load_classifier(**given, checkpoint=path, pixels=pixels)
    plain = {name.removeprefix("1.module."): value for name, value in prefixed.items()}
    own = {name.rpartition("network.")[2]: value for name, value in loaded.module.state_dict().items()}
    assert own.keys() == plain.keys()
    assert all(torch.equal(own[name], plain[name]) for name in plain)
    x = torch.rand(2, 3, 64, 32)
    stretched = functional.interpolate(x, size=(64, 64), mode="bilinear")
    normalised = (stretched - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(x), loaded.module.get_submodule("network")(normalised))


def test_the_wrong_depth_is_told_in_one_line(tmp_path: Path) -> None:
    file = str(tmp_path / "checkpoint.pth.tar")
    torch.save({"arch": "cifar_resnet20", "state_dict": weights(cifar_resnet(20), "1.")}, file)
    given = {**GIVEN, "architecture": "resnet110", "image_shape": (3, 32, 32), "num_classes": 10}
    with pytest.raises(
        ClassifierError, match=r"missing: layer1.3.conv1.weight, .* and \d+ more; unexpected: none"
    ) as caught:
        load_classifier(**given, checkpoint=file)
    assert "\n" not in str(caught.value)
    assert "name the architecture that it was trained with" in str(caught.value)


def test_another_number_of_classes_or_channels_is_told_as_such(tmp_path: Path) -> None:
    file = str(tmp_path / "checkpoint.pth.tar")
    torch.save({"state_dict": weights(cifar_resnet(20, classes=1000), "1.")}, file)
    given = {**GIVEN, "architecture": "resnet20", "image_shape": (3, 32, 32), "num_classes": 10}
    with pytest.raises(
        ClassifierError, match=r"probably trained for 1,000 classes, the run has 10: check the data set"
    ):
        load_classifier(**given, checkpoint=file)
    with pytest.raises(ClassifierError, match=r"takes images with 3 channels, the data set has 1: check the data set"):
        load_classifier(**{**given, "image_shape": (1, 28, 28), "num_classes": 1000}, checkpoint=file)


def test_other_suffixes_are_refused(tmp_path: Path) -> None:
    for name in ("checkpoint.tar", "checkpoint.pkl"):
        with pytest.raises(ClassifierError, match=r"must end in .safetensors, .pt, .*, .pt.tar or .pth.tar"):
            load_classifier(
                **GIVEN, architecture="resnet20", image_shape=(3, 8, 8), num_classes=2, checkpoint=str(tmp_path / name)
            )
