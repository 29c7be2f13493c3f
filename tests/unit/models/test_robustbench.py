"""Files as RobustBench keeps them, behind a factory that builds the network's class, with its way of naming tensors."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from drs_ray.config import PixelsConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.factory import BaseClassifier, load_classifier
from drs_ray.models.tensors import module_digest

FACTORY = """
from collections import OrderedDict

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1, bias=False)

    def forward(self, x):
        return x + self.conv1(torch.relu(self.bn1(x)))


class Stage(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Sequential(Block(width), Block(width))

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.block1, self.sub_block1 = Stage(8), Stage(8)  # RobustBench's has stages that no pass uses
        self.bn1, self.fc = nn.BatchNorm2d(8), nn.Linear(8, num_classes)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x):
        return self.scale * self.fc(torch.relu(self.bn1(self.block1(self.conv1(x)))).mean((2, 3)))


class Normalised(WideResNet):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.register_buffer("mu", torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor([0.2471, 0.2435, 0.2616]).view(1, 3, 1, 1))

    def forward(self, x):
        return super().forward((x - self.mu) / self.sigma)


class Normalize(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


def network(image_shape, num_classes, kind):
    if kind == "plain":
        return WideResNet(num_classes)
    if kind == "cifar10":
        return Normalised(num_classes)
    return nn.Sequential(OrderedDict([("normalize", Normalize()), ("model", WideResNet(num_classes))]))
"""
NORMALIZE = "normalize.mean and normalize.std"
BUFFERS = ("mu", "sigma", "normalize.mean", "normalize.std")
Change = Callable[[dict[str, Tensor]], dict[str, Any]]


def bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the normalisation, and without the name of the network behind it."""
    return {name.removeprefix("model."): value for name, value in tensors.items() if name not in BUFFERS}


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    (tmp_path / "robust_zoo.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "robust_zoo", raising=False)

    def network(kind: str) -> nn.Module:
        torch.manual_seed(0)
        built: nn.Module = importlib.import_module("robust_zoo").network((3, 32, 32), 10, kind)
        for part in built.modules():
            if isinstance(part, nn.BatchNorm2d) and part.running_var is not None:
                part.running_var.uniform_(0.5, 2)
        return built.eval()

    return network


def load(kind: str, file: Path, **given: Any) -> BaseClassifier:
    usual: dict[str, Any] = {"architecture": "robust_zoo:network", "arguments": {"kind": kind}, "sub_image": 0}
    usual |= {"partition": "none", "layout": "packed", "sigma": 0.25, "image_shape": (3, 32, 32), "num_classes": 10}
    return load_classifier(**usual | given, checkpoint=str(file))


@pytest.mark.parametrize(
    ("kind", "stored", "entry", "lacks"),
    [
        ("plain", lambda tensors: tensors, None, ""),
        ("plain", lambda tensors: {"state_dict": prefixed("module.", tensors), "epoch": 3}, None, ""),
        ("plain", lambda tensors: {"last": tensors, "best": prefixed("wrong.", tensors)}, "last", ""),
        ("cifar10", lambda tensors: tensors, None, ""),
        ("cifar10", lambda tensors: {"model": prefixed("module.", bare(tensors))}, None, "mu and sigma"),
        ("imagenet", lambda tensors: tensors, None, ""),
        (
            "imagenet",
            lambda tensors: prefixed("module.model.", bare(tensors)),
            None,
            "normalize.mean and normalize.std",
        ),
        ("imagenet", lambda tensors: {"state_dict": bare(tensors)}, None, NORMALIZE),
    ],
)
def test_the_files_load_behind_a_factory(
    tmp_path: Path, made: Callable[[str], nn.Module], kind: str, stored: Change, entry: str | None, lacks: str
) -> None:
    network = made(kind)
    file = tmp_path / "Name.pt"
    torch.save(stored(network.state_dict()), file)
    loaded = load(kind, file, entry=entry)
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded.module(x), network(x))
    assert loaded.digest == module_digest(network)  # the normalisation is part of it
    value = "mu = [0.4914, 0.4822, 0.4465]" if kind == "cifar10" else "normalize.mean = [0.485, 0.456, 0.406]"
    assert len(loaded.warnings) == bool(lacks)
    for warning in loaded.warnings:
        assert f"Name.pt has no {lacks}; the values of the network's code are used" in warning
        assert value in warning


def test_a_normalisation_in_the_file_is_not_lost(tmp_path: Path, made: Callable[[str], nn.Module]) -> None:
    """Behind a class without one, the config must do it."""
    tensors = made("cifar10").state_dict()
    torch.save(tensors, tmp_path / "Name.pt")
    with pytest.raises(ClassifierError, match=r"set classifiers.<k>.pixels: \{mean: \[0.4914, .*, std: \[0.2471, "):
        load("plain", tmp_path / "Name.pt")
    pixels = PixelsConfig(mean=(0.4914, 0.4822, 0.4465), std=(0.2471, 0.2435, 0.2616))
    loaded = load("plain", tmp_path / "Name.pt", pixels=pixels)
    x = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(loaded.module(x), made("cifar10")(x))


@pytest.mark.parametrize("name", ["fc.bias", "scale"])
def test_only_a_normalisation_may_be_missing(tmp_path: Path, made: Callable[[str], nn.Module], name: str) -> None:
    tensors = bare(made("cifar10").state_dict())
    del tensors[name]
    torch.save(tensors, tmp_path / "Name.pt")
    with pytest.raises(ClassifierError, match=rf"not those of the architecture \(missing: .*{name}"):
        load("cifar10", tmp_path / "Name.pt")
