"""From a config's classifier to a checked `BaseClassifier`: build or import the module, load and test it."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from torch import nn

from drs_ray.config import DenoiserConfig, PixelsConfig
from drs_ray.config.class_names import first_difference
from drs_ray.errors import ClassifierError
from drs_ray.models.building import PROGRAM, build_module, is_factory
from drs_ray.models.check import check_classifier
from drs_ray.models.checkpoints import CheckpointMetadata, load_checkpoint
from drs_ray.models.denoisers import load_denoiser
from drs_ray.models.ensemble import Ensemble
from drs_ray.models.pixel_convention import check_channels, with_pixels
from drs_ray.models.programs import load_program
from drs_ray.models.tensors import load_tensors, module_digest


@dataclass(frozen=True)
class BaseClassifier:
    """A base classifier ready to vote: on the CPU, in eval mode, without gradients.

    digest: sha256 (hex) of all parameters and buffers; warnings: warnings that the user may ignore; probe: its answers
    to fixed inputs (`check_classifier`), to detect changed code with the same weights.
    """

    module: nn.Module
    digest: str
    warnings: tuple[str, ...]
    probe: tuple[float, ...]


def load_classifier(
    *,
    architecture: str,
    arguments: Mapping[str, JsonValue],
    checkpoint: str | None,
    sub_image: int,
    partition: str,
    layout: str,
    sigma: float,
    image_shape: tuple[int, int, int],
    num_classes: int,
    dataset: str | None = None,
    classes: Sequence[str] | None = None,
    pixels: PixelsConfig | None = None,
    denoiser: DenoiserConfig | None = None,
    entry: str | None = None,
    members: Sequence[str] = (),
) -> BaseClassifier:
    """Build the base classifier of one sub-image, load its checkpoints, and check it.

    The result is denoiser, pixels and network in this order, without those that are None. With members, each of them is
    pixels and network, and their mean stands behind the one denoiser.

    Args:
        architecture: a built-in name, `torchvision:<name>`, `timm:<name>`, `torch.export`, or the user's factory as
            `module:function`.
        arguments: keyword arguments of the architecture or the function.
        checkpoint: path or s3:// URI; None only with a factory.
        sub_image: index of the sub-image, 0 .. K - 1.
        partition: label of the partition.
        layout: name of the layout.
        sigma: noise level of the run, in pixel units.
        image_shape: (C, h, w) of the sub-image as laid out.
        num_classes: number of classes of the data set.
        dataset: name of the data set, to warn if the classifier was trained on another one.
        classes: names of its classes in order of class number, or None; a checkpoint with other names is refused.
        pixels: the pixel convention of the architecture.
        denoiser: a denoiser of this sub-image, before pixels and network.
        entry: position of the weights in the checkpoint, see `load_checkpoint`.
        members: further checkpoints, each as `checkpoint`, whose logits are averaged with those of the first.

    Raises:
        ClassifierError: the classifier cannot be built or loaded, or does not fit. Another training sigma or data set
            gives only a warning.
    """
    check_channels(pixels, image_shape[0], sub_image)
    expected = {
        "sub_image": sub_image,
        "partition": partition,
        "layout": layout,
        "architecture": architecture,
        "arguments": dict(arguments),
        "pixels": {} if pixels is None else pixels.record,
        "num_classes": num_classes,
        "image_shape": image_shape,
    }
    warnings: list[str] = []

    def network(checkpoint: str | None, key: str) -> nn.Module:
        correct = f"correct classifiers.{sub_image}.{key}"
        if architecture == PROGRAM:
            if arguments:
                raise ClassifierError(f"sub-image {sub_image}: {PROGRAM} takes no arguments, got {dict(arguments)}")
            program = load_program(_needed(checkpoint, architecture, sub_image), correct)
            return with_pixels(program, pixels, image_shape[0])
        module = build_module(architecture, arguments, image_shape, num_classes, pixels)
        if checkpoint is not None or not is_factory(architecture):
            source = _needed(checkpoint, architecture, sub_image)
            trainable = source.endswith(".safetensors")
            tensors, metadata = load_checkpoint(
                source, entry, f"{correct}, or train it with `drs-ray train`" if trainable else correct
            )
            if metadata is not None:
                _check_classes(source, metadata, classes)
                _check_metadata(source, metadata, expected)
                warnings.extend(_warnings(source, metadata, sub_image, sigma, dataset))
            load_tensors(module, tensors, source, pixels)
        return module

    module = network(checkpoint, "checkpoint")
    if members:
        module = Ensemble([module, *(network(member, "members") for member in members)])
    if denoiser is not None:
        before, further = load_denoiser(denoiser, sigma, image_shape, sub_image)
        warnings.extend(further)
        module = nn.Sequential(OrderedDict([("denoiser", before), ("classifier", module)]))
    module.eval()
    probe = check_classifier(module, image_shape, num_classes, sub_image)  # lazy layers get their shape here
    module.requires_grad_(False)
    return BaseClassifier(module, module_digest(module), tuple(warnings), probe)


def _needed(checkpoint: str | None, architecture: str, sub_image: int) -> str:
    if checkpoint is None:
        raise ClassifierError(
            f"sub-image {sub_image}: classifier {architecture} needs a checkpoint; "
            f"set classifiers.{sub_image}.checkpoint, or train one with `drs-ray train`"
        )
    return checkpoint


def _warnings(
    source: str, metadata: CheckpointMetadata, sub_image: int, sigma: float, dataset: str | None
) -> Iterator[str]:
    if not math.isclose(metadata.sigma, sigma, rel_tol=1e-6):  # the config rounds sigma to float32
        yield (
            f"sub-image {sub_image}: {source} was trained with sigma {metadata.sigma:.9g}, "
            f"the run uses {sigma:.9g}; the certificates hold, but radii may be smaller than they could be"
        )
    if dataset is not None and metadata.dataset != dataset:
        yield f"sub-image {sub_image}: {source} was trained on {metadata.dataset}, the run uses {dataset}"


def _check_classes(source: str, metadata: CheckpointMetadata, classes: Sequence[str] | None) -> None:
    difference = first_difference(metadata.classes, classes)
    if difference is not None:
        raise ClassifierError(
            f"checkpoint {source}: trained for other classes than the run's: {difference}; name the checkpoint's in "
            "their order in dataset.classes (class directories have these names; of a parquet data set, where it is "
            "packed), or another checkpoint"
        )


def _check_metadata(source: str, metadata: CheckpointMetadata, expected: Mapping[str, object]) -> None:
    for key, value in expected.items():
        got = getattr(metadata, key)
        if key in ("arguments", "pixels"):
            got, value = json.dumps(dict(got), sort_keys=True), json.dumps(value, sort_keys=True)
        if got != value:
            raise ClassifierError(
                f"checkpoint {source}: trained for {key.replace('_', '-')} {got}, the run needs {value}; "
                f"name the checkpoint of {'this sub-image' if key == 'sub_image' else 'this setting'}, or train one"
            )
