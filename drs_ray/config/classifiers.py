"""The base classifiers: their architectures and weights, their pixel conventions, and their noise."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, JsonValue, field_validator, model_validator

from drs_ray.config.base import Location, Section, Sigma


class PixelsConfig(Section):
    """The pixel convention of a classifier: steps after the noise, in the order of these keys."""

    resize: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None, description="[height, width] of the classifier's input: bilinear; null: the sub-image as laid out."
    )
    range: tuple[float, float] = Field(
        (0.0, 1.0), description="The classifier's values of black and white, for example [0, 255] or [-1, 1]."
    )
    mean: tuple[float, ...] | None = Field(None, description="To subtract: one number per channel, in that range.")
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="To divide by: one number per channel, in that range."
    )

    @field_validator("range")
    @classmethod
    def _black_is_below_white(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] >= value[1]:
            raise ValueError("must be [black, white] with black < white, for example [0, 255]")
        return value

    @property
    def record(self) -> dict[str, JsonValue]:
        """The section as JSON data, for a run's identity and the metadata of checkpoints."""
        return self.model_dump(mode="json", exclude_none=True)


DIRECTORY_FILES = (
    *("config.json", "preprocessor_config.json", "model.safetensors"),
    *("model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"),
    *("scheduler/scheduler_config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"),
)
"""Files that are read, if they exist, of a checkpoint that is a directory: of transformers, timm or diffusers."""


def _check_entry(entry: str | None, checkpoint: str | None) -> None:
    if entry is not None and checkpoint is None:
        raise ValueError("entry is a part of a checkpoint: name the checkpoint, or remove entry")


class DenoiserConfig(Section):
    """A denoiser before a base classifier (denoised smoothing). It sees only the noisy sub-image of its classifier."""

    architecture: str = Field(
        min_length=1,
        description="dncnn; diffusers, improved-diffusion, guided-diffusion: one step of a diffusion model; or your "
        "own factory as `module:function`, called with `image_shape`.",
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="Extra keyword arguments of the architecture or factory; of improved-diffusion and "
        "guided-diffusion: flags of their code (see docs/classifiers.md).",
    )
    checkpoint: Location | None = Field(
        None, description="As a classifier's; of diffusers a directory or s3:// prefix. Only a factory needs none."
    )
    entry: str | None = Field(None, min_length=1, description="As a classifier's.")

    @model_validator(mode="after")
    def _entry_of_a_checkpoint(self) -> Self:
        _check_entry(self.entry, self.checkpoint)
        return self


class ClassifierConfig(Section):
    """The base classifier of one sub-image and its noise level."""

    architecture: str = Field(
        min_length=1,
        description="A built-in name, `torchvision:<name>`, `timm:<name>`, `transformers`, `torch.export`, or your own "
        "factory as `module:function` (see docs/classifiers.md).",
    )
    arguments: dict[str, JsonValue] = Field(
        default_factory=dict, description="Extra keyword arguments of the architecture or factory."
    )
    checkpoint: Location | None = Field(
        None,
        description=".safetensors, .pt, .pth, .ckpt, .bin, .pt.tar, .pth.tar, or .pt2 (torch.export); of transformers "
        "and timm also a directory; a path or s3:// URI. Only a factory needs none. Sub-images that name the same one "
        "are trained as one network.",
    )
    entry: str | None = Field(
        None,
        min_length=1,
        description="Position of the weights in the checkpoint: the key of a state_dict (a.b: b within a), or the "
        "prefix of the names of the weights; null: the usual keys.",
    )
    members: tuple[Location, ...] = Field(
        (),
        description="Further checkpoints (paths or s3:// URIs) of an ensemble: networks of the same architecture; the "
        "logits of all are averaged.",
    )
    pixels: PixelsConfig | None = Field(
        None,
        description="The classifier's pixel convention; null: what a checkpoint of transformers or timm says of it, "
        "else [0, 1] plus noise, as laid out.",
    )
    denoiser: DenoiserConfig | None = Field(None, description="A denoiser before the classifier; null: none.")
    sigma: Sigma = Field(description="Noise standard deviation in pixel units ([0, 1]).")

    @model_validator(mode="after")
    def _normalised_once(self) -> Self:
        twice = {"mean", "std"} & self.arguments.keys() if self.pixels is not None else set()
        if twice and ":" not in self.architecture:
            raise ValueError(
                f"arguments has {' and '.join(sorted(twice))}: name all that is done to pixels under pixels"
            )
        return self

    @model_validator(mode="after")
    def _entry_of_a_checkpoint(self) -> Self:
        if self.entry is not None and self.architecture == "torch.export":
            raise ValueError("entry: a program of torch.export has none; remove it")
        if self.entry is not None and self.architecture == "transformers":
            raise ValueError("entry: a directory of transformers has none; remove it")
        _check_entry(self.entry, self.checkpoint)
        return self

    @model_validator(mode="after")
    def _members_are_further_checkpoints(self) -> Self:
        if self.members and self.checkpoint is None:
            raise ValueError("members are further checkpoints of an ensemble: name the first as checkpoint")
        every = (self.checkpoint, *self.members)
        twice = [member for number, member in enumerate(every) if member in every[:number]]
        if twice:
            raise ValueError(f"members must be other checkpoints, got {twice[0]} twice; remove one")
        return self

    @property
    def is_complete(self) -> bool:
        """Whether all weights come from checkpoints, none from the code of a factory."""
        return self.checkpoint is not None and (self.denoiser is None or self.denoiser.checkpoint is not None)


MUCH_NOISE = 4.0
"""A larger sigma leaves nothing of an image; it was probably not meant in pixel units."""


def sigma_warning(name: str, sigma: float) -> str | None:
    """A warning about a sigma that is allowed but probably a mistake, or None."""
    if sigma <= MUCH_NOISE:
        return None
    return (
        f"{name}: {sigma:g} is in pixel units, where black is 0 and white is 1: little is left of an image; if it was "
        f"meant in 8-bit steps, give {sigma:g}/255 = {sigma / 255:.4g}"
    )


def pixels_warning(name: str, pixels: PixelsConfig) -> str | None:
    """A warning about a mean outside the pixel range, or a std above twice its width; None if there is neither."""
    black, white = pixels.range
    odd = [("mean", value) for value in pixels.mean or () if not black <= value <= white]
    odd += [("std", value) for value in pixels.std or () if value > 2 * (white - black)]
    if not odd:
        return None
    key, value = odd[0]
    return (
        f"{name}.{key}: {value:g} does not fit {name}.range, where black is {black:g} and white is {white:g}; if it "
        f"was meant in 8-bit steps, set {name}.range: [0, 255]"
    )
