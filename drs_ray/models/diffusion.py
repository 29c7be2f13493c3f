"""One-shot denoising by a diffusion model (Carlini et al., ICLR 2023), from a directory in the layout of diffusers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from drs_ray.errors import ClassifierError
from drs_ray.models.building import library_errors
from drs_ray.models.checkpoints import CheckpointMetadata, parse_checkpoint, save_checkpoint
from drs_ray.models.files import is_there, read_file, read_json, write_file
from drs_ray.models.pixel_convention import Shape
from drs_ray.models.tensors import identity_of, load_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"
PREDICTIONS = ("epsilon", "sample", "v_prediction")
_NOT_PIXELS = ("vae", "vqvae", "text_encoder", "tokenizer", "image_encoder")
"""Components of pipelines that do not denoise pixels, or need more than an image."""
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of attention layers in files that earlier versions of diffusers wrote."""
_FARTHEST = 0.05
"""Largest relative distance between sigma and the noise of the chosen timestep without a warning."""


class OneShotDenoiser(nn.Module):
    """The estimate of the clean image by one step of a diffusion model: a fixed function of the noisy image.

    The model was trained on sqrt(alpha_bar) z + sqrt(1 - alpha_bar) noise, with z = 2 x - 1 in [-1, 1]. A noisy image
    x + sigma noise, mapped to [-1, 1] and scaled by sqrt(alpha_bar), has this form if 1 / alpha_bar - 1 = (2 sigma)^2.
    """

    identity: Tensor

    def __init__(
        self,
        network: nn.Module,
        timestep: float,
        level: float,
        prediction: str,
        settings: Mapping[str, Any],
        schedule: str = "",
    ) -> None:
        """A denoiser for one noise level.

        Args:
            network: called with [N, C, h, w] and timesteps [N]; returns a tuple that begins with [N, C, h, w], or
                with [N, 2 C, h, w] that ends with variances, which are not used.
            timestep: the timestep with the noise level, as the network was trained to be given it.
            level: sigma, pixel units.
            prediction: what the network predicts, of `PREDICTIONS`.
            settings: all that decides the function besides the weights.
            schedule: the noise schedule that the timestep belongs to, as JSON.
        """
        super().__init__()
        self.schedule = schedule
        self.network = network
        self.prediction = prediction
        self.timestep = timestep
        self.signal = 1 / math.sqrt(1 + 4 * level**2)
        self.noise = 2 * level * self.signal
        self.register_buffer("identity", identity_of([timestep, level, prediction, dict(settings)]))

    def forward(self, x: Tensor) -> Tensor:
        """Noisy pixels [N, C, h, w] -> denoised pixels in [0, 1], the same shape.

        In training a pixel that is clipped has the gradient of one that is not: without any it could not be learned.
        """
        noisy = self.signal * (2 * x - 1)
        timesteps = torch.full((len(x),), self.timestep, device=x.device)
        found = self.network(noisy, timesteps, return_dict=False)[0][:, : x.shape[1]].to(x.dtype)
        if self.prediction == "sample":
            clean = found
        elif self.prediction == "epsilon":
            clean = (noisy - self.noise * found) / self.signal
        else:
            clean = self.signal * noisy - self.noise * found
        clipped = clean.clamp(-1, 1)
        if self.training:
            clipped = clean + (clipped - clean).detach()
        denoised: Tensor = (clipped + 1) / 2
        return denoised


