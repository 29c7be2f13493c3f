"""One-shot denoising by a diffusion model (Carlini et al., ICLR 2023), from a directory in the layout of diffusers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from drs_ray.errors import ClassifierError
from drs_ray.models.checkpoints import parse_safetensors
from drs_ray.models.files import read_file, read_if_there
from drs_ray.models.pixel_convention import Shape
from drs_ray.models.tensors import load_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
_LATENT = ("vae", "vqvae", "text_encoder", "tokenizer", "image_encoder")
"""Components of pipelines that do not denoise pixels, or need more than an image."""


class OneShotDenoiser(nn.Module):
    """The estimate of the clean image by one step of a diffusion model: a fixed function of the noisy image.

    The model was trained on sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise, with z = 2 x - 1 in [-1, 1]. A noisy image
    x + sigma noise, mapped to [-1, 1] and scaled by sqrt(alpha_bar), has this form if 1 / alpha_bar - 1 = (2 sigma)^2.
    """

    schedule: Tensor

    def __init__(self, network: nn.Module, timestep: int, alpha_bar: float, prediction: str) -> None:
        """network: called with [N, C, h, w] and timesteps int64 [N]; its `sample` is [N, C, h, w], or [N, 2 C, h, w]
        with variances, which are not used. prediction: what it predicts: epsilon, sample or v_prediction.
        """
        super().__init__()
        self.network = network
        self.prediction = prediction
        self.timestep = timestep
        self.signal, self.noise = math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        # Not used: by this buffer the digest of the classifier covers the numbers above.
        self.register_buffer("schedule", torch.tensor([timestep, alpha_bar], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Noisy pixels [N, C, h, w] -> denoised pixels in [0, 1], the same shape."""
        noisy = self.signal * (2 * x - 1)
        timesteps = torch.full((len(x),), self.timestep, device=x.device)
        found = self.network(noisy, timesteps, return_dict=False)[0][:, : x.shape[1]]
        if self.prediction == "sample":
            clean = found
        elif self.prediction == "epsilon":
            clean = (noisy - self.noise * found) / self.signal
        else:
            clean = self.signal * noisy - self.noise * found
        denoised: Tensor = (clean.clamp(-1, 1) + 1) / 2
        return denoised


def load_diffusion(location: str, sigma: float, image_shape: Shape, who: str) -> OneShotDenoiser:
    """Load an unconditional diffusion model of pixels, for one noise level. Nothing is downloaded.

    Args:
        location: directory or s3:// prefix that `save_pretrained` of diffusers has written: of a pipeline (`unet/`,
            `scheduler/`), or with both `config.json` and `scheduler_config.json` in it.
        sigma: noise standard deviation, pixel units.
        image_shape: (C, h, w) of the sub-image as laid out.
        who: the denoiser, for errors.

    Raises:
        ClassifierError: diffusers is not installed; files are missing, or hold another kind of model; the model does
            not fit the sub-image; or its schedule has no such noise.
    """
    try:
        from diffusers import DDPMScheduler, UNet2DModel
    except ModuleNotFoundError as error:
        raise ClassifierError(f"{who} needs diffusers; install it with `pip install drs-ray[diffusion]`") from error
    location = location.rstrip("/")
    index = _json(f"{location}/model_index.json") or {}
    other = next((name for name in _LATENT if name in index), None)
    if other is not None:
        raise ClassifierError(f"{who}: {location} has a {other}; only models that denoise pixels alone can be used")
    folder = f"{location}/unet" if "unet" in index and _json(f"{location}/unet/config.json") else location
    config = _json(f"{folder}/config.json")
    schedule = _json(f"{location}/scheduler/scheduler_config.json") or _json(f"{location}/scheduler_config.json")
    for name, found in (("config.json", config), ("scheduler_config.json", schedule)):
        if found is None:
            raise ClassifierError(f"{who}: no {name} in {location}; name a directory that diffusers has saved")
    assert config is not None
    assert schedule is not None
    _check_fits(config, image_shape, f"{who}: {folder}/config.json")
    if read_if_there(f"{folder}/{WEIGHTS}") is None:
        raise ClassifierError(
            f"{who}: no {WEIGHTS} in {folder}; save it with `save_pretrained(..., safe_serialization=True)` "
            "(pickles and sharded files are not read)"
        )
    network = UNet2DModel.from_config(config)  # type: ignore[no-untyped-call]
    load_tensors(network, parse_safetensors(read_file(f"{folder}/{WEIGHTS}"))[0], f"{folder}/{WEIGHTS}")
    scheduler = DDPMScheduler.from_config(schedule)  # type: ignore[no-untyped-call]
    timestep, alpha_bar = _matching(scheduler.alphas_cumprod.double(), sigma, f"{who}: {location}")
    return OneShotDenoiser(network, timestep, alpha_bar, scheduler.config.prediction_type)


def _json(location: str) -> dict[str, Any] | None:
    """A JSON object; None if there is no such file."""
    data = read_if_there(location)
    if data is None:
        return None
    try:
        found = json.loads(data)
    except ValueError as error:
        raise ClassifierError(f"{location}: no JSON ({error})") from error
    if not isinstance(found, dict):
        raise ClassifierError(f"{location}: must hold a JSON object")
    return found


def _check_fits(config: Mapping[str, Any], image_shape: Shape, where: str) -> None:
    """Refuse a network that is not an unconditional U-Net on sub-images of this shape."""
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ClassifierError(f"{where}: is a {kind}; an unconditional UNet2DModel is needed")
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ClassifierError(f"{where}: the model needs a class of each image; an unconditional one is needed")
    channels, height, width = image_shape
    takes, gives = config.get("in_channels", 3), config.get("out_channels", 3)
    if takes != channels or gives not in (channels, 2 * channels):
        raise ClassifierError(
            f"{where}: from {takes} to {gives} channels, but the sub-image has {channels}; from {channels} to "
            f"{channels} are needed, or to {2 * channels} with variances"
        )
    step = 2 ** (len(config.get("block_out_channels", (224, 448, 672, 896))) - 1)
    if height % step or width % step:
        raise ClassifierError(f"{where}: takes sizes that are multiples of {step}, the sub-image is {height}x{width}")


def _matching(alpha_bar: Tensor, sigma: float, where: str) -> tuple[int, float]:
    """The timestep whose noise is closest to sigma, and its alpha_bar. alpha_bar: float64 [T], decreasing."""
    levels = ((1 - alpha_bar) / alpha_bar).sqrt() / 2  # in pixel units: [-1, 1] is twice as wide as [0, 1]
    least, most = levels[0].item(), levels[-1].item()
    if not least <= sigma <= most:
        raise ClassifierError(f"{where}: the model knows noise of sigma {least:.4g} to {most:.4g}, got {sigma:.4g}")
    timestep = int((levels.log() - math.log(sigma)).abs().argmin())
    return timestep, float(alpha_bar[timestep])
