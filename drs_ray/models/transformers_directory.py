"""Image classifiers of Hugging Face's transformers, from a directory that `save_pretrained` has written.

The library builds the network and names its tensors, because files keep the names of earlier versions. It also reads
the processor's settings; what the processor does to pixels is measured on the processor itself, and done after the
noise. Code that the directory brings along is never run, and nothing is downloaded.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from drs_ray.config import PixelsConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.building import library_errors
from drs_ray.models.checkpoints import parse_checkpoint
from drs_ray.models.class_order import check_channels_of, check_number, check_order
from drs_ray.models.files import read_file, read_json
from drs_ray.models.pixel_convention import Pixels, Shape, agreed, with_pixels
from drs_ray.models.tensors import few, identity_of
from drs_ray.models.torch_state import plain_torch

CONFIG, PROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
_FOREIGN = (
    *("attribute_map", "auto_map", "fusion_config", "quantization_config"),
    *("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"),
)
"""Keys that make the library load code or kernels from elsewhere, or change the network in ways that are not read.

attribute_map gives settings other names, under which those keys would not be found.
"""
_SIDE = 1024
"""Height and width of the images on which a processor is measured: larger than what it crops."""


class ImageClassifier(nn.Module):
    """The logits of an image classifier of transformers, which returns an object with more than them."""

    identity: Tensor

    def __init__(self, network: nn.Module, decided: object) -> None:
        """`decided`: all settings that decide the function besides the weights."""
        super().__init__()
        self.network = network
        self.register_buffer("identity", identity_of(decided), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, h, w] -> logits [N, num_classes]."""
        logits: Tensor = self.network(pixel_values=x).logits
        return logits


def load_transformers(
    location: str,
    image_shape: Shape,
    num_classes: int,
    classes: Sequence[str] | None,
    pixels: PixelsConfig | None,
    sub_image: int,
) -> tuple[nn.Module, list[str]]:
    """Load an image classifier of transformers with its pixel convention.

    Args:
        location: directory or s3:// prefix with `config.json`, `model.safetensors` and `preprocessor_config.json`.
        image_shape: (C, h, w) of the sub-image as laid out.
        num_classes: number of classes of the data set.
        classes: names of its classes in order of class number, or None.
        pixels: the config's pixel convention; None: that of the directory (see `agreed`).
        sub_image: index of the sub-image.

    Returns:
        float32 [N, C, h, w] -> logits [N, num_classes], and warnings that the user may ignore.

    Raises:
        ClassifierError: transformers is not installed; files are missing, or hold something else than an image
            classifier; or it does not fit the data set.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ClassifierError(
            "classifier transformers: transformers is not installed; install drs-ray with the extra transformers (on "
            "every node)"
        ) from error
    location = location.rstrip("/")
    config = read_json(f"{location}/{CONFIG}")
    if config is None:
        raise ClassifierError(
            f"checkpoint {location}: no {CONFIG} in it; name a directory (or s3:// prefix) that `save_pretrained` of "
            "transformers has written"
        )
    processor = read_json(f"{location}/{PROCESSOR}")
    for file, settings in ((CONFIG, config), (PROCESSOR, processor)):
        _check_keys(f"checkpoint {location}/{file}", settings)
    kind = _kind(config, location)
    with library_errors("transformers", f"checkpoint {location}/{CONFIG}"):
        settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(config)
    found = _check_labels(settings, image_shape, num_classes, classes, f"checkpoint {location}/{CONFIG}")
    if processor is not None:
        said = _convention(_processor(config, processor, location), image_shape, location, sub_image)
        found += [] if pixels is not None and pixels.resize is not None else said[1]
        pixels = agreed(pixels, said[0], image_shape[0], f"checkpoint {location}/{PROCESSOR}", sub_image)
    elif pixels is None:
        raise ClassifierError(
            f"checkpoint {location}: no {PROCESSOR} in it, which says what is done to pixels; copy it there, or give "
            f"classifiers.{sub_image}.pixels"
        )
    network = _network(getattr(transformers, kind), settings, location)
    module = ImageClassifier(network, [config, processor, pixels.record])
    return with_pixels(module, pixels, image_shape[0]), [f"sub-image {sub_image}: {text}" for text in found]


def _check_keys(where: str, settings: object) -> None:
    """Refuse settings, at any depth, that need code or kernels from elsewhere."""
    if isinstance(settings, list):
        for value in settings:
            _check_keys(where, value)
    for key, value in settings.items() if isinstance(settings, Mapping) else ():
        if key in _FOREIGN and value:
            raise ClassifierError(
                f"{where}: has {key}, which needs code or kernels that are not part of transformers; only its own "
                "architectures are loaded, in their plain form: load the model in a factory of yours where you trust it"
            )
        _check_keys(where, value)


def _kind(config: Mapping[str, Any], location: str) -> str:
    """The name of the network's class, which must be an image classifier that transformers has."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as NAMES

    if ("architecture" in config and "pretrained_cfg" in config) or config.get("model_type") == "timm_wrapper":
        name = str(config.get("architecture", "<name>")).partition(".")[0]
        raise ClassifierError(f"checkpoint {location}: is a model of timm; write architecture: timm:{name}")
    known = NAMES.get(config.get("model_type", ""), ())
    kinds = (known,) if isinstance(known, str) else known
    named = config.get("architectures") or ["no architecture"]
    if named[0] not in kinds:
        raise ClassifierError(
            f"checkpoint {location}: {CONFIG} names {named[0]}, of the model type {config.get('model_type')!r}; an "
            "image classifier of transformers is needed, for example ViTForImageClassification"
        )
    return str(named[0])


