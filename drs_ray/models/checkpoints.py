"""Checkpoints of base classifiers: safetensors with metadata, and pickles, which are read without running code."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeGuard

import safetensors.torch
import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from torch import Tensor, nn

from drs_ray.errors import ClassifierError, sub_images_text
from drs_ray.models.files import read_file, write_file

PICKLED = (".pt", ".pth", ".ckpt", ".bin", ".pt.tar", ".pth.tar")
"""Suffixes of files that torch.save writes."""
ENTRIES = ("state_dict", "model_state_dict", "model", "net", "best", "ema")
"""Usual keys of state_dicts in a file, in order of preference."""
_BROKEN = (
    *(RuntimeError, EOFError, OSError, AssertionError),
    *(ValueError, KeyError, AttributeError, TypeError, IndexError),  # raised inside torch for broken pickles
)
_STARTS = (b"PK", b"\x80")  # a zip archive, or a pickle
METADATA_KEY = "drs_ray"
"""The only key in the safetensors header, with a JSON text: the order of several keys would not be deterministic."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """The settings for which a checkpoint was trained.

    sub_images: one, or all that the network is for; image_shape: (C, h, w) of a sub-image as laid out for the network;
    sigma: in pixel units, 0 if it was trained without noise; num_classes: 0 for a denoiser; arguments: of the
    architecture; pixels: the config's section, {} if it has none; training: a free text about the training; classes:
    names in order of class number, () if unknown (files of earlier versions) or of a denoiser.
    """

    architecture: str
    partition: str
    layout: str
    sub_images: tuple[int, ...]
    sigma: float
    num_classes: int
    image_shape: tuple[int, int, int]
    dataset: str
    training: str = ""
    arguments: Mapping[str, JsonValue] = field(default_factory=dict)
    pixels: Mapping[str, JsonValue] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    @property
    def record(self) -> dict[str, JsonValue]:
        """As JSON data; that of a network for one sub-image is what earlier versions read and wrote."""
        data: dict[str, JsonValue] = json.loads(json.dumps(asdict(self)))
        if len(self.sub_images) == 1:
            del data["sub_images"]
            data["sub_image"] = self.sub_images[0]
        return data


def save_checkpoint(path: str | Path, module: nn.Module, metadata: CheckpointMetadata) -> None:
    """Write the module's state_dict and metadata as safetensors, to a local path or an s3:// URI: whole or not at all.

    The file's bytes depend only on weights and metadata. Directories are created.

    Raises:
        ClassifierError: the suffix is not .safetensors, or the file cannot be written.
    """
    location = str(path)
    if not location.endswith(".safetensors"):
        raise ClassifierError(f"checkpoint {location}: drs-ray writes .safetensors only; change the suffix")
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in module.state_dict().items()}
    data = safetensors.torch.save(tensors, {METADATA_KEY: json.dumps(metadata.record, sort_keys=True)})
    write_file(location, data)


def load_checkpoint(
    path: str | Path, entry: str | None = None, remedy: str = "check the path"
) -> tuple[dict[str, Tensor], CheckpointMetadata | None]:
    """Read a checkpoint onto the CPU.

    Args:
        path: .safetensors or one of `PICKLED`; a local path or an s3:// URI. A pickled file holds a state_dict, or a
            dict with one under one of `ENTRIES`. It is read with `weights_only`, which refuses a pickle that would run
            code. Other content of the dict (an optimizer's state, epochs, settings) is ignored.
        entry: the key of the state_dict (`a.b`: b within a), or the prefix of the weights' names; None: the first of
            `ENTRIES` in the file, or the file's whole state_dict.
        remedy: advice in the message if there is no such file.

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
    if not location.endswith((".safetensors", *PICKLED)):
        raise ClassifierError(
            f"checkpoint {location}: must end in .safetensors, {', '.join(PICKLED[:-1])} or {PICKLED[-1]}, got "
            f"{suffix!r}"
        )
    data = read_file(location, remedy)
    if suffix != ".safetensors":
        return _from_pickle(location, data, entry), None
    tensors, metadata = parse_checkpoint(location, data)
    return (tensors if entry is None else _entry(location, tensors, entry)), metadata


def parse_checkpoint(location: str, data: bytes) -> tuple[dict[str, Tensor], CheckpointMetadata | None]:
    """Tensors by name, and metadata if drs-ray wrote them, of a safetensors file's bytes; `location` is for messages.

    Raises:
        ClassifierError: the bytes are no safetensors file, or the metadata are broken.
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


def check_metadata(source: str, metadata: CheckpointMetadata, expected: Mapping[str, object]) -> None:
    """Compare the metadata of a checkpoint with some of a run's, by name; `sub_image` is the run's sub-image.

    Raises:
        ClassifierError: naming the first that differs.
    """
    for key, value in expected.items():
        if key == "sub_image":
            if value not in metadata.sub_images:
                raise ClassifierError(
                    f"checkpoint {source}: trained for {sub_images_text(metadata.sub_images)}, the run needs {value}; "
                    "name the checkpoint of this sub-image, or train one"
                )
            continue
        got = getattr(metadata, key)
        if key in ("arguments", "pixels"):
            got, value = json.dumps(dict(got), sort_keys=True), json.dumps(value, sort_keys=True)
        if got != value:
            raise ClassifierError(
                f"checkpoint {source}: trained for {key.replace('_', '-')} {got}, the run needs {value}; "
                "name the checkpoint of this setting, or train one"
            )


def metadata_warnings(
    source: str, metadata: CheckpointMetadata, sub_image: int, sigma: float, dataset: str | None = None
) -> Iterator[str]:
    """Warnings about another noise level (pixel units) or data set than the run's, which make no certificate wrong."""
    if not math.isclose(metadata.sigma, sigma, rel_tol=1e-6):  # the config rounds sigma to float32
        yield (
            f"sub-image {sub_image}: {source} was trained with sigma {metadata.sigma:.9g}, the run uses "
            f"{sigma:.9g}; the certificates hold, but radii may be smaller than they could be"
        )
    if dataset is not None and metadata.dataset != dataset:
        yield f"sub-image {sub_image}: {source} was trained on {metadata.dataset}, the run uses {dataset}"


def parse_safetensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file's bytes. Raises SafetensorError, ValueError or KeyError."""
    tensors = safetensors.torch.load(data)
    # safetensors reads metadata only from files; the format is a little-endian length, then a JSON header.
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return tensors, header.get("__metadata__", {})


def _parse_metadata(text: str) -> CheckpointMetadata:
    raw = json.loads(text)
    channels, height, width = (int(v) for v in raw["image_shape"])
    sigma = float(raw["sigma"])
    sub_images = tuple(int(k) for k in (raw["sub_images"] if "sub_images" in raw else [raw["sub_image"]]))
    if not math.isfinite(sigma) or not sub_images:
        raise ValueError(f"sigma {sigma}, sub-images {sub_images}")
    return CheckpointMetadata(
        architecture=str(raw["architecture"]),
        partition=str(raw["partition"]),
        layout=str(raw["layout"]),
        sub_images=sub_images,
        sigma=sigma,
        num_classes=int(raw["num_classes"]),
        image_shape=(channels, height, width),
        dataset=str(raw["dataset"]),
        training=str(raw.get("training", "")),
        arguments=dict(raw.get("arguments", {})),
        pixels=dict(raw.get("pixels", {})),
        classes=tuple(str(name) for name in raw.get("classes", ())),
    )


class _Unread:
    """Replaces objects other than tensors in a pickle: keeps no content, and calls nothing."""

    def __new__(cls, *_: object) -> _Unread:
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        pass


def _unread_dict(*_: object) -> dict[object, object]:
    """Replaces a kind of dict; its items are plain data, or replaced too."""
    return {}


class _UnreadDict:
    """The same for pickles that create an object instead of calling a function."""

    def __new__(cls, *_: object) -> dict[object, object]:  # type: ignore[misc]
        return {}


_SETTINGS = (
    *("numpy.dtype", "numpy.ndarray"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *("argparse.Namespace", "types.SimpleNamespace"),
    *(f"{module}.{kind}Path" for module in ("pathlib", "pathlib._local") for kind in ("Posix", "Windows", "PurePosix")),
    *("builtins.int", "builtins.float", "builtins.list", "builtins.dict"),  # default factories of a defaultdict
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",  # a key of its callbacks, before 1.5
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
)
_SETTINGS_DICTS = (
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "lightning_fabric.utilities.data.AttributeDict",
    "lightning.fabric.utilities.data.AttributeDict",
)
"""Names that are replaced in a pickle, so that they are neither imported nor called: numpy numbers, settings, paths."""


def _from_pickle(location: str, data: bytes, entry: str | None) -> dict[str, Tensor]:
    stand_ins: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        *((_Unread, name) for name in _SETTINGS),
        *((_UnreadDict, name) for name in _SETTINGS_DICTS),
        (_unread_dict, "collections.defaultdict"),
    ]
    try:
        with torch.serialization.safe_globals(stand_ins), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on unusual pickles; here they load or are refused
            loaded: object = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, *_BROKEN) as error:
        if isinstance(error, pickle.UnpicklingError) and (data.startswith(_STARTS) or "GLOBAL" in str(error)):
            raise ClassifierError(
                f"checkpoint {location}: refused, {_what_else(error)}; save the state_dict alone as .safetensors where "
                "you trust the file"
            ) from error
        if "TorchScript" in str(error):
            raise ClassifierError(
                f"checkpoint {location}: is a TorchScript program, not weights; export the module with torch.export "
                "(architecture: torch.export), or load it in a factory of your own where you trust the file"
            ) from error
        why = _first_sentence(error) if data.startswith(_STARTS) else f"it begins with {data[:12]!r}"
        raise ClassifierError(
            f"checkpoint {location}: not a torch checkpoint, or truncated ({why}); copy it again"
        ) from error
    if entry is not None:
        return _entry(location, loaded, entry)
    loaded = _usual(loaded)
    if not _is_state_dict(loaded):
        raise ClassifierError(
            f"checkpoint {location}: must hold a state_dict (names to tensors), or a dict with one under "
            f"{', '.join(map(repr, ENTRIES))}, got {_kind(loaded)}; name its key in classifiers.<k>.entry, or save "
            "module.state_dict()"
        )
    return dict(loaded)