def load_diffusion(
    location: str, arguments: Mapping[str, JsonValue], sigma: float, image_shape: Shape, who: str
) -> tuple[OneShotDenoiser, list[str], CheckpointMetadata | None]:
    """Load an unconditional diffusion model of pixels, for one noise level. Nothing is downloaded.

    Args:
        location: directory or s3:// prefix that `save_pretrained` of diffusers has written: of a pipeline (`unet/`,
            `scheduler/`), or with both `config.json` and `scheduler_config.json` in it.
        arguments: settings of the network that `config.json` must agree with.
        sigma: noise standard deviation, pixel units.
        image_shape: (C, h, w) of the sub-image as laid out.
        who: the denoiser, for errors.

    Returns:
        The denoiser, warnings that the user may ignore, and the metadata if `drs-ray train` wrote it.

    Raises:
        ClassifierError: diffusers is not installed; files are missing, or hold another kind of model; the model does
            not fit the sub-image; or its schedule has no such noise.
    """
    library = need_diffusers(who)
    location = location.rstrip("/")
    index = read_json(f"{location}/model_index.json") or {}
    other = next((name for name in _NOT_PIXELS if name in index and index[name] != [None, None]), None)
    if other is not None:
        raise ClassifierError(f"{who}: {location} contains {other}; only models that denoise pixels alone can be used")
    folder, config = f"{location}/unet", read_json(f"{location}/unet/config.json")
    if config is None:
        folder, config = location, read_json(f"{location}/config.json")
    schedule = read_json(f"{location}/scheduler/scheduler_config.json") or read_json(
        f"{location}/scheduler_config.json"
    )
    if config is None or schedule is None:
        missing = "config.json" if config is None else "scheduler_config.json"
        raise ClassifierError(
            f"{who}: no {missing} in {location}; name a directory that diffusers has saved, or train one with `drs-ray "
            "train` (training.method: mse)"
        )
    weights = f"{folder}/{WEIGHTS}"
    with library_errors("diffusers", f"{who}: {folder}/config.json"):
        check_network(config, image_shape)
        for key, value in arguments.items():
            if json.dumps(config.get(key)) != json.dumps(value):
                raise ClassifierError(f"{key} is {config.get(key)}, the config has {value}; remove it from arguments")
        network = library.UNet2DModel.from_config(config)
    with library_errors("diffusers", f"{who}: scheduler_config.json in {location}"):
        _check_schedule(schedule)
        scheduler = library.DDPMScheduler.from_config(schedule)
    remedy = "save it with `save_pretrained(..., safe_serialization=True)`, in one file; pickles are not read"
    tensors, metadata = parse_checkpoint(weights, read_file(weights, remedy))
    load_tensors(network, {_present_name(name): tensor for name, tensor in tensors.items()}, weights)
    denoiser, warnings = _one_shot(network, scheduler, sigma, f"{who}: {location}")
    size = config.get("sample_size")
    trained = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if size is not None and trained != image_shape[1:]:
        here = f"{image_shape[1]}x{image_shape[2]}"
        warnings.append(f"{who}: {location} was trained on {trained[0]}x{trained[1]} pixels, the sub-image has {here}")
    return denoiser, warnings, metadata


def new_diffusion(arguments: Mapping[str, JsonValue], sigma: float, image_shape: Shape, who: str) -> OneShotDenoiser:
    """A U-Net of diffusers with random weights and diffusers' default noise schedule, for one noise level.

    arguments: settings of `UNet2DModel`, such as `block_out_channels`. Others and errors: see `load_diffusion`.
    """
    library = need_diffusers(who)
    channels, *size = image_shape
    config = {"sample_size": size, "in_channels": channels, "out_channels": channels, **arguments}
    with library_errors("diffusers", f"{who}: arguments"):
        check_network(config, image_shape)
        network = library.UNet2DModel(**config)
    return _one_shot(network, library.DDPMScheduler(), sigma, who)[0]


def _one_shot(network: Any, scheduler: Any, sigma: float, where: str) -> tuple[OneShotDenoiser, list[str]]:
    timestep, level, warnings = matching_timestep(scheduler.betas, sigma, where)
    settings = {name: value for name, value in network.config.items() if not name.startswith("_")}
    prediction = scheduler.config.prediction_type
    return OneShotDenoiser(network, timestep, level, prediction, settings, scheduler.to_json_string()), warnings


def save_diffusion(file: str, denoiser: OneShotDenoiser, metadata: CheckpointMetadata) -> None:
    """Write `config.json`, `scheduler_config.json` and the weights, which diffusers can load. file: see `weights_file`.

    Raises:
        ClassifierError: a file cannot be written.
    """
    location = file.removesuffix(WEIGHTS)
    network: Any = denoiser.network  # diffusers has no types
    write_file(f"{location}config.json", network.to_json_string().encode())
    write_file(f"{location}scheduler_config.json", denoiser.schedule.encode())
    save_checkpoint(file, denoiser.network, metadata)


