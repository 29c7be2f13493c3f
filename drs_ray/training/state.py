"""The state of a training as one safetensors file: weights, state of the optimizer, state of the random generator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import safetensors.torch
import torch
from pydantic import JsonValue
from safetensors import SafetensorError
from torch import Tensor

from drs_ray.errors import ClassifierError, ConfigError
from drs_ray.models.checkpoints import parse_safetensors
from drs_ray.models.files import read_if_there, write_file

_KEY = "drs_ray_training"


@dataclass(frozen=True)
class TrainingState:
    """Everything that the next epoch depends on, on the CPU.

    epoch: epochs done. weights: the module's state_dict. optimizer: see `optimizer_tensors`. generator: state of the
    generator of order, augmentation and noise, uint8; None before the first epoch. bfloat16: whether the training
    computes in bfloat16 where that is safe; None: not decided, before the first epoch.
    """

    epoch: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    generator: Tensor | None = None
    bfloat16: bool | None = None


def save_state(location: str, state: TrainingState, settings: Mapping[str, JsonValue]) -> None:
    """Write a state and its settings to a local path or an s3:// URI, whole or not at all.

    Raises:
        ClassifierError: the file cannot be written.
    """
    tensors = {f"weights/{name}": tensor.contiguous() for name, tensor in state.weights.items()}
    tensors |= {f"optimizer/{name}": tensor.contiguous() for name, tensor in state.optimizer.items()}
    if state.generator is not None:
        tensors["generator"] = state.generator
    text = json.dumps({"epoch": state.epoch, "settings": settings}, sort_keys=True)
    write_file(location, safetensors.torch.save(tensors, {_KEY: text}))


def load_state(location: str, settings: Mapping[bool, Mapping[str, JsonValue]]) -> TrainingState | None:
    """The state at a location, or None if there is no file. `settings`: its allowed settings, by `bfloat16`.

    Raises:
        ClassifierError: the file cannot be read. ConfigError: the state belongs to other settings.
    """
    data = read_if_there(location)
    if data is None:
        return None
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}, "generator": {}}
    try:
        tensors, notes = parse_safetensors(data)
        found = json.loads(notes[_KEY])
        for key, tensor in tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        epoch, kept = int(found["epoch"]), dict(found["settings"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ClassifierError(
            f"training state {location}: cannot be read ({type(error).__name__}: {error}); delete it to train anew"
        ) from error
    bfloat16, differing = min(
        (
            (allowed, sorted(key for key in {**kept, **these} if kept.get(key) != these.get(key)))
            for allowed, these in settings.items()
        ),
        key=lambda found: len(found[1]),
    )
    if differing:
        raise ConfigError(
            f"training state {location}: belongs to other settings ({', '.join(differing)}); restore them to go on, or "
            "delete it to train anew"
        )
    return TrainingState(epoch, parts["weights"], parts["optimizer"], parts["generator"].get(""), bfloat16)


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state_dict on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}
