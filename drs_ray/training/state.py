"""How far a training has come, as one safetensors file: weights, the optimizer's memory and the random generator."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from pydantic import JsonValue
from safetensors import SafetensorError, safe_open
from torch import Tensor

from drs_ray.errors import ClassifierError, ConfigError
from drs_ray.models.checkpoints import write_whole

_KEY = "drs_ray_training"


@dataclass(frozen=True)
class TrainingState:
    """All that the next epoch depends on, on the CPU.

    epoch: epochs done. weights: the module's state_dict. optimizer: see `optimizer_tensors`. generator: the state of
    the generator of order, augmentation and noise, uint8; None before the first epoch.
    """

    epoch: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor] = field(default_factory=dict)
    generator: Tensor | None = None


def save_state(file: Path, state: TrainingState, settings: Mapping[str, JsonValue]) -> None:
    """Write a state and the settings it belongs to: whole, or not at all.

    Raises:
        ClassifierError: if the file cannot be written.
    """
    tensors = {f"weights/{name}": tensor.contiguous() for name, tensor in state.weights.items()}
    tensors |= {f"optimizer/{name}": tensor.contiguous() for name, tensor in state.optimizer.items()}
    if state.generator is not None:
        tensors["generator"] = state.generator
    text = json.dumps({"epoch": state.epoch, "settings": settings}, sort_keys=True)
    write_whole(file, safetensors.torch.save(tensors, {_KEY: text}))


def load_state(file: Path, settings: Mapping[str, JsonValue]) -> TrainingState | None:
    """The state in a file, or None if there is no file.

    Raises:
        ClassifierError: a file that cannot be read. ConfigError: one that belongs to other settings.
    """
    if not file.exists():
        return None
    parts: dict[str, dict[str, Tensor]] = {"weights": {}, "optimizer": {}, "generator": {}}
    try:
        with safe_open(file, framework="pt") as opened:
            found = json.loads((opened.metadata() or {})[_KEY])
            for key in opened.keys():  # noqa: SIM118 (not a dict)
                part, _, name = key.partition("/")
                parts[part][name] = opened.get_tensor(key)
        epoch, kept = int(found["epoch"]), dict(found["settings"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ClassifierError(
            f"training state {file}: cannot be read ({type(error).__name__}: {error}); delete it to train anew"
        ) from error
    differing = sorted(key for key in {**kept, **settings} if kept.get(key) != settings.get(key))
    if differing:
        raise ConfigError(
            f"training state {file}: belongs to other settings ({', '.join(differing)}); restore them to go on, or "
            "delete it to train anew"
        )
    return TrainingState(epoch, parts["weights"], parts["optimizer"], parts["generator"].get(""))


def weights_of(module: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of the module's state_dict on the CPU."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in module.state_dict().items()}
