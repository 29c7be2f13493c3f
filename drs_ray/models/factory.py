"""From a config's classifier to a checked `BaseClassifier`: build or import the module, load its checkpoint, try it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor, nn

from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import build_architecture
from drs_ray.models.checkpoints import CheckpointMetadata, load_checkpoint

_PROBES = 8
_TOLERANCE = 1e-3  # of the largest logit: kernels differ far less, other samples in the batch far more


@dataclass(frozen=True)
class BaseClassifier:
    """A base classifier ready to vote: on the CPU, in eval mode, without gradients.

    digest: sha256 (hex) of all parameters and buffers; warnings: what the user should know and may ignore.
    probe: its answers to fixed inputs (`check_classifier`), by which other code behind the same weights is noticed.
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
) -> BaseClassifier:
    """Build the base classifier of one sub-image, load its checkpoint, and check it.

    Args:
        architecture: a built-in name, or `module:function` of the user's own.
        arguments: keyword arguments of the architecture or the function.
        checkpoint: path or s3:// URI; only a function of the user's own may do without.
        sub_image: index of the sub-image, 0 .. K - 1.
        partition: name of the partition.
        layout: name of the layout.
        sigma: noise level of the run, in pixel units.
        image_shape: (C, h, w) of the sub-image as laid out.
        num_classes: number of classes of the data set.
        dataset: name of the data set, to warn of a classifier that was trained on another.

    Raises:
        ClassifierError: if it cannot be built or loaded, or does not fit. Another training sigma or data set is a
            warning only.
    """
    module = build_module(architecture, arguments, image_shape, num_classes)
    if checkpoint is None and ":" not in architecture:
        raise ClassifierError(
            f"sub-image {sub_image}: classifier {architecture} needs a checkpoint; "
            f"set classifiers.{sub_image}.checkpoint, or train one with `drs-ray train`"
        )
    warnings: list[str] = []
    if checkpoint is not None:
        tensors, metadata = load_checkpoint(checkpoint)
        if metadata is not None:
            expected = {
                "sub_image": sub_image,
                "partition": partition,
                "layout": layout,
                "architecture": architecture,
                "arguments": dict(arguments),
                "num_classes": num_classes,
                "image_shape": image_shape,
            }
            _check_metadata(checkpoint, metadata, expected)
            if not math.isclose(metadata.sigma, sigma, rel_tol=1e-6):  # the config rounds sigma to float32
                warnings.append(
                    f"sub-image {sub_image}: {checkpoint} was trained with sigma {metadata.sigma:g}, "
                    f"the run uses {sigma:g}; the certificates hold, but radii may be smaller than they could be"
                )
            if dataset is not None and metadata.dataset != dataset:
                warnings.append(
                    f"sub-image {sub_image}: {checkpoint} was trained on {metadata.dataset}, the run uses {dataset}"
                )
        load_tensors(module, tensors, checkpoint)
    module.eval()
    probe = check_classifier(module, image_shape, num_classes, sub_image)  # first: lazy layers take their shape
    module.requires_grad_(False)
    return BaseClassifier(module, module_digest(module), tuple(warnings), probe)


def build_module(
    architecture: str,
    arguments: Mapping[str, JsonValue],
    image_shape: tuple[int, int, int],
    num_classes: int,
) -> nn.Module:
    """The untrained module of an architecture's name, or whatever the user's `module:function` returns.

    The function is called with `image_shape`, `num_classes` and the arguments; its module is looked for in the current
    directory too.

    Raises:
        ClassifierError: if there is no such architecture or function, if it raises, or returns something else.
    """
    if ":" not in architecture:
        return build_architecture(architecture, image_shape, num_classes, arguments)
    module_name, _, function_name = architecture.partition(":")
    with _current_directory_on_path():
        try:
            imported = importlib.import_module(module_name)
        except Exception as error:  # user code: whatever it raises is reported, with the traceback chained
            raise ClassifierError(
                f"classifier {architecture}: module {module_name!r} cannot be imported ({_told(error)}); "
                "start in the directory that holds it, or put it on PYTHONPATH"
            ) from error
        function = getattr(imported, function_name, None)
        if not callable(function):
            raise ClassifierError(
                f"classifier {architecture}: {imported.__name__} has no function {function_name!r}; "
                "give module:function with the function's name"
            )
        try:
            built: object = function(image_shape=image_shape, num_classes=num_classes, **arguments)
        except Exception as error:  # user code, as above
            raise ClassifierError(
                f"classifier {architecture}: called with image_shape={image_shape}, num_classes={num_classes} and "
                f"the arguments {dict(arguments)}, it raised {_told(error)}; correct the function or the arguments"
            ) from error
    if not isinstance(built, nn.Module):
        raise ClassifierError(
            f"classifier {architecture}: must return a torch.nn.Module, got {type(built).__name__}; correct it"
        )
    return built


