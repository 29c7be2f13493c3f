"""From a config's classifier to a checked `BaseClassifier`: build or import the module, load and test it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue
from torch import nn

from drs_ray.config import DenoiserConfig, PixelsConfig
from drs_ray.config.class_names import first_difference
from drs_ray.errors import ClassifierError
from drs_ray.models.building import PROGRAM, TRANSFORMERS, build_module, is_factory
from drs_ray.models.check import check_classifier
from drs_ray.models.checkpoints import CheckpointMetadata, check_metadata, load_checkpoint, metadata_warnings
from drs_ray.models.denoisers import load_denoiser
from drs_ray.models.ensemble import Ensemble
from drs_ray.models.pixel_convention import check_channels, with_pixels
from drs_ray.models.programs import load_program
from drs_ray.models.tensors import identity_of, load_tensors, module_digest
from drs_ray.models.timm_directory import is_timm_directory, read_timm_directory
from drs_ray.models.transformers_directory import load_transformers


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
    denoised: bool = False,
) -> BaseClassifier:
    """Build the base classifier of one sub-image, load its checkpoints, and check it.

    The result is denoiser, pixels and network in this order, without those that are None. With members, each of them is
    pixels and network, and their mean stands behind the one denoiser.

    Args:
        architecture: a built-in name, `torchvision:<name>`, `timm:<name>`, `transformers`, `torch.export`, or the
            user's factory as `module:function`.
        arguments: keyword arguments of the architecture or the function.
        checkpoint: path or s3:// URI of a file, or of a directory of timm or transformers; None only with a factory.
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
        denoised: whether another denoiser will stand before it. Behind a denoiser a checkpoint that was trained without
            noise is as good as any, and in a layout of full size also one of whole images.

    Raises:
        ClassifierError: the classifier cannot be built or loaded, or does not fit. Another training sigma or data set
            gives only a warning.
    """
    check_channels(pixels, image_shape[0], sub_image)
    if architecture in (PROGRAM, TRANSFORMERS) and arguments:
        raise ClassifierError(f"sub-image {sub_image}: {architecture} takes no arguments, got {dict(arguments)}")
    warnings: list[str] = []
    denoised = denoised or denoiser is not None

    def network(checkpoint: str | None, key: str) -> nn.Module:
        correct = f"correct classifiers.{sub_image}.{key}"
        if architecture == PROGRAM:
            program = load_program(_needed(checkpoint, architecture, sub_image), correct)
            return with_pixels(program, pixels, image_shape[0])
        if architecture == TRANSFORMERS:
            place = _needed(checkpoint, architecture, sub_image)
            found, further = load_transformers(place, image_shape, num_classes, classes, pixels, sub_image)
            warnings.extend(further)
            return found
        if checkpoint is not None and is_timm_directory(architecture, checkpoint):
            directory = read_timm_directory(
                architecture, checkpoint, arguments, image_shape, num_classes, classes, pixels, sub_image
            )
            module = build_module(architecture, directory.arguments, image_shape, num_classes, directory.pixels)
            tensors, metadata = load_checkpoint(directory.weights, entry, correct)
            if metadata is not None:
                raise ClassifierError(
                    f"checkpoint {directory.weights}: written by drs-ray; name this file, not its directory, in "
                    f"classifiers.{sub_image}.{key}"
                )
            load_tensors(module, tensors, directory.weights, directory.pixels)
            module.register_buffer("identity", identity_of(directory.decided), persistent=False)
            warnings.extend(directory.warnings)
            return module
        module = build_module(architecture, arguments, image_shape, num_classes, pixels)
        if checkpoint is not None or not is_factory(architecture):
            source = _needed(checkpoint, architecture, sub_image)
            trainable = source.endswith(".safetensors")
            tensors, metadata = load_checkpoint(
                source, entry, f"{correct}, or train it with `drs-ray train`" if trainable else correct
            )
            if metadata is not None:
                _check_classes(source, metadata, classes)
                whole = denoised and layout != "packed" and metadata.partition == "none"
                cut = {"sub_image": sub_image, "partition": partition, "layout": layout}
                expected = {
                    **({} if whole else cut),
                    "architecture": architecture,
                    "arguments": dict(arguments),
                    "pixels": {} if pixels is None else pixels.record,
                    "num_classes": num_classes,
                    "image_shape": image_shape,
                }
                check_metadata(source, metadata, expected)
                expected_sigma = 0.0 if denoised and metadata.sigma == 0 else sigma
                warnings.extend(metadata_warnings(source, metadata, sub_image, expected_sigma, dataset))
            kept = load_tensors(module, tensors, source, pixels)
            warnings.extend(f"sub-image {sub_image}: {text}" for text in kept)
        return module

    module = network(checkpoint, "checkpoint")
    if members:
        module = ensemble = Ensemble([module, *(network(member, "members") for member in members)])
        if len(list(ensemble.parameters())) < sum(len(list(member.parameters())) for member in ensemble.members):
            raise ClassifierError(
                f"sub-image {sub_image}: {architecture} returns networks that share weights, so that all members would "
                "be one; let each call make a new network"
            )
    if denoiser is not None:
        before, further = load_denoiser(denoiser, sigma, image_shape, sub_image, partition, layout)
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


def _check_classes(source: str, metadata: CheckpointMetadata, classes: Sequence[str] | None) -> None:
    difference = first_difference(metadata.classes, classes)
    if difference is not None:
        raise ClassifierError(
            f"checkpoint {source}: trained for other classes than the run's: {difference}; name the checkpoint's in "
            "their order in dataset.classes (class directories have these names; of a parquet data set, where it is "
            "packed), or another checkpoint"
        )