def _check_labels(
    settings: Any, image_shape: Shape, num_classes: int, classes: Sequence[str] | None, where: str
) -> list[str]:
    """Check the numbers of classes and channels and the order of the classes; returns warnings."""
    check_number(where, settings.num_labels, num_classes)
    check_channels_of(where, getattr(settings, "num_channels", image_shape[0]), image_shape[0])
    names = [str(settings.id2label.get(number, f"LABEL_{number}")) for number in range(num_classes)]
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):  # what transformers writes where nobody named them
        return []
    return check_order(where, names, classes)


def _processor(config: Mapping[str, Any], processor: Mapping[str, Any], location: str) -> Any:
    """The library's processor, from nothing but the two JSON files."""
    from transformers import AutoImageProcessor

    with library_errors("transformers", f"checkpoint {location}/{PROCESSOR}"), tempfile.TemporaryDirectory() as place:
        for file, settings in ((CONFIG, config), (PROCESSOR, processor)):
            Path(place, file).write_text(json.dumps(settings), encoding="utf-8")
        return AutoImageProcessor.from_pretrained(place, local_files_only=True, trust_remote_code=False)


def _convention(processor: Any, image_shape: Shape, location: str, sub_image: int) -> tuple[PixelsConfig, list[str]]:
    """What a processor does to pixels, and a warning if it resizes or crops in another way than drs-ray.

    Raises:
        ClassifierError: it does more than to scale, normalise, resize and crop.
    """
    where, channels = f"checkpoint {location}/{PROCESSOR}", image_shape[0]
    with library_errors("transformers", where):
        said = _read(processor)
        agreed(None, said, channels, where, sub_image)
        # Resizing and cropping leave images of one colour as they are.
        colours = torch.tensor([[0, 255, (51 * channel + 51) % 256] for channel in range(channels)], dtype=torch.uint8)
        colours = colours.T.reshape(3, channels, 1, 1)
        seen = _processed(processor, colours.expand(-1, -1, _SIDE, _SIDE))
        expected = Pixels(said, channels)(colours / 255)
        if seen.shape[:2] != expected.shape[:2] or not torch.allclose(seen, expected.expand_as(seen), 1e-3, 1e-3):
            raise ClassifierError(
                f"{type(processor).__name__} does more to pixels than to scale, normalise, resize and crop them "
                f"({_others(processor)}); load the model in a factory of yours that does the same after the noise"
            )
        size = (seen.shape[2], seen.shape[3])
        if size not in ((_SIDE, _SIDE), image_shape[1:]):
            said = said.model_copy(update={"resize": size})
        image = torch.randint(0, 256, (1, *image_shape), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        theirs, ours = _processed(processor, image), Pixels(said, channels)(image / 255)
    step = said.range[1] / 255 / min(said.std or (1.0,))
    if theirs.shape == ours.shape and float((theirs - ours).abs().max()) < 1.01 * step:  # it may round to 8 bits
        return said, []
    height, width = image_shape[1:]
    done = "as it is" if said.resize is None else f"bilinearly resized to {said.resize[0]}x{said.resize[1]}"
    return said, [
        f"{where} resizes or crops {height}x{width} pixels in another way than drs-ray, which gives the network the "
        f"whole sub-image, {done}; the certificates hold, the accuracy may be lower"
    ]


def _read(processor: Any) -> PixelsConfig:
    """The settings that `pixels` has too."""
    white = 255 * processor.rescale_factor if getattr(processor, "do_rescale", False) else 255.0
    convention: dict[str, Any] = {"range": (0.0, float(f"{white:.9g}"))}  # 255 * (1 / 255) is not 1
    if getattr(processor, "do_normalize", False):
        convention |= {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}
    return PixelsConfig(**convention)


def _processed(processor: Any, images: Tensor) -> Tensor:
    """[N, C, h, w] of uint8 -> what the processor makes of it, float32."""
    done = processor(images=list(images), return_tensors="pt", input_data_format="channels_first")
    values: Tensor = done["pixel_values"]
    return values.float()


def _others(processor: Any) -> str:
    """The processor's options that are on and that no step of `pixels` stands for."""
    usual = ("do_rescale", "do_normalize", "do_resize", "do_center_crop", "do_convert_rgb")
    return few([name for name, value in processor.to_dict().items() if value is True and name not in usual])


def _network(kind: Any, settings: Any, location: str) -> nn.Module:
    """The network with all its weights, in float32."""
    weights = f"{location}/{WEIGHTS}"
    remedy = "save the model with `save_pretrained`, in one file; pickles and weights in several files are not read"
    data = read_file(weights, remedy)
    with library_errors("transformers", f"checkpoint {weights}"), plain_torch():
        tensors, _ = parse_checkpoint(weights, data)
        network, found = kind.from_pretrained(
            None,
            config=settings,
            state_dict=tensors,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    shapes = sorted(found["mismatched_keys"])
    named = {
        "missing": sorted(found["missing_keys"]),
        "unexpected": sorted(found["unexpected_keys"]),
        "of a wrong shape": [f"{name} {list(given)} instead of {list(needed)}" for name, given, needed in shapes],
    }
    if any(named.values()):
        text = "; ".join(f"{fault}: {few(names)}" for fault, names in named.items() if names)
        raise ClassifierError(
            f"checkpoint {weights}: its tensors are not those of the {kind.__name__} of {CONFIG} ({text}); save both "
            "again with `save_pretrained`"
        )
    trained: nn.Module = network
    return trained
