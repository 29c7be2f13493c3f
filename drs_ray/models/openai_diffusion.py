"""Diffusion models in the files of OpenAI's improved-diffusion and guided-diffusion, as networks of diffusers.

Such a file is the state_dict of a `UNetModel` (Nichol and Dhariwal 2021; Dhariwal and Nichol 2021). Names and shapes of
its tensors give the network's sizes. The rest are flags of the published code, under the names that they have there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from drs_ray.config import DenoiserConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.building import library_errors
from drs_ray.models.checkpoints import load_checkpoint
from drs_ray.models.diffusion import OneShotDenoiser, check_network, matching_timestep, need_diffusers
from drs_ray.models.pixel_convention import Shape
from drs_ray.models.tensors import load_tensors

FLAGS: Mapping[str, Mapping[str, JsonValue]] = {
    "improved-diffusion": {
        "diffusion_steps": 4000,
        "noise_schedule": "cosine",
        "rescale_timesteps": True,
        "use_new_attention_order": False,
        "num_heads": 4,
    },
    "guided-diffusion": {
        "diffusion_steps": 1000,
        "noise_schedule": "linear",
        "rescale_timesteps": False,
        "use_new_attention_order": False,
        "num_head_channels": 64,
    },
}
"""The flags by architecture, with the values of `cifar10_uncond_50M_500K.pt` and `256x256_diffusion_uncond.pt`."""
_HEADS = ("num_heads", "num_head_channels")
_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
"""Names of schedules there -> in diffusers."""
_LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "proj_out": "to_out.0",
    "op": "conv",
    "conv": "conv",
}
"""Names of layers within a block of theirs -> of diffusers: residual blocks, attention, downsampling, upsampling."""
_NAME = re.compile(r"((?:input_blocks\.\d+|output_blocks\.\d+|middle_block|time_embed|out)\.\d+)\.?(.*)\.(weight|bias)")
"""Place of a block, layer within it ("" if the block is a layer), and kind of tensor."""
_RESIZING = re.compile(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight")
"""A layer that enlarges: a convolution, or the first layer of a residual block."""


def load_openai(
    config: DenoiserConfig, location: str, sigma: float, image_shape: Shape, who: str, remedy: str
) -> tuple[OneShotDenoiser, list[str]]:
    """Load an unconditional diffusion model of pixels that predicts the noise, for one noise level.

    Args:
        config: its architecture is a key of `FLAGS`, and its arguments are flags.
        location: path or s3:// URI of the file.
        sigma: noise standard deviation, pixel units.
        image_shape: (C, h, w) of the sub-image as laid out.
        who: the denoiser, for errors.
        remedy: advice in the message if there is no such file.

    Returns:
        The denoiser, and warnings that the user may ignore.

    Raises:
        ClassifierError: diffusers is not installed; an unknown or invalid flag; the file cannot be read, or holds
            another network; the model does not fit the sub-image; or its schedule has no such noise.
    """
    library, where = need_diffusers(who), f"{who}: {location}"
    flags = _checked(config, who)
    tensors, _ = load_checkpoint(location, config.entry, remedy)
    network, settings = as_diffusers(tensors, flags, image_shape, where)
    steps = int(str(flags["diffusion_steps"]))
    scheduler = library.DDPMScheduler(
        num_train_timesteps=steps,
        beta_schedule=_SCHEDULES[str(flags["noise_schedule"])],
        beta_start=0.1 / steps,  # of the linear schedule: the same noise at its end for any number of steps
        beta_end=20 / steps,
    )
    timestep, level, warnings = matching_timestep(scheduler.betas, sigma, where)
    given = timestep * 1000 / steps if flags["rescale_timesteps"] else timestep
    return OneShotDenoiser(network, given, level, "epsilon", {**settings, **flags}), warnings


def as_diffusers(
    tensors: Mapping[str, Tensor], flags: Mapping[str, JsonValue], image_shape: Shape, where: str
) -> tuple[nn.Module, dict[str, Any]]:
    """The UNet2DModel that computes what their `UNetModel` with these tensors does, and its settings.

    Args:
        tensors: the state_dict of a `UNetModel`.
        flags: all flags, see `FLAGS`.
        image_shape: (C, h, w) of the sub-image as laid out.
        where: the denoiser and its file, for errors.

    Raises:
        ClassifierError: the tensors are of another network, of one that diffusers does not have, or of one that does
            not fit the sub-image.
    """
    with library_errors("diffusers", where):
        try:
            settings = _settings(tensors)
        except KeyError as error:
            raise ClassifierError(f"has no {error}: it is no UNetModel of {' or '.join(FLAGS)}; name one") from error
        check_network(settings, image_shape)
        network: nn.Module = need_diffusers(where).UNet2DModel(**settings)
        _set_heads(network, flags)
        renamed = dict(_renamed(tensors, _places(settings), flags))
    load_tensors(network, renamed, where)
    return network, settings


def _checked(config: DenoiserConfig, who: str) -> dict[str, JsonValue]:
    """The flags: the architecture's, replaced by the arguments of the config."""
    defaults = FLAGS[config.architecture]
    kinds: dict[str, JsonValue] = {**defaults, **dict.fromkeys(_HEADS, 1)}
    for name, value in config.arguments.items():
        if name not in kinds:
            raise ClassifierError(f"{who}: unknown argument {name!r}; allowed: {', '.join(kinds)}")
        if name == "noise_schedule":
            rule, valid = f"one of {', '.join(_SCHEDULES)}", value in [*_SCHEDULES]
        elif isinstance(kinds[name], bool):
            rule, valid = "true or false", isinstance(value, bool)
        else:
            rule = "a whole number >= 1"
            valid = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not valid:
            raise ClassifierError(f"{who}: argument {name} must be {rule}, got {value!r}")
    if all(name in config.arguments for name in _HEADS):
        raise ClassifierError(f"{who}: num_heads and num_head_channels exclude each other; remove one")
    others = any(name in config.arguments for name in _HEADS)
    kept = {name: value for name, value in defaults.items() if not (others and name in _HEADS)}
    return {**kept, **config.arguments}


