"""Denoised smoothing (Salman et al., NeurIPS 2020): a denoiser before a base classifier, both of one sub-image.

A denoiser is a part of f^k: its only input is the noisy sub-image as laid out, so that the theorems apply to denoiser
and classifier together. A denoiser of the whole noisy image does not fit (docs/theory.md 9, item 5).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from drs_ray.config import DenoiserConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.building import brief, call, find_function
from drs_ray.models.checkpoints import (
    CheckpointMetadata,
    check_metadata,
    load_checkpoint,
    metadata_warnings,
    save_checkpoint,
)
from drs_ray.models.diffusion import OneShotDenoiser, load_diffusion, new_diffusion, save_diffusion, weights_file
from drs_ray.models.openai_diffusion import FLAGS, load_openai
from drs_ray.models.pixel_convention import Shape
from drs_ray.models.tensors import load_tensors


class DnCNN(nn.Module):
    """Zhang et al. 2017, predicts the noise. Parameter names are those of microsoft/denoised-smoothing's `dncnn`."""

    def __init__(self, channels: int, depth: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width, eps=1e-4)]
            layers.append(nn.ReLU(inplace=True))
        self.dncnn = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, C, h, w]."""
        denoised: Tensor = x - self.dncnn(x)
        return denoised


def load_denoiser(
    config: DenoiserConfig, sigma: float, image_shape: Shape, sub_image: int, partition: str, layout: str
) -> tuple[nn.Module, list[str]]:
    """Build a denoiser, load its checkpoint and test it: float32 [N, C, h, w] -> the same shape, in eval mode.

    Args:
        config: `dncnn`, `diffusers`, a key of `FLAGS`, or the user's `module:function`, called with `image_shape` and
            its arguments.
        sigma: noise standard deviation of the sub-image, pixel units; only diffusion models depend on it.
        image_shape: (C, h, w) of the sub-image as laid out.
        sub_image: index of its sub-image. A checkpoint that drs-ray trained for another one is refused.
        partition: label of the partition, likewise.
        layout: name of the layout, likewise.

    Returns:
        The denoiser, and warnings that the user may ignore.

    Raises:
        ClassifierError: it cannot be built or loaded, or does not return sub-images.
    """
    who = _name(config, sub_image)
    correct = f"correct classifiers.{sub_image}.denoiser.checkpoint"
    metadata = None
    warnings: list[str] = []
    module: nn.Module
    if config.architecture == "diffusers":
        _check_no_entry(config, who)
        source = _needed(config, who, sub_image)
        module, warnings, metadata = load_diffusion(source, config.arguments, sigma, image_shape, who)
    elif config.architecture in FLAGS:
        source = _needed(config, who, sub_image)
        module, warnings = load_openai(config, source, sigma, image_shape, who, correct)
    else:
        module = _built(config, image_shape, who)
        if config.checkpoint is not None or ":" not in config.architecture:
            source = _needed(config, who, sub_image)
            trained = ", or train it with `drs-ray train`" if source.endswith(".safetensors") else ""
            tensors, metadata = load_checkpoint(source, config.entry, correct + trained)
            load_tensors(module, tensors, source)
    if metadata is not None:
        expected = {
            "sub_image": sub_image,
            "partition": partition,
            "layout": layout,
            "architecture": config.architecture,
            "image_shape": image_shape,
        }
        if config.architecture != "diffusers":  # whose arguments may be left out, and are compared already
            expected["arguments"] = dict(config.arguments)
        check_metadata(source, metadata, expected)
        warnings.extend(metadata_warnings(source, metadata, sub_image, sigma))
    check_denoiser(module, image_shape, who)
    return module, warnings


def new_denoiser(
    config: DenoiserConfig, sigma: float, image_shape: Shape, sub_image: int, start_from: str | None = None
) -> nn.Module:
    """A denoiser to be trained. Its initial weights are random, or those of `start_from`; see `load_denoiser`.

    start_from: a checkpoint of the same architecture; of `diffusers` a directory, which also decides the schedule.

    Raises:
        ClassifierError: it cannot be built, or cannot start from these weights.
    """
    who = _name(config, sub_image)
    if config.architecture == "diffusers":
        _check_no_entry(config, who)
        if start_from is None:
            return new_diffusion(config.arguments, sigma, image_shape, who)
        return load_diffusion(start_from, config.arguments, sigma, image_shape, who)[0]
    module = _built(config, image_shape, who)
    if start_from is not None:
        load_tensors(module, load_checkpoint(start_from, remedy="correct training.start_from")[0], start_from)
    return module


def denoiser_file(config: DenoiserConfig, sub_image: int) -> str:
    """The file with the weights of a denoiser's checkpoint, which training writes: a local path or an s3:// URI.

    Raises:
        ClassifierError: the config names no checkpoint, or the directory of a pipeline, whose U-Net would be loaded in
            place of the trained one.
    """
    checkpoint = _needed(config, _name(config, sub_image), sub_image)
    return weights_file(checkpoint) if config.architecture == "diffusers" else checkpoint


def save_denoiser(file: str, module: nn.Module, metadata: CheckpointMetadata) -> None:
    """Write a trained denoiser: `file` (see `denoiser_file`), and beside it what else its layout has.

    Raises:
        ClassifierError: a file cannot be written.
    """
    if isinstance(module, OneShotDenoiser):
        save_diffusion(file, module, metadata)
    else:
        save_checkpoint(file, module, metadata)


def check_denoiser(module: nn.Module, image_shape: Shape, who: str) -> None:
    """Put a denoiser into eval mode and try it on random pixels.

    Raises:
        ClassifierError: it fails, or does not return sub-images of the shape that it is given.
    """
    module.eval()
    inputs = torch.rand((2, *image_shape), generator=torch.Generator().manual_seed(0))
    try:
        with torch.inference_mode():
            denoised: object = module(inputs)
    except Exception as error:  # the user's module may raise anything
        raise ClassifierError(f"{who} failed on an input of shape {list(inputs.shape)} ({brief(error)})") from error
    if not isinstance(denoised, Tensor) or denoised.shape != inputs.shape:
        got = list(denoised.shape) if isinstance(denoised, Tensor) else type(denoised).__name__
        raise ClassifierError(f"{who} must return sub-images of shape {list(inputs.shape)}, as it is given, got {got}")


def _built(config: DenoiserConfig, image_shape: Shape, who: str) -> nn.Module:
    """A denoiser without the weights of its checkpoint."""
    if ":" in config.architecture:
        build = find_function(config.architecture)
        return call(config.architecture, build, {"image_shape": image_shape}, config.arguments)
    if config.architecture == "dncnn":
        return DnCNN(image_shape[0], **_sizes(who, config.arguments))
    raise ClassifierError(
        f"{who}: must be dncnn, diffusers, {', '.join(FLAGS)}, or your own factory as module:function"
    )


def _name(config: DenoiserConfig, sub_image: int) -> str:
    return f"sub-image {sub_image}: denoiser {config.architecture}"


def _check_no_entry(config: DenoiserConfig, who: str) -> None:
    if config.entry is not None:
        raise ClassifierError(f"{who} takes no entry; remove it")


def _needed(config: DenoiserConfig, who: str, sub_image: int) -> str:
    if config.checkpoint is None:
        raise ClassifierError(f"{who} needs a checkpoint; set classifiers.{sub_image}.denoiser.checkpoint")
    return config.checkpoint


def _sizes(who: str, arguments: Mapping[str, JsonValue]) -> dict[str, int]:
    sizes = {"depth": 17, "width": 64}
    for key, value in arguments.items():
        if key not in sizes or isinstance(value, bool) or not isinstance(value, int) or value < 2:
            raise ClassifierError(f"{who}: arguments may be depth and width, whole numbers >= 2, got {key}: {value!r}")
        sizes[key] = value
    return sizes
