"""Image classifiers of transformers: the answers of the library's own pipeline, and every mistake in one line."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from drs_ray import certify, verify
from drs_ray.config import PixelsConfig, Precision, parse_config
from drs_ray.config.classifiers import DIRECTORY_FILES
from drs_ray.errors import ClassifierError
from drs_ray.models import transformers_directory
from drs_ray.models.building import build_module
from drs_ray.models.factory import BaseClassifier, load_classifier
from drs_ray.models.inference import voting_classifier
from drs_ray.storage import open_store
from tests.support.runs import counts_digest, run_data

MEAN, STD = [0.49, 0.48, 0.45], [0.2, 0.21, 0.22]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_QUIET = transformers.logging.set_verbosity_error, transformers.logging.disable_progress_bar


def network(kind: str, channels: int = 3, **settings: Any) -> Any:
    """A tiny network whose logits depend on every layer."""
    for silence in _QUIET:
        silence()
    torch.manual_seed(0)
    small: dict[str, dict[str, Any]] = {
        "ViT": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        | {"image_size": 32, "patch_size": 8},
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "layer_scale_init_value": 1.0},
        "Swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1]}
        | {"window_size": 4},
    }
    config = getattr(transformers, f"{kind}Config")(
        num_channels=channels, **{"num_labels": 10, **small[kind], **settings}
    )
    made = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    for name, parameter in made.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name and name.endswith("weight") else 0.0, std=0.2)
    for name, buffer in made.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return made


def processor(channels: int = 3, kind: str = "ViTImageProcessor", **settings: Any) -> Any:
    usual = {"size": {"height": 32, "width": 32}, "image_mean": MEAN[:channels], "image_std": STD[:channels]}
    return getattr(transformers, kind)(**{**usual, **settings})


def saved(place: Path, made: Any = None, prepares: Any = None) -> str:
    (made or network("ViT")).save_pretrained(place)
    (prepares or processor()).save_pretrained(place)
    return str(place)


def load(place: str, **given: Any) -> BaseClassifier:
    usual: dict[str, Any] = {"architecture": "transformers", "arguments": {}, "checkpoint": place, "sub_image": 0}
    usual |= {"partition": "none", "layout": "packed", "sigma": 0.5, "image_shape": (3, 32, 32), "num_classes": 10}
    return load_classifier(**{**usual, **given})


def image(*shape: int) -> Tensor:
    """8-bit pixels without sharp edges, on which resizing filters nearly agree."""
    coarse = torch.rand(1, shape[0], 3, 3, generator=torch.Generator().manual_seed(1)) * 255
    return nn.functional.interpolate(coarse, shape[1:], mode="bilinear").round().to(torch.uint8)


def of_the_library(place: str, pixels: Tensor) -> Tensor:
    """The logits of the library's own processor and model. pixels: uint8 [1, C, H, W]."""
    prepares = transformers.AutoImageProcessor.from_pretrained(place)
    made = transformers.AutoModelForImageClassification.from_pretrained(place)
    with torch.inference_mode():
        logits: Tensor = made(**prepares(list(pixels), return_tensors="pt")).logits
    return logits


