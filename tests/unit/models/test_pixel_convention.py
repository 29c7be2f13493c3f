"""Pixel conventions: resized after the noise, scaled, normalised, in this order; and checkpoints that know them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from drs_ray.config import PixelsConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.building import build_module
from drs_ray.models.checkpoints import load_checkpoint, save_checkpoint
from drs_ray.models.factory import load_classifier
from drs_ray.models.pixel_convention import Pixels, check_channels, shape_seen
from drs_ray.models.tensors import module_digest
from tests.support.checkpoints import trained_for

GIVEN: dict[str, Any] = {
    "architecture": "resnet20",
    "arguments": {},
    "sub_image": 0,
    "partition": "none",
    "layout": "packed",
    "sigma": 0.25,
    "image_shape": (3, 16, 8),
    "num_classes": 4,
}


def test_the_convention_of_efficientnet_lite() -> None:
    x = torch.randn(2, 3, 4, 4)
    pixels = Pixels(PixelsConfig(range=(0, 255), mean=(127,) * 3, std=(128,) * 3), 3)
    torch.testing.assert_close(pixels(x), (x * 255 - 127) / 128)
    torch.testing.assert_close(Pixels(PixelsConfig(range=(-1, 1)), 3)(x), 2 * x - 1)


def test_each_part_alone_and_nothing_at_all() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(Pixels(PixelsConfig(), 3)(x), x)
    mean = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    assert torch.equal(Pixels(PixelsConfig(mean=(0.1, 0.2, 0.3)), 3)(x), x - mean)
    assert torch.equal(Pixels(PixelsConfig(std=(0.5, 0.5, 0.5)), 3)(x), x / 0.5)


def test_resizing_comes_first() -> None:
    x = torch.rand(2, 3, 16, 8)
    config = PixelsConfig(resize=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    stretched = functional.interpolate(x, size=(32, 32), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    assert torch.equal(Pixels(config, 3)(x), (stretched - mean) / std)
    assert shape_seen((3, 16, 8), config) == (3, 32, 32)
    assert shape_seen((3, 16, 8), PixelsConfig()) == shape_seen((3, 16, 8), None) == (3, 16, 8)


def test_the_architecture_is_built_for_what_it_sees() -> None:
    module = build_module("digits-cnn", {}, (1, 28, 14), 10, PixelsConfig(resize=(28, 28))).eval()
    assert module(torch.rand(2, 1, 28, 14)).shape == (2, 10)
    plain = build_module("digits-cnn", {}, (1, 28, 28), 10)
    assert module.get_parameter("network.fc1.weight").shape == plain.get_parameter("fc1.weight").shape


@pytest.mark.parametrize("name", ["mean", "std"])
def test_means_are_one_per_channel(name: str) -> None:
    rule = rf"^classifiers\.3\.pixels\.{name} must be a list of 1 number, one per channel of .*, got .* choose"
    with pytest.raises(ClassifierError, match=rule):
        check_channels(PixelsConfig.model_validate({name: (0.5, 0.5, 0.5)}), 1, 3)
    given = GIVEN | {"sub_image": 1, "partition": "checkerboard", "pixels": PixelsConfig.model_validate({name: (0.5,)})}
    with pytest.raises(ClassifierError, match=rf"^classifiers\.1\.pixels\.{name} must be a list of 3 numbers"):
        load_classifier(**given, checkpoint="nowhere.safetensors")
    check_channels(None, 1, 0)


def test_checkpoints_are_of_one_convention(tmp_path: Path) -> None:
    pixels = PixelsConfig(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    module = build_module("resnet20", {}, (3, 16, 8), 4, pixels)
    file = str(tmp_path / "a.safetensors")
    save_checkpoint(file, module, trained_for(**GIVEN, pixels=pixels.record, dataset="cifar10"))
    _, metadata = load_checkpoint(file)
    assert metadata is not None
    assert metadata.pixels == pixels.record
    loaded = load_classifier(**GIVEN, checkpoint=file, pixels=pixels)
    assert loaded.digest == module_digest(module)
    other = pixels.model_copy(update={"mean": (0.4, 0.5, 0.5)})
    for given in (None, other):
        with pytest.raises(
            ClassifierError, match=r'trained for pixels \{"mean": \[0.5, .*, the run needs \{'
        ) as caught:
            load_classifier(**GIVEN, checkpoint=file, pixels=given)
        assert "\n" not in str(caught.value)


def test_a_checkpoint_of_old_has_no_convention(tmp_path: Path) -> None:
    module = build_module("resnet20", {}, (3, 16, 8), 4)
    file = str(tmp_path / "a.safetensors")
    save_checkpoint(file, module, trained_for(**GIVEN, dataset="cifar10"))
    assert load_classifier(**GIVEN, checkpoint=file).warnings == ()