def load_tensors(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Load a state_dict into a module; a prefix that all names share (`module.`, `1.`, `network.`) does not matter.

    Raises:
        ClassifierError: naming a few of the missing, unexpected or misshapen tensors, and `source`.
    """
    own = module.state_dict()
    own_prefix, given_prefix = _common_prefix(own), _common_prefix(tensors)
    renamed = {own_prefix + name.removeprefix(given_prefix): value for name, value in tensors.items()}
    # Checkpoints of torch < 0.4.1 do not have this counter of BatchNorm, which evaluation never reads.
    missing = [name for name in own if name not in renamed and not name.endswith("num_batches_tracked")]
    unexpected = sorted(name for name in renamed if name not in own)
    if missing or unexpected:
        raise ClassifierError(
            f"checkpoint {source}: its tensors are not those of the architecture (missing: {_few(missing)}; "
            f"unexpected: {_few(unexpected)}); name the architecture that it was trained with"
        )
    misshapen = [
        f"{name} {list(renamed[name].shape)} instead of {list(value.shape)}"
        for name, value in own.items()
        if name in renamed and renamed[name].shape != value.shape
    ]
    if misshapen:
        raise ClassifierError(
            f"checkpoint {source}: its tensors do not have the architecture's shapes ({_few(misshapen)}); "
            "check the architecture's arguments, the image size and the number of classes"
        )
    module.load_state_dict(renamed, strict=False)


def check_classifier(
    module: nn.Module,
    image_shape: tuple[int, int, int],
    num_classes: int,
    sub_image: int,
    device: str | torch.device = "cpu",
) -> tuple[float, ...]:
    """Try a classifier on a few noisy inputs: it must be a fixed function of each sample alone.

    It must turn [N, C, h, w] into finite float logits [N, num_classes], be in eval mode, give the same answer twice,
    and answer each sample as it would alone. Layers that draw at random or mix the samples of a batch (dropout or batch
    norm in train mode) would make votes that no certificate covers.

    Returns:
        The largest logit of each input: what another copy of the classifier must give too (`same_probe`).

    Raises:
        ClassifierError: naming the sub-image, what was got and what is expected.
    """
    who = f"sub-image {sub_image}: the classifier"
    in_training = [name or type(part).__name__ for name, part in module.named_modules() if part.training]
    if in_training:
        raise ClassifierError(f"{who} is in train mode ({_few(in_training)}); call eval() on every part of it")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand((_PROBES, *image_shape), generator=generator)
    inputs = (pixels + 0.5 * torch.randn(pixels.shape, generator=generator)).to(device)
    logits = _answer(module, inputs, num_classes, who)
    alone = torch.cat([_answer(module, one, num_classes, who) for one in inputs.unsqueeze(1)])
    for answer, fault in (
        (_answer(module, inputs, num_classes, who), "gives another answer to the same inputs the second time"),
        (alone, "answers a sample differently alone and in a batch"),
    ):
        if not _alike(answer, logits):
            raise ClassifierError(
                f"{who} {fault}; it must be a fixed function of each sample: no dropout, no statistics over the batch"
            )
    return tuple(logits.amax(dim=1).tolist())


def same_probe(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether two copies of a classifier gave the same answers, up to the last bits in which kernels differ."""
    return len(first) == len(second) and _alike(torch.tensor(first), torch.tensor(second))


def _alike(first: Tensor, second: Tensor) -> bool:
    scale = float(torch.maximum(first.abs().max(), second.abs().max()))
    return bool(((first - second).abs() <= _TOLERANCE * scale + 1e-6).all())


def _answer(module: nn.Module, inputs: Tensor, num_classes: int, who: str) -> Tensor:
    expected = [len(inputs), num_classes]
    try:
        with torch.inference_mode():
            logits: object = module(inputs)
    except Exception as error:  # the user's module may raise anything
        raise ClassifierError(
            f"{who} failed on an input of shape {list(inputs.shape)} ({_told(error)}); "
            "it must accept float32 [N, C, h, w] of the sub-image as laid out"
        ) from error
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        got = f"a tensor of {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ClassifierError(f"{who} must return float logits of shape {expected}, got {got}")
    if list(logits.shape) != expected:
        raise ClassifierError(
            f"{who} must return logits of shape {expected} for inputs {list(inputs.shape)} "
            f"({num_classes} classes), got {list(logits.shape)}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise ClassifierError(f"{who} returns NaN or infinite logits; check its checkpoint (diverged training?)")
    return logits


def module_digest(module: nn.Module) -> str:
    """sha256 (hex) over names, dtypes, shapes and bytes of all parameters and buffers, in order of name.

    Buffers that are not in the state_dict count too: normalisation changes votes as weights do.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    result = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        result.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        result.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return result.hexdigest()


def _check_metadata(source: str, metadata: CheckpointMetadata, expected: Mapping[str, object]) -> None:
    for key, value in expected.items():
        got = getattr(metadata, key)
        if key == "arguments":
            got, value = json.dumps(dict(got), sort_keys=True), json.dumps(value, sort_keys=True)
        if got != value:
            raise ClassifierError(
                f"checkpoint {source}: trained for {key.replace('_', '-')} {got}, the run needs {value}; "
                f"name the checkpoint of {'this sub-image' if key == 'sub_image' else 'this setting'}, or train one"
            )


def _common_prefix(names: Iterable[str]) -> str:
    """The dotted prefix that all names share, such as `module.` or `1.`; "" if there is none."""
    paths = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(part + "." for part in shared)


@contextlib.contextmanager
def _current_directory_on_path() -> Iterator[None]:
    """As `python -m` has it; a long-lived process gets its sys.path back."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def _told(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