@pytest.mark.parametrize(
    ("made", "prepares"),
    [
        ("ViT", {}),
        ("ViT", {"do_rescale": False, "image_mean": [125.0, 120.0, 115.0], "image_std": [50.0, 55.0, 60.0]}),
        ("ViT", {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}),
        ("ViT", {"do_normalize": False}),
        ("ResNet", {"do_resize": False}),
        ("ResNet", {"kind": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 1.0}),
        ("ConvNext", {"kind": "BitImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}),
        ("Swin", {"resample": 3}),
    ],
)
def test_the_logits_are_those_of_the_librarys_own_pipeline(tmp_path: Path, made: str, prepares: dict[str, Any]) -> None:
    place = saved(tmp_path, network(made), processor(**prepares))
    loaded = load(place)
    assert loaded.warnings == ()
    pixels = image(3, 32, 32)
    with torch.inference_mode():
        found = loaded.module(pixels / 255)
    expected = of_the_library(place, pixels)
    assert float(expected.std()) > 0.05
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    with torch.inference_mode():  # and the image matters
        assert not torch.allclose(loaded.module(1 - pixels / 255), found, rtol=0.01)


@pytest.mark.parametrize("shape", [(1, 28, 28), (1, 28, 14)])
def test_smaller_images_are_stretched_after_the_noise_as_the_library_does_before(
    tmp_path: Path, shape: tuple[int, int, int]
) -> None:
    """The library rounds resized pixels to 8 bits; nothing else differs."""
    place = saved(tmp_path, network("ViT", 1), processor(1))
    loaded = load(place, image_shape=shape)
    assert loaded.warnings == ()
    pixels = image(*shape)
    with torch.inference_mode():
        found = loaded.module(pixels / 255)
    expected = of_the_library(place, pixels)
    assert torch.allclose(found, expected, atol=0.02 * float(expected.std()))


@pytest.mark.parametrize(
    ("prepares", "shape", "what"),
    [
        ({"resample": 3}, (3, 28, 28), "28x28 pixels in another way than .* bilinearly resized to 32x32"),
        ({}, (3, 64, 64), "64x64 pixels in another way than .* bilinearly resized to 32x32"),  # smoothed beforehand
        (
            {"kind": "BitImageProcessor", "size": {"shortest_edge": 40}, "crop_size": 32},
            (3, 32, 32),
            "32x32 pixels in another way than .* the whole sub-image, as it is; the certificates hold",
        ),
        (
            {"kind": "ConvNextImageProcessor", "size": {"shortest_edge": 32}, "crop_pct": 0.875},
            (3, 40, 20),
            "40x20 pixels in another way than .* bilinearly resized to 32x32",
        ),
    ],
)
def test_another_way_to_resize_or_crop_is_a_warning(
    tmp_path: Path, prepares: dict[str, Any], shape: tuple[int, int, int], what: str
) -> None:
    place = saved(tmp_path, prepares=processor(**prepares))
    (warning,) = load(place, image_shape=shape).warnings
    assert warning.startswith(f"sub-image 0: checkpoint {place}/preprocessor_config.json resizes or crops")
    assert re.search(what, warning)
    assert load(place, image_shape=shape, pixels=PixelsConfig(resize=(32, 32), mean=MEAN, std=STD)).warnings == ()


@pytest.mark.parametrize("sub_images", [1, 2])
def test_a_run_is_certified_and_verified(tmp_path: Path, sub_images: int) -> None:
    data = run_data(tmp_path / "run", images=3)
    data["partition"] = {"name": "none"} if sub_images == 1 else {"name": "checkerboard", "layout": "packed"}
    place = saved(tmp_path / "model", network("ViT", 1), processor(1))
    classifier = {"architecture": "transformers", "checkpoint": place, "sigma": 0.5}
    data["classifiers"] = [classifier] * sub_images
    data["budget"] = {"selection": 10, "estimation": 40}
    data["engine"] |= {"images_per_unit": 1, "batch": 20}
    result = certify(parse_config(data))
    verify(result.uri, 2).check()
    digest = counts_digest(open_store(result.uri))
    data["output"] = str(tmp_path / "again")
    data["engine"]["images_per_unit"] = 3
    certify(parse_config(data))
    assert counts_digest(tmp_path / "again") == digest
    processor(1, image_mean=[0.3]).save_pretrained(place)  # the same weights behind another processor
    other = parse_config({**data, "output": str(tmp_path / "other")})
    assert certify(other).record.classifier_digests[0] != result.record.classifier_digests[0]


@pytest.mark.parametrize("kind", ["ViT", "ResNet", "ConvNext"])
def test_what_votes_has_nearly_the_same_logits(tmp_path: Path, kind: str) -> None:
    module = load(saved(tmp_path, network(kind))).module
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = module(x)
        torch.testing.assert_close(voting(module, "float32", False)(x), expected, rtol=1e-4, atol=1e-4)
        nearly = 0.1 * float(expected.std())
        assert torch.allclose(voting(module, "bfloat16", False)(x), expected, atol=nearly)


@pytest.mark.slow
def test_it_is_compiled_as_one_graph_with_nearly_the_same_logits(tmp_path: Path) -> None:
    module = load(saved(tmp_path)).module
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = module(x)
        found = voting(module, "bfloat16", True)(x.contiguous(memory_format=torch.channels_last))
    assert torch.allclose(found, expected, atol=0.1 * float(expected.std()))


def voting(module: nn.Module, precision: Precision, compile: bool) -> nn.Module:
    return voting_classifier(
        module,
        precision=precision,
        compile=compile,
        device=torch.device("cpu"),
        batch=8,
        image_shape=(3, 32, 32),
        num_classes=10,
        sub_image=0,
    ).module


def test_the_config_may_repeat_the_processor_and_choose_another_size(tmp_path: Path) -> None:
    place = saved(tmp_path, network("ResNet"), processor())
    plain = load(place)
    same = load(place, pixels=PixelsConfig(mean=(0.49, 0.48, 0.45), std=(0.2, 0.21, 0.22)))
    larger = load(place, pixels=PixelsConfig(resize=(48, 48), mean=MEAN, std=STD))
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(same.module(x), plain.module(x))
        assert not torch.allclose(larger.module(x), plain.module(x), rtol=1e-3)
    assert larger.digest != plain.digest
    wrong = PixelsConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    for pixels in (wrong, PixelsConfig(resize=(48, 48)), PixelsConfig(range=(0, 255), mean=MEAN, std=STD)):
        with pytest.raises(
            ClassifierError,
            match=r"preprocessor_config.json: says pixels: \{range: \[0.0, 1.0\], mean: "
            r"\[0.49, 0.48, 0.45\], std: .* remove classifiers.0.pixels",
        ):
            load(place, pixels=pixels)


def test_without_a_processor_the_config_says_what_is_done_to_pixels(tmp_path: Path) -> None:
    place = saved(tmp_path)
    expected = load(place)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(ClassifierError, match=r"no preprocessor_config.json in it, .* or give classifiers.0.pixels"):
        load(place)
    found = load(place, pixels=PixelsConfig(mean=MEAN, std=STD))
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(found.module(x), expected.module(x))


def labels(*names: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def test_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    place = saved(tmp_path, network("ViT", **labels("Airplane", *CLASSES[1:])))
    assert load(place, classes=CLASSES).warnings == ()  # case is no name
    assert load(place, classes=None).warnings == ()
    with pytest.raises(
        ClassifierError,
        match=r"config.json: its classes are in another order than the run's: "
        r"'bird' is class 2 there, 1 here; name .* dataset.classes",
    ):
        load(place, classes=["airplane", "bird", "automobile", *CLASSES[3:]])
    (warning,) = load(place, classes=["airplane", "car", *CLASSES[2:]]).warnings
    assert (
        "some of its class names are not the data set's; check that they mean the same: class 1 is 'automobile'"
        in warning
    )


def test_labels_that_nobody_named_are_not_compared(tmp_path: Path) -> None:
    assert load(saved(tmp_path), classes=CLASSES).warnings == ()


def changed(place: Path, file: str, **values: Any) -> None:
    path = place / file
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "remove it"}))


