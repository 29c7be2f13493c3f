"""Directories of timm: the network and the pixels that `config.json` says, and every mistake in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from drs_ray.config import PixelsConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.checkpoints import CheckpointMetadata, save_checkpoint
from drs_ray.models.factory import BaseClassifier, load_classifier

timm = pytest.importorskip("timm", reason="the extra timm is not installed")
MEAN, STD = (0.49, 0.48, 0.45), (0.2, 0.21, 0.22)
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def network(name: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    made = timm.create_model(name, num_classes=10, **arguments).eval()
    for buffer_name, buffer in made.named_buffers():
        if buffer_name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return made


def saved(
    place: Path, name: str, safe: bool | Literal["both"] = True, size: int = 32, names: Any = None, **arguments: Any
) -> str:
    made = network(name, **arguments)
    pixels = {"mean": MEAN, "std": STD, "input_size": (3, size, size)}
    extra = {} if names is None else {"label_names": names}
    timm.models.save_for_hf(
        made, place, safe_serialization=safe, model_config={"pretrained_cfg": pixels, **extra}, data_config=pixels
    )
    return str(place)


def load(architecture: str, place: str | Path, **given: Any) -> BaseClassifier:
    usual: dict[str, Any] = {"arguments": {}, "sub_image": 0, "partition": "none", "layout": "packed", "sigma": 0.5}
    usual |= {"image_shape": (3, 32, 32), "num_classes": 10}
    return load_classifier(architecture=architecture, checkpoint=str(place), **usual | given)


def normalised(x: Tensor) -> Tensor:
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.mark.parametrize("safe", [True, False, "both"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet10t", {}), ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2}), ("resnet10t", {"global_pool": "max"})],
)
def test_the_logits_are_those_of_the_saved_network(tmp_path: Path, name: str, safe: Any, arguments: Any) -> None:
    place = saved(tmp_path, name, safe, **arguments)
    x = torch.rand(2, 3, 32, 32)
    loaded = load(f"timm:{name}", place)
    with torch.inference_mode():
        expected = network(name, **arguments)(normalised(x))
        torch.testing.assert_close(loaded.module(x), expected)
    assert loaded.warnings == ()


def test_other_sizes_are_stretched_to_the_size_that_the_network_had(tmp_path: Path) -> None:
    place = saved(tmp_path, "resnet10t", size=64)
    x = torch.rand(2, 3, 32, 16)
    stretched = nn.functional.interpolate(x, (64, 64), mode="bilinear")
    given: dict[str, Any] = {"image_shape": (3, 32, 16)}
    plain, own_size = load("timm:resnet10t", place, **given), PixelsConfig(resize=(48, 48), mean=MEAN, std=STD)
    with torch.inference_mode():
        torch.testing.assert_close(plain.module(x), network("resnet10t")(normalised(stretched)))
        same = load("timm:resnet10t", place, **given, pixels=PixelsConfig(mean=MEAN, std=STD))
        assert torch.equal(same.module(x), plain.module(x))
        other = load("timm:resnet10t", place, **given, pixels=own_size)
        stretched = nn.functional.interpolate(x, (48, 48), mode="bilinear")
        torch.testing.assert_close(other.module(x), network("resnet10t")(normalised(stretched)))
    with pytest.raises(ClassifierError, match=r"config.json: says pixels: \{range: .* remove classifiers.0.pixels"):
        load("timm:resnet10t", place, **given, pixels=PixelsConfig(mean=(0.5,) * 3, std=(0.5,) * 3))
    changed(tmp_path, pretrained_cfg={"mean": MEAN, "std": STD, "input_size": [3, 96, 96]})
    assert load("timm:resnet10t", place, **given).digest != plain.digest  # the size is in no weight


def test_a_bare_file_of_the_directory_needs_the_config_to_say_its_pixels(tmp_path: Path) -> None:
    saved(tmp_path, "resnet10t", "both")
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = network("resnet10t")(normalised(x))
        for file in ("model.safetensors", "pytorch_model.bin"):
            loaded = load("timm:resnet10t", tmp_path / file, pixels=PixelsConfig(mean=MEAN, std=STD))
            torch.testing.assert_close(loaded.module(x), expected)


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    place = saved(tmp_path, "resnet10t", names=CLASSES)
    assert load("timm:resnet10t", place, classes=CLASSES).warnings == ()
    with pytest.raises(ClassifierError, match=r"its classes are in another order than the run's: 'bird' is class 2 th"):
        load("timm:resnet10t", place, classes=["airplane", "bird", "automobile", *CLASSES[3:]])
    (warning,) = load("timm:resnet10t", place, classes=["plane", *CLASSES[1:]]).warnings
    assert warning.startswith(f"sub-image 0: checkpoint {place}/config.json: some of its class names are not")


def changed(place: Path, **values: Any) -> None:
    path = place / "config.json"
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "remove it"}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "resnet18"}, r"config.json: is a resnet18, the run names timm:resnet10t; write architecture"),
        ({"architecture": "remove it"}, r"config.json: not of timm, it names no architecture; for transformers'"),
        ({"model_args": {"num_classes": 7}}, "the classifier has 7 classes, the run 10; choose"),
        ({"model_args": {"in_chans": 1}}, "the classifier takes images with 1 channel, the data set has 3"),
        ({"model_args": {"pretrained": True}}, "argument 'pretrained' is not for you to set"),
        ({"model_args": {"checkpoint_path": "x"}}, "argument 'checkpoint_path' is not for you to set"),
        ({"model_args": {"width": "?"}}, "resnet10t: called with .* it raised TypeError"),
        ({"pretrained_cfg": {"mean": [0.5], "std": [0.5]}}, "config.json: is for images with 1 channel, the data set"),
        ({"pretrained_cfg": {"mean": "grey"}}, "input_size, mean or std are no numbers per channel"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    place = saved(tmp_path, "resnet10t")
    changed(tmp_path, **values)
    with pytest.raises(ClassifierError, match=message) as caught:
        load("timm:resnet10t", place)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    place = saved(tmp_path, "resnet10t")
    weights = tmp_path / "model.safetensors"
    stored = load_file(weights)
    weights.unlink()
    with pytest.raises(ClassifierError, match=r"model.safetensors: not found; correct classifiers.0.checkpoint"):
        load("timm:resnet10t", place)
    torch.save({"state_dict": stored, "code": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ClassifierError, match=r"pytorch_model.bin: refused, it holds more than tensors"):
        load("timm:resnet10t", place)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ClassifierError, match=r"no config.json in it; name a directory .* or a file that ends"):
        load("timm:resnet10t", place)


def test_what_drs_ray_wrote_into_a_directory_is_named_as_a_file(tmp_path: Path) -> None:
    """Its metadata say for which sub-image it was trained; a directory has none."""
    place = saved(tmp_path, "resnet10t")
    metadata = CheckpointMetadata("timm:resnet10t", "none", "packed", (0,), 0.5, 10, (3, 32, 32), "cifar10")
    save_checkpoint(tmp_path / "model.safetensors", network("resnet10t"), metadata)
    with pytest.raises(ClassifierError, match=r"model.safetensors: written by drs-ray; name this file, not its direct"):
        load("timm:resnet10t", place)
    assert load("timm:resnet10t", tmp_path / "model.safetensors").warnings == ()
