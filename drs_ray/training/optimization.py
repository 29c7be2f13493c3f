"""Optimizers, learning-rate schedules, and the state of an optimizer as plain tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from drs_ray.config import TrainingConfig

WARM_UP = 0.2
"""Schedule warm-up-cosine: share of the steps with a rising learning rate. Then the rate falls to 0 along a cosine."""


def make_optimizer(module: nn.Module, training: TrainingConfig) -> torch.optim.Optimizer:
    """The optimizer of a config for all parameters of the module."""
    if training.optimizer == "sgd":
        return torch.optim.SGD(
            module.parameters(),
            lr=training.learning_rate,
            momentum=training.momentum,
            weight_decay=training.weight_decay,
        )
    return torch.optim.AdamW(
        module.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay, fused=True
    )


def rate(training: TrainingConfig, progress: float) -> float:
    """Factor of the learning rate, in [0, 1], after a share `progress` in [0, 1) of the steps."""
    if training.schedule == "step":
        return float(0.1 ** (math.floor(progress * training.epochs + 1e-9) // training.step_epochs))
    if training.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if progress < WARM_UP:
        return (progress + 0.01) / (WARM_UP + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARM_UP) / (1 - WARM_UP)))


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of each parameter (moments, counters), on the CPU, as "<parameter>/<name>"."""
    return {
        f"{index}/{name}": torch.as_tensor(value).detach().to("cpu", copy=True)
        for index, remembered in optimizer.state_dict()["state"].items()
        for name, value in remembered.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore an optimizer's state from `optimizer_tensors`.

    Each tensor gets the strides of its parameter, because fused kernels process both in order of memory.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    remembered: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition("/")
        like = parameters[int(index)]
        own = torch.empty_like(like, dtype=value.dtype) if value.shape == like.shape else torch.empty_like(value)
        remembered.setdefault(int(index), {})[name] = own.copy_(value)
    optimizer.load_state_dict({"state": remembered, "param_groups": optimizer.state_dict()["param_groups"]})