CODE = {"AutoModelForImageClassification": "modeling.Network"}


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("config.json", {"auto_map": CODE}, "config.json: has auto_map, which needs code or kernels that are not part"),
        ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "p.P"}}, "r_config.json: has auto_map, which"),
        ("config.json", {"inner": {"attn_implementation": "kernels-community/a"}}, "has attn_implementation, which"),
        ("config.json", {"quantization_config": {"quant_method": "x"}}, "has quantization_config, which needs"),
        ("config.json", {"attribute_map": {"x": "_attn_implementation"}, "x": "a/b"}, "has attribute_map, which needs"),
        ("config.json", {"inner": [{"attn_implementation": "a/b"}]}, "has attn_implementation, which needs"),
        (
            "config.json",
            {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
            "names BertForSequenceClassification, of the model type 'bert'; an image classifier of transformers is",
        ),
        ("config.json", {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}, "type 'llava'"),
        (
            "config.json",
            {"architectures": ["ViTModel"]},
            "names ViTModel, of the model type 'vit'; an image",
        ),
        ("config.json", {"architectures": "remove it"}, "names no architecture, of the model type 'vit'"),
        (
            "config.json",
            {"model_type": "timm_wrapper", "architecture": "resnet18"},
            "write architecture: timm:resnet",
        ),
        ("config.json", {"num_channels": 1}, "the classifier takes images with 1 channel, the data set has 3; choose"),
        ("config.json", labels("cat", "dog"), "the classifier has 2 classes, the run 10; choose a data set"),
        (
            "config.json",
            {"hidden_size": 24},
            r"ViTForImageClassification of config.json \(of a wrong shape: class",
        ),
        ("config.json", {"num_hidden_layers": 1}, r"\(unexpected: vit.* and 13 more\); save both again"),
        ("config.json", {"num_hidden_layers": 3}, r"\(missing: vit.* and 13 more\); save both again"),
        ("config.json", {"hidden_size": "wide"}, "config.json: transformers cannot read it"),
        ("config.json", {"patch_size": 7}, "model.safetensors: |failed on an input"),
        (
            "preprocessor_config.json",
            {"image_mean": [0.5], "image_std": [0.5]},
            "is for images with 1 channel, the",
        ),
        (
            "preprocessor_config.json",
            {"image_processor_type": "NoProcessor"},
            "r_config.json: transformers cannot",
        ),
        ("preprocessor_config.json", {"rescale_factor": -1.0}, "r_config.json: transformers cannot read it"),
        (
            "preprocessor_config.json",
            {"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True},
            r"does more to pixels than to scale, normalise, resize and crop them \(do_flip_channel_order\); load",
        ),
        (
            "preprocessor_config.json",
            {"image_processor_type": "EfficientNetImageProcessor", "include_top": True},
            r"does more to pixels than to scale, normalise, resize and crop them \(include_top",
        ),
        (
            "preprocessor_config.json",
            {"image_processor_type": "SegformerImageProcessor", "do_resize": False, "do_normalize": False},
            r"failed on an input of shape \[8, 3, 24, 24\]",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, file: str, values: dict[str, Any], message: str
) -> None:
    place = saved(tmp_path)
    changed(tmp_path, file, **values)
    shape = (3, 24, 24) if "24, 24" in message else (3, 32, 32)
    with pytest.raises(ClassifierError, match=message) as caught:
        load(place, image_shape=shape)
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    place = saved(tmp_path)
    weights = tmp_path / "model.safetensors"
    torch.save(load_file(weights), tmp_path / "pytorch_model.bin")
    content = weights.read_bytes()
    weights.unlink()
    with pytest.raises(ClassifierError, match=r"model.safetensors: not found; save the model with .*; pickles and"):
        load(place)
    weights.write_bytes(content[:-10])
    with pytest.raises(ClassifierError, match=r"model.safetensors: not a safetensors file, or truncated"):
        load(place)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ClassifierError, match=r"config.json: no JSON"):
        load(place)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ClassifierError, match=r"no config.json in it; name a directory \(or s3:// prefix\)"):
        load(place)


