"""Loading a checkpoint's tensors into a module, and digests of a module's tensors."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from drs_ray.config import PixelsConfig
from drs_ray.errors import ClassifierError, counted


def load_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, pixels: PixelsConfig | None = None
) -> list[str]:
    """Load a state_dict into a module; a prefix that all names share (`module.`, `1.`, `network.`) is ignored.

    Normalisation tensors beside the network (`mu` and `sigma` beside `model.*`) are left out if `pixels` does the same
    normalisation, and refused otherwise. Buffers of the module with these names may be missing in the file, because the
    module's code has set them.

    Returns:
        A warning that names such buffers and their values; nothing without them.

    Raises:
        ClassifierError: naming `source` and a few tensors that are missing, unexpected or of a wrong shape.
    """
    own = module.state_dict()
    renamed, missing, unexpected = _matched(own, tensors)
    beside = {name: value for name, value in tensors.items() if _is_normalisation(name)}
    if unexpected and beside:
        network = _matched(own, {name: value for name, value in tensors.items() if name not in beside})
        if not network[1] and not network[2]:
            _check_normalisation(beside, pixels, source)
            renamed, missing, unexpected = network
    kept = {name: value for name, value in module.named_buffers() if name in missing and _is_normalisation(name)}
    kept = {name: value for name, value in kept.items() if value.numel() <= _MOST_CHANNELS}
    if kept:
        network = _matched({name: value for name, value in own.items() if name not in kept}, tensors)
        if not network[1] and not network[2]:
            renamed, missing, unexpected = network
    if missing or unexpected:
        raise ClassifierError(
            f"checkpoint {source}: its tensors are not those of the architecture (missing: {few(missing)}; "
            f"unexpected: {few(unexpected)}); name the architecture that it was trained with"
        )
    misshapen = {
        name: (tuple(renamed[name].shape), tuple(value.shape))
        for name, value in own.items()
        if name in renamed and renamed[name].shape != value.shape
    }
    if misshapen:
        shapes = [f"{name} {list(given)} instead of {list(needed)}" for name, (given, needed) in misshapen.items()]
        raise ClassifierError(
            f"checkpoint {source}: its tensors do not have the architecture's shapes ({few(shapes)}); "
            + _likely_cause(list(misshapen.values()))
        )
    module.load_state_dict(renamed, strict=False)
    if not kept:
        return []
    values = ", ".join(f"{name} = {_numbers(value)}" for name, value in sorted(kept.items()))
    return [f"{source} has no {' and '.join(sorted(kept))}; the values of the network's code are used: {values}"]


def _is_normalisation(name: str) -> bool:
    return name.rpartition(".")[2] in _NORMALISATION


def _numbers(value: Tensor) -> list[float]:
    return [float(f"{number:.6g}") for number in value.double().flatten().tolist()]


_NORMALISATION = {"mu": "mean", "mean": "mean", "sigma": "std", "std": "std"}
"""Last part of the names of normalisation buffers -> key of `pixels`."""
_MOST_CHANNELS = 4


def _matched(
    own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """The tensors under the module's names, the module's names without a tensor, and names unknown to the module."""
    own_prefix, given_prefix = _common_prefix(own), _common_prefix(tensors)
    renamed = {own_prefix + name.removeprefix(given_prefix): value for name, value in tensors.items()}
    # Checkpoints of torch < 0.4.1 do not have this counter of BatchNorm, which evaluation never reads.
    missing = [name for name in own if name not in renamed and not name.endswith("num_batches_tracked")]
    return renamed, missing, sorted(name for name in renamed if name not in own)


def _check_normalisation(beside: Mapping[str, Tensor], pixels: PixelsConfig | None, source: str) -> None:
    """Raise unless `pixels` does the normalisation: without it the network would see other pixels."""
    there = {}
    for name, value in beside.items():
        there[_NORMALISATION[name.rpartition(".")[2]]] = _numbers(value)
    for key, numbers in there.items():
        said = list(getattr(pixels, key) or ()) if pixels is not None else []
        if len(said) != len(numbers) or not all(map(_same, said, numbers)):
            named = ", ".join(f"{name}: {values}" for name, values in there.items())
            raise ClassifierError(
                f"checkpoint {source}: a normalisation of pixels lies beside the network ({few(sorted(beside))}), and "
                f"the config's does not agree; set classifiers.<k>.pixels: {{{named}}}"
            )


def _same(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=1e-4)  # as papers print them, with four digits


def _likely_cause(misshapen: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> str:
    """The likely cause: a checkpoint of which only the head or the first convolution misfits is of another data set."""
    outputs = {(given[0], needed[0]) for given, needed in misshapen if given[1:] == needed[1:] and given and needed}
    if len(outputs) == 1 and all(given[1:] == needed[1:] for given, needed in misshapen):
        ((given, needed),) = outputs
        return f"it was probably trained for {counted(given, 'class')}, the run has {needed}: check the data set"
    if len(misshapen) == 1 and len(misshapen[0][0]) == 4:
        (given_shape, needed_shape) = misshapen[0]
        if given_shape[:1] + given_shape[2:] == needed_shape[:1] + needed_shape[2:]:
            return (
                f"it takes images with {counted(given_shape[1], 'channel')}, the data set has {needed_shape[1]}: "
                "check the data set, or choose another checkpoint"
            )
    return "check the architecture's arguments, the image size and the number of classes"


def module_digest(module: nn.Module) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes of all parameters and buffers, in order of name.

    Buffers outside the state_dict are included, because normalisation changes votes as weights do.
    """
    result = hashlib.sha256()
    for name, tensor in _tensors(module):
        result.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        result.update(_bytes(tensor))
    return result.hexdigest()


def identity_of(decided: object) -> Tensor:
    """uint8 [32], SHA-256 of JSON data: a buffer that makes `module_digest` cover what no weight shows.

    decided: all settings that decide the module's function; other objects than JSON data count as their text.
    """
    text = json.dumps(decided, sort_keys=True, default=str)
    return torch.tensor(list(hashlib.sha256(text.encode()).digest()), dtype=torch.uint8, device="cpu")


def tensor_digests(module: nn.Module) -> dict[str, bytes]:
    """SHA-256 of each parameter and buffer by name, to find those that a call changes."""
    return {name: hashlib.sha256(_bytes(tensor)).digest() for name, tensor in _tensors(module)}


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return sorted({**dict(module.named_parameters()), **dict(module.named_buffers())}.items())


def _bytes(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def few(names: list[str]) -> str:
    """The first three names, and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def _common_prefix(names: Iterable[str]) -> str:
    """The dotted prefix that all names share, such as `module.` or `1.`; "" if there is none."""
    paths = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(part + "." for part in shared)
