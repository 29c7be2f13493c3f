"""A model that is a directory: the same from a prefix of an S3 bucket as from a disk, with the same digest."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import timm
import torch
import transformers
from torch import Tensor

from drs_ray.config import DenoiserConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.denoisers import load_denoiser
from drs_ray.models.factory import load_classifier
from drs_ray.models.files import write_file
from tests.servers import BUCKET

SHAPE = (3, 16, 16)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of diffusers

Loaded = tuple[str, Callable[[Tensor], Tensor]]
"""Digest and function."""


def save_transformers(place: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1], layer_type="basic", num_labels=3)
    transformers.ResNetForImageClassification(config).save_pretrained(place)
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(place)


def save_timm(place: Path) -> None:
    pixels = {"mean": [0.5] * 3, "std": [0.5] * 3, "input_size": SHAPE}
    network = timm.create_model("resnet10t", num_classes=3)
    timm.models.save_for_hf(
        network, place, safe_serialization=True, model_config={"pretrained_cfg": pixels}, data_config=pixels
    )


def save_diffusers(place: Path) -> None:
    blocks = {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"], "block_out_channels": [4]}
    network = diffusers.UNet2DModel(16, norm_num_groups=2, attention_head_dim=4, **blocks)
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler()).save_pretrained(place)


def classifier(architecture: str, place: str) -> Loaded:
    fits: dict[str, Any] = {"sub_image": 0, "partition": "none", "layout": "packed", "sigma": 0.5, "image_shape": SHAPE}
    loaded = load_classifier(architecture=architecture, arguments={}, checkpoint=place, num_classes=3, **fits)
    return loaded.digest, loaded.module


def denoiser(architecture: str, place: str) -> Loaded:
    section = DenoiserConfig(architecture=architecture, checkpoint=place)
    network, digest = load_denoiser(section, 0.5, SHAPE, 0, "none", "packed")
    return digest, network


@pytest.mark.parametrize(
    ("save", "load", "architecture", "file"),
    [
        (save_transformers, classifier, "transformers", "model.safetensors"),
        (save_timm, classifier, "timm:resnet10t", "model.safetensors"),
        (save_diffusers, denoiser, "diffusers", "unet/diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_directory_is_read_from_a_bucket(
    tmp_path: Path,
    moto_endpoint: str,
    monkeypatch: pytest.MonkeyPatch,
    save: Callable[[Path], None],
    load: Callable[[str, str], Loaded],
    architecture: str,
    file: str,
) -> None:
    save(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto_endpoint)
    prefix = f"s3://{BUCKET}/{uuid.uuid4().hex}"
    files = [found for found in tmp_path.rglob("*") if found.is_file()]
    for found in files:
        if found.relative_to(tmp_path).as_posix() != file:
            write_file(f"{prefix}/{found.relative_to(tmp_path)}", found.read_bytes())
    with pytest.raises(ClassifierError, match=rf"{prefix}/{file}: not found"):
        load(architecture, prefix)
    write_file(f"{prefix}/{file}", (tmp_path / file).read_bytes())
    (here_digest, here), (digest, there) = load(architecture, str(tmp_path)), load(architecture, prefix + "/")
    assert digest == here_digest
    x = torch.rand(2, *SHAPE)
    with torch.inference_mode():
        assert torch.equal(there(x), here(x))