def test_the_files_that_are_read_are_those_that_a_job_is_checked_for() -> None:
    names = (transformers_directory.CONFIG, transformers_directory.PROCESSOR, transformers_directory.WEIGHTS)
    assert set(names) <= set(DIRECTORY_FILES)


def test_names_of_tensors_from_earlier_versions_are_read(tmp_path: Path) -> None:
    """The library translates them; a test of the files' names would refuse every published ViT."""
    made = network("ViT")
    place = saved(tmp_path, made)
    stored = load_file(tmp_path / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in stored
    assert not stored.keys() <= made.state_dict().keys()
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        normalised = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
        torch.testing.assert_close(load(place).module(x), made(normalised).logits)


def test_half_precision_weights_are_computed_in_float32(tmp_path: Path) -> None:
    place = saved(tmp_path, network("ResNet").half())
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} >= {torch.float16}
    parameters = dict(load(place).module.named_parameters())
    assert {parameter.dtype for parameter in parameters.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"layer_norm_eps": 1e-3}),
        ("preprocessor_config.json", {"size": {"height": 24, "width": 24}}),
        ("preprocessor_config.json", {"rescale_factor": 0.01}),
    ],
)
def test_the_digest_covers_what_is_in_no_weight(tmp_path: Path, file: str, values: dict[str, Any]) -> None:
    place = saved(tmp_path, network("ViT", image_size=32, patch_size=8))
    given = {"pixels": PixelsConfig(resize=(32, 32), mean=MEAN, std=STD)} if "rescale_factor" not in values else {}
    first = load(place, **given)
    changed(tmp_path, file, **values)
    assert load(place, **given).digest == load(place, **given).digest != first.digest


def test_nothing_is_downloaded_and_no_code_of_the_directory_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = saved(tmp_path)
    for file in ("modeling.py", "configuration.py", "image_processing.py"):
        (tmp_path / file).write_text("raise SystemExit('this was run')\n")
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *names, **_: asked.append(names))
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: asked.append(address))
    load(place)
    changed(tmp_path, "config.json", _name_or_path="google/vit-base-patch16-224")
    load(place)
    assert asked == []


def test_the_library_is_left_as_talkative_as_it_was(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    place = saved(tmp_path)
    transformers.logging.set_verbosity_info()
    transformers.logging.enable_progress_bar()
    try:
        load(place)
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
        assert transformers.logging.is_progress_bar_enabled()
    finally:
        for silence in _QUIET:
            silence()
    assert capfd.readouterr() == ("", "")


def test_mistakes_in_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClassifierError, match=r"sub-image 0: transformers takes no arguments, got \{'depth': 3\}"):
        load("nowhere", arguments={"depth": 3})
    with pytest.raises(ClassifierError, match=r"classifier transformers needs a checkpoint; set classifiers.0.check"):
        load_classifier(
            architecture="transformers",
            arguments={},
            checkpoint=None,
            sub_image=0,
            partition="none",
            layout="packed",
            sigma=0.5,
            image_shape=(3, 32, 32),
            num_classes=10,
        )
    with pytest.raises(
        ClassifierError, match=r"transformers: is the network of a directory, there is nothing to build"
    ):
        build_module("transformers", {}, (3, 32, 32), 10)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ClassifierError, match=r"transformers is not installed; install drs-ray with the extra transf"):
        load(str(tmp_path))