def _settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of UNet2DModel; KeyError if there is no tensor of a name."""
    outputs = {name.split(".")[1] for name in tensors if name.startswith("output_blocks.")}
    resizing = [layer for name in tensors if (layer := _RESIZING.fullmatch(name))]  # one a level, except for the first
    levels = 1 + len(resizing)
    blocks = len(outputs) // levels
    first = [f"input_blocks.{1 + level * blocks}" for level in range(levels)]
    widths = [len(tensors[f"{block}.0.out_layers.3.weight"]) for block in first]
    attends = [f"{block}.1.qkv.weight" in tensors for block in first]
    resnets = any(layer[1] == "in_layers.0" for layer in resizing)
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resnets else ("DownBlock2D", "UpBlock2D")
    embedding, embedded = tensors["time_embed.0.weight"].shape
    scale_shift = len(tensors["middle_block.0.emb_layers.1.weight"]) == 2 * widths[-1]
    if widths[0] != embedded:
        raise ClassifierError(
            f"its time embedding has {embedded} channels and its first level {widths[0]}; diffusers, which computes "
            "the network, has one number for both: choose another model"
        )
    return {
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": len(tensors["out.2.weight"]),
        "time_embedding_dim": embedding,
        "block_out_channels": widths,
        "layers_per_block": blocks - 1,
        "down_block_types": ["AttnDownBlock2D" if there else plain[0] for there in attends],
        "up_block_types": ["AttnUpBlock2D" if there else plain[1] for there in reversed(attends)],
        "downsample_type": "resnet" if resnets else "conv",
        "upsample_type": "resnet" if resnets else "conv",
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "attention_head_dim": None,  # one head: see `_set_heads`
        "norm_num_groups": 32,
        "attn_norm_num_groups": 32,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "downsample_padding": 1,
        "num_class_embeds": len(tensors["label_emb.weight"]) if "label_emb.weight" in tensors else None,
    }


def _places(settings: Mapping[str, Any]) -> dict[str, str]:
    """Names of blocks there -> in the UNet2DModel of these settings.

    They number the blocks of all levels in one row. The last input block of a level reduces the size, and the last
    layer of its last output block enlarges it.
    """
    found = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "middle_block.0": "mid_block.resnets.0",
        "middle_block.1": "mid_block.attentions.0",
        "middle_block.2": "mid_block.resnets.1",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }
    layers = settings["layers_per_block"]
    for level, kind in enumerate(settings["up_block_types"]):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        for layer in range(layers + 1):
            number = level * (layers + 1) + layer
            block = f"input_blocks.{1 + number}"
            found[f"{block}.0"] = f"{down}.resnets.{layer}" if layer < layers else f"{down}.downsamplers.0"
            found[f"{block}.1"] = f"{down}.attentions.{layer}"
            block = f"output_blocks.{number}"
            found[f"{block}.0"] = f"{up}.resnets.{layer}"
            found[f"{block}.1"] = f"{up}.attentions.{layer}" if kind == "AttnUpBlock2D" else f"{up}.upsamplers.0"
            found[f"{block}.2"] = f"{up}.upsamplers.0"
    return found


def _heads(channels: int, flags: Mapping[str, JsonValue]) -> int:
    """Attention heads of a block of so many channels."""
    name = next(name for name in _HEADS if name in flags)
    number = int(str(flags[name]))
    if channels % number:
        raise ClassifierError(f"{name} must divide the {channels} channels of its attention, got {number}")
    return number if name == "num_heads" else channels // number


def _set_heads(network: nn.Module, flags: Mapping[str, JsonValue]) -> None:
    """Set the heads of each attention block: UNet2DModel's own setting is one width of heads for all blocks."""
    from diffusers.models.attention_processor import Attention

    for part in network.modules():
        if isinstance(part, Attention):
            part.heads = _heads(part.inner_dim, flags)


def _renamed(
    tensors: Mapping[str, Tensor], places: Mapping[str, str], flags: Mapping[str, JsonValue]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors under UNet2DModel's names; unknown ones under their own.

    A row of their `qkv` is numbered by (head, which of query, key and value, channel), in the new order by (which,
    head, channel); diffusers has a matrix for each of the three, with rows by (head, channel).
    """
    for name, tensor in tensors.items():
        place, layer, kind = found.groups() if (found := _NAME.fullmatch(name)) else ("", "", "")
        if place not in places:
            yield name, tensor
        elif layer == "qkv":
            heads = _heads(len(tensor) // 3, flags)
            rows = torch.arange(len(tensor)).view(3, -1)
            if not flags["use_new_attention_order"]:
                rows = rows.view(heads, 3, -1).transpose(0, 1).flatten(1)
            for which, own in zip("qkv", rows, strict=True):
                yield f"{places[place]}.to_{which}.{kind}", tensor[own].squeeze(-1)
        elif layer == "proj_out":
            yield f"{places[place]}.{_LAYERS[layer]}.{kind}", tensor.squeeze(-1)
        else:
            yield ".".join(part for part in (places[place], _LAYERS.get(layer, layer), kind) if part), tensor
