"""Directories of timm, as on Hugging Face's hub: `config.json` beside the weights, written by timm's `save_for_hf`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue, ValidationError

from drs_ray.config import PixelsConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.checkpoints import PICKLED
from drs_ray.models.class_order import check_channels_of, check_number, check_order
from drs_ray.models.files import is_there, read_json
from drs_ray.models.pixel_convention import Shape, agreed

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of weights, in order of preference."""


@dataclass(frozen=True)
class TimmDirectory:
    """What a directory says.

    weights: location of the file; arguments: of the network; pixels: its convention; decided: all that decides the
    function besides name and weights; warnings: that the user may ignore.
    """

    weights: str
    arguments: Mapping[str, JsonValue]
    pixels: PixelsConfig
    decided: object
    warnings: tuple[str, ...]


def is_timm_directory(architecture: str, checkpoint: str | None) -> bool:
    """Whether a checkpoint is a directory (or s3:// prefix) of timm, not a file of weights."""
    return (
        architecture.startswith("timm:")
        and checkpoint is not None
        and not checkpoint.endswith((".safetensors", ".pt2", *PICKLED))
    )


def read_timm_directory(
    architecture: str,
    location: str,
    arguments: Mapping[str, JsonValue],
    image_shape: Shape,
    num_classes: int,
    classes: Sequence[str] | None,
    pixels: PixelsConfig | None,
    sub_image: int,
) -> TimmDirectory:
    """Read `config.json` of a directory, and check that it fits the run.

    Args:
        architecture: `timm:<name>`, which must be the directory's.
        location: the directory or s3:// prefix.
        arguments: the config's, which come before the directory's.
        image_shape: (C, h, w) of the sub-image as laid out.
        num_classes: number of classes of the data set.
        classes: names of its classes in order of class number, or None.
        pixels: the config's pixel convention; None: the directory's (see `agreed`).
        sub_image: index of the sub-image.

    Raises:
        ClassifierError: there is no such file, it is not timm's, or it does not fit.
    """
    location = location.rstrip("/")
    where = f"checkpoint {location}/config.json"
    config = read_json(f"{location}/config.json")
    if config is None:
        raise ClassifierError(
            f"checkpoint {location}: no config.json in it; name a directory (or s3:// prefix) that `save_for_hf` "
            f"of timm has written, or a file that ends in .safetensors, {', '.join(PICKLED[:-1])} or {PICKLED[-1]}"
        )
    if "architecture" not in config:
        raise ClassifierError(
            f"{where}: not of timm, it names no architecture; for transformers' directories write "
            "architecture: transformers"
        )
    trained: Mapping[str, Any] = {**config, **config.get("pretrained_cfg", {})}  # earlier versions have one level
    name = str(config["architecture"]).partition(".")[0]
    if architecture != f"timm:{name}":
        raise ClassifierError(f"{where}: is a {name}, the run names {architecture}; write architecture: timm:{name}")
    own = dict(config.get("model_args") or {})
    check_number(where, own.pop("num_classes", config.get("num_classes", num_classes)), num_classes)
    size = trained.get("input_size") or image_shape
    check_channels_of(where, own.pop("in_chans", size[0]), image_shape[0])
    try:
        said = PixelsConfig(
            mean=trained.get("mean"),
            std=trained.get("std"),
            resize=None if tuple(size[1:]) == image_shape[1:] else size[1:],
        )
    except ValidationError as error:
        raise ClassifierError(f"{where}: input_size, mean or std are no numbers per channel; correct it") from error
    names = config.get("label_names") or trained.get("label_names") or ()
    return TimmDirectory(
        weights=f"{location}/{next((file for file in _WEIGHTS if is_there(f'{location}/{file}')), _WEIGHTS[0])}",
        arguments={**own, **arguments},
        pixels=agreed(pixels, said, image_shape[0], where, sub_image),
        decided=config,
        warnings=tuple(f"sub-image {sub_image}: {text}" for text in check_order(where, names, classes)),
    )
