"""Checkpoints of base classifiers: safetensors with metadata; pickles run no code."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from torch import Tensor, nn

from drs_ray.errors import ClassifierError
from drs_ray.models.files import read_file, write_file

METADATA_KEY = "drs_ray"
"""Our one key in the safetensors header: one JSON text, because the order of several keys is not deterministic."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a checkpoint was trained for.

    image_shape: (C, h, w) of the sub-image as laid out for the classifier; sigma: in pixel units; arguments: of the
    architecture; pixels: the config's section, {} if it has none; training: a free remark on how it was trained;
    classes: names in order of class number, () where they are not known (files of old).
    """

    architecture: str
    partition: str
    layout: str
    sub_image: int
    sigma: float
    num_classes: int
    image_shape: tuple[int, int, int]
    dataset: str
    training: str = ""
    arguments: Mapping[str, JsonValue] = field(default_factory=dict)
    pixels: Mapping[str, JsonValue] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


def save_checkpoint(path: str | Path, module: nn.Module, metadata: CheckpointMetadata) -> None:
    """Write the module's state_dict and metadata as safetensors, to a local path or an s3:// URI: whole or not at all.

    The file's bytes depend on weights and metadata alone. Directories are created.

    Raises:
        ClassifierError: for another suffix than .safetensors, or if the file cannot be written.
    """
    location = str(path)
    if not location.endswith(".safetensors"):
        raise ClassifierError(f"checkpoint {location}: drs-ray writes .safetensors only; change the suffix")
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in module.state_dict().items()}
    data = safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(asdict(metadata), sort_keys=True)})
    write_file(location, data)


def load_checkpoint(
    path: str | Path, remedy: str = "check the path"
) -> tuple[dict[str, Tensor], CheckpointMetadata | None]:
    """Read a checkpoint onto the CPU.

    Args:
        path: .safetensors, .pt, .pth or .pth.tar; a local path or an s3:// URI. The latter hold a state_dict, or a dict
            with one under `state_dict` or `model`, and are read with `weights_only`: a pickle that would run code is
            refused. What else is in the dict (an optimizer's state, epochs) is ignored.
        remedy: what to do if there is no such file.

    Returns:
        The tensors by name, and the metadata if drs-ray wrote the file.

    Raises:
        ClassifierError: naming the path and the remedy.
    """
    location = str(path)
    suffix = Path(location).suffix
    if suffix == ".pt2":
        raise ClassifierError(
            f"checkpoint {location}: is a program of torch.export, not weights; set architecture: torch.export"
        )
    if suffix not in (".safetensors", ".pt", ".pth") and not location.endswith(".pth.tar"):
        raise ClassifierError(f"checkpoint {location}: must end in .safetensors, .pt, .pth or .pth.tar, got {suffix!r}")
    data = read_file(location, remedy)
    if suffix == ".safetensors":
        return parse_checkpoint(location, data)
    return _from_pickle(location, data), None


def parse_checkpoint(location: str, data: bytes) -> tuple[dict[str, Tensor], CheckpointMetadata | None]:
    """Tensors by name, and metadata if drs-ray wrote them, of a safetensors file's bytes; `location` is for messages.

    Raises:
        ClassifierError: they are no such file, or the metadata are broken.
    """
    try:
        tensors, notes = parse_safetensors(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ClassifierError(
            f"checkpoint {location}: not a safetensors file, or truncated ({error}); copy or train it again"
        ) from error
    text = notes.get(METADATA_KEY)
    if text is None:
        return tensors, None
    try:
        return tensors, _parse_metadata(text)
    except (KeyError, TypeError, ValueError) as error:
        raise ClassifierError(
            f"checkpoint {location}: its drs-ray metadata cannot be read ({type(error).__name__}: {error}); "
            "train it again with this version of drs-ray"
        ) from error


def parse_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file's bytes. Raises SafetensorError, ValueError or KeyError."""
    tensors = safetensors.torch.load(data)
    # safetensors reads metadata from files only; the layout is a little-endian length, then a JSON header.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__", {})


def _parse_metadata(text: str) -> CheckpointMetadata:
    raw = json.loads(text)
    channels, height, width = (int(v) for v in raw["image_shape"])
    sigma = float(raw["sigma"])
    if not math.isfinite(sigma):
        raise ValueError(f"sigma {sigma}")
    return CheckpointMetadata(
        architecture=str(raw["architecture"]),
        partition=str(raw["partition"]),
        layout=str(raw["layout"]),
        sub_image=int(raw["sub_image"]),
        sigma=sigma,
        num_classes=int(raw["num_classes"]),
        image_shape=(channels, height, width),
        dataset=str(raw["dataset"]),
        training=str(raw.get("training", "")),
        arguments=dict(raw.get("arguments", {})),
        pixels=dict(raw.get("pixels", {})),
        classes=tuple(str(name) for name in raw.get("classes", ())),
    )


def _from_pickle(location: str, data: bytes) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on unusual pickles; here they load or are refused
            loaded: object = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ClassifierError(
            f"checkpoint {location}: refused, {_what_else(error)}; save the state_dict alone as .safetensors where you "
            "trust the file"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError) as error:
        if "TorchScript" in str(error):
            raise ClassifierError(
                f"checkpoint {location}: is a TorchScript program, not weights; export the module with torch.export "
                "(architecture: torch.export), or load it in a factory of your own where you trust the file"
            ) from error
        raise ClassifierError(
            f"checkpoint {location}: not a torch checkpoint, or truncated ({_first_sentence(error)}); copy it again"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if (
        not isinstance(loaded, dict)
        or not loaded
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items())
    ):
        raise ClassifierError(
            f"checkpoint {location}: must hold a state_dict (names to tensors), or a dict with one under 'state_dict' "
            f"or 'model', got {_kind(loaded)}; save module.state_dict()"
        )
    return dict(loaded)


def _what_else(error: pickle.UnpicklingError) -> str:
    """What torch names that is no tensor: `builtins.eval` is a reason to worry, numpy's scalars are not."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named is None:
        return "it holds more than tensors and could run code, or it is no checkpoint"
    return f"it holds more than tensors ({named[1]}) and could run code"


def _kind(loaded: object) -> str:
    if isinstance(loaded, dict):
        return "a dict with the keys " + ", ".join(repr(key) for key in list(loaded)[:5])
    return f"a {type(loaded).__name__}"


def _first_sentence(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(". ")[0][:200] if lines else type(error).__name__