def _usual(loaded: object) -> object:
    """The state_dict under the first of `ENTRIES`, or else `loaded` itself."""
    if not isinstance(loaded, dict):
        return loaded
    return next((loaded[key] for key in ENTRIES if _is_state_dict(loaded.get(key))), loaded)


def _entry(location: str, loaded: object, entry: str) -> dict[str, Tensor]:
    """The state_dict of an entry: the dict under this key, or the tensors whose names begin with it."""
    for whole in (loaded, _usual(loaded)):
        found = _named(whole, entry)
        if _is_state_dict(found):
            return dict(found)
    raise ClassifierError(
        f"checkpoint {location}: has no state_dict (names to tensors) at the entry {entry!r}, it is {_kind(loaded)}; "
        "correct classifiers.<k>.entry"
    )


def _named(whole: object, entry: str) -> object:
    if isinstance(whole, dict) and entry in whole:
        return whole[entry]
    keys = entry.split(".")
    for position, key in enumerate(keys):
        if _is_state_dict(whole):  # the rest is a prefix
            prefix = ".".join(keys[position:]) + "."
            return {name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)}
        whole = whole.get(key) if isinstance(whole, dict) else None
    return whole


def _is_state_dict(found: object) -> TypeGuard[dict[str, Tensor]]:
    return (
        isinstance(found, dict)
        and bool(found)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items())
    )


def _what_else(error: pickle.UnpicklingError) -> str:
    """Name the object that is no tensor: `builtins.eval` is a reason to worry, a class of settings is not."""
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