def weights_file(location: str) -> str:
    """The file with the weights in a directory or s3:// prefix that training writes.

    Raises:
        ClassifierError: the directory has a pipeline's files, which would be loaded in place of the trained ones.
    """
    location = location.rstrip("/")
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        if is_there(f"{location}/{name}"):
            raise ClassifierError(
                f"{location} has {name}, a pipeline's: name another directory for what is trained, and this one in "
                "training.start_from"
            )
    return f"{location}/{WEIGHTS}"


def need_diffusers(who: str) -> Any:
    """The library diffusers. ClassifierError if it is not installed."""
    try:
        import diffusers
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise ClassifierError(f"{who} needs diffusers; install it with `pip install drs-ray[diffusion]`") from error
    return diffusers


def _present_name(name: str) -> str:
    """A parameter's name as this version of diffusers has it."""
    if ".attentions." not in name:
        return name
    return re.sub(r"\.(query|key|value|proj_attn)\.", lambda found: f".{_OLD_NAMES[found[1]]}.", name)


def check_network(config: Mapping[str, Any], image_shape: Shape) -> None:
    """Refuse a network that is not an unconditional U-Net on sub-images of this shape."""
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise ClassifierError(f"is a {kind}; an unconditional UNet2DModel is needed")
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        raise ClassifierError("the model needs a class of each image; an unconditional one is needed")
    if config.get("time_embedding_type", "positional") != "positional":
        raise ClassifierError("the model is given noise levels, not timesteps; one with positional timesteps is needed")
    channels, height, width = image_shape
    takes, gives = config.get("in_channels", 3), config.get("out_channels", 3)
    if takes != channels or gives not in (channels, 2 * channels):
        raise ClassifierError(
            f"from {takes} to {gives} channels, but the sub-image has {channels}; from {channels} to {channels} are "
            f"needed, or to {2 * channels} with variances"
        )
    step = 2 ** (len(config.get("block_out_channels", (224, 448, 672, 896))) - 1)
    if height % step or width % step:
        raise ClassifierError(f"takes sizes that are multiples of {step}, the sub-image is {height}x{width}")


def _check_schedule(schedule: Mapping[str, Any]) -> None:
    """Refuse a schedule that has no betas, for which diffusers would take its default ones."""
    if "beta_schedule" not in schedule or schedule.get("use_flow_sigmas"):
        raise ClassifierError(
            f"a {schedule.get('_class_name', 'schedule')} without betas; one with a beta_schedule is needed, such as "
            "DDPMScheduler"
        )
    prediction = schedule.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ClassifierError(f"prediction_type must be one of {', '.join(PREDICTIONS)}, got {prediction}")


def matching_timestep(betas: Tensor, sigma: float, where: str) -> tuple[int, float, list[str]]:
    """The timestep whose noise is closest to sigma by their ratio, its noise in pixel units, and warnings. betas: [T].

    Raises:
        ClassifierError: sigma is outside of the schedule's noise; `where` names the model.
    """
    alpha_bar = (1 - betas.double()).cumprod(0)
    levels = ((1 - alpha_bar) / alpha_bar).sqrt()[alpha_bar > 0] / 2  # [-1, 1] is twice as wide as [0, 1]
    least, most = levels[0].item(), levels[-1].item()
    if not least <= sigma <= most:
        raise ClassifierError(f"{where}: the model knows noise of sigma {least:.4g} to {most:.4g}, got {sigma:.4g}")
    timestep = int((levels.log() - math.log(sigma)).abs().argmin())
    level = float(f"{levels[timestep].item():.6g}")  # rounded: the last digits depend on the CPU
    is_near = math.isclose(level, sigma, rel_tol=_FARTHEST)
    return timestep, level, [] if is_near else [f"{where} has noise of sigma {level}, not {sigma:.6g}"]
