"""Architectures of torchvision and timm: built without weights, for the data set's classes, mistakes in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from drs_ray.errors import ClassifierError
from drs_ray.models.building import build_module, is_factory
from drs_ray.models.factory import load_classifier

GIVEN: dict[str, Any] = {"arguments": {}, "sub_image": 1, "partition": "none", "layout": "packed", "sigma": 0.25}


@pytest.mark.parametrize(
    ("architecture", "arguments", "shape"),
    [
        ("torchvision:resnet18", {}, (3, 32, 16)),
        ("torchvision:mobilenet_v3_small", {"dropout": 0.0}, (3, 64, 64)),
        ("torchvision:googlenet", {"aux_logits": False}, (3, 64, 64)),  # warns of its initial weights
        ("timm:resnet18", {}, (3, 32, 32)),
        ("timm:resnet18", {}, (1, 32, 32)),
        ("timm:vit_tiny_patch16_224", {"img_size": [32, 16]}, (3, 32, 16)),
    ],
)
def test_library_models_take_the_data_sets_classes(
    architecture: str, arguments: dict[str, Any], shape: tuple[int, int, int]
) -> None:
    if architecture.startswith("timm:"):
        pytest.importorskip("timm", reason="the extra timm is not installed")
    module = build_module(architecture, arguments, shape, 7).eval()
    with torch.inference_mode():
        assert module(torch.rand(2, *shape)).shape == (2, 7)


def test_a_published_state_dict_of_torchvision_loads(tmp_path: Path) -> None:
    file = str(tmp_path / "resnet18.pth")
    source = build_module("torchvision:resnet18", {}, (3, 32, 32), 10)
    torch.save(source.state_dict(), file)
    given = {**GIVEN, "image_shape": (3, 32, 32), "num_classes": 10}
    loaded = load_classifier(**given, architecture="torchvision:resnet18", checkpoint=file)
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.module(x), source.eval()(x))
    with pytest.raises(ClassifierError, match=r"its tensors are not those of the architecture \(missing: "):
        load_classifier(**given, architecture="torchvision:resnet34", checkpoint=file)
    with pytest.raises(ClassifierError, match=r"probably trained for 10 classes, the run has 1000"):
        load_classifier(**{**given, "num_classes": 1000}, architecture="torchvision:resnet18", checkpoint=file)


@pytest.mark.parametrize("architecture", ["torchvision:resnet18", "timm:resnet18"])
def test_a_library_model_needs_a_checkpoint(architecture: str) -> None:
    assert not is_factory(architecture)
    with pytest.raises(ClassifierError, match=rf"sub-image 1: classifier {architecture} needs a checkpoint"):
        load_classifier(**GIVEN, architecture=architecture, checkpoint=None, image_shape=(3, 32, 32), num_classes=10)


@pytest.mark.parametrize(
    ("architecture", "arguments", "shape", "message"),
    [
        ("torchvision:resnet81", {}, (3, 32, 32), r"torchvision:resnet81: there is no such .*did you mean resnet"),
        ("torchvision:fcn_resnet50", {}, (3, 32, 32), r"fcn_resnet50: there is no such model"),
        ("torchvision:resnet18", {"weights": "DEFAULT"}, (3, 32, 32), r"argument 'weights' is not for you to set"),
        ("torchvision:resnet18", {"widht": 2}, (3, 32, 32), r"it raised TypeError: .*widht"),
        ("torchvision:resnet18", {}, (1, 28, 28), r"resnet18 takes images with 3 channels, the data set has 1"),
        (
            "torch.export",
            {},
            (3, 32, 32),
            r"torch.export: is a finished program, there is nothing to build or to train",
        ),
    ],
)
def test_mistakes_are_one_clear_line(
    architecture: str, arguments: dict[str, Any], shape: tuple[int, int, int], message: str
) -> None:
    with pytest.raises(ClassifierError, match=message) as caught:
        build_module(architecture, arguments, shape, 10)
    assert "\n" not in str(caught.value)


def test_timm_is_never_asked_to_fetch_weights() -> None:
    pytest.importorskip("timm", reason="the extra timm is not installed")
    for name in ("hf-hub:somebody/model", "resnet81"):
        with pytest.raises(ClassifierError, match=rf"classifier timm:{name}: there is no such model"):
            build_module(f"timm:{name}", {}, (3, 32, 32), 10)
    for key in ("pretrained", "pretrained_cfg", "checkpoint_path"):
        with pytest.raises(ClassifierError, match=rf"argument '{key}' is not for you to set"):
            build_module("timm:resnet18", {key: "https://example.org/weights"}, (3, 32, 32), 10)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ClassifierError, match=r"timm:resnet18: timm is not installed; install .* extra timm"):
        build_module("timm:resnet18", {}, (3, 32, 32), 10)
