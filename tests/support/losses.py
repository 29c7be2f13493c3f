"""Small classifiers, images and noise whose losses can be computed by hand."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from drs_ray.smoothing.partition import make_partition

WHOLE = make_partition("none", 1, 2, "packed")


class Scripted:
    """A noise source that gives what it was told to, in order."""

    def __init__(self, *noises: list[list[float]]) -> None:
        self._noises = [torch.tensor(noise)[:, None, :] for noise in noises]

    def __call__(self, values: Tensor) -> Tensor:
        noise = self._noises.pop(0)
        assert noise.shape == values.shape
        return noise


def linear(weight: list[list[float]]) -> nn.Module:
    """Logits = weight @ pixels, for images of one row; weight: a row for each class."""
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return nn.Sequential(nn.Flatten(), layer)


def gradient_of(loss: Tensor, module: nn.Module) -> np.ndarray:
    (gradient,) = torch.autograd.grad(loss, list(module.parameters()))
    return gradient.numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits)
    return powers / powers.sum(axis=-1, keepdims=True)


VALUES = torch.tensor([[[0.5, 0.25]], [[0.0, 1.0]]])
LABELS = torch.tensor([0, 1])
NOISES = ([[0.5, -0.25], [1.0, 0.0]], [[0.0, 0.5], [-1.0, 0.5]])
WEIGHT = [[1.0, -1.0], [0.5, 2.0]]


def noisy(copy: int) -> np.ndarray:
    """Inputs of one copy, float64 [n, 2]."""
    return VALUES[:, 0].numpy().astype(float) + np.array(NOISES[copy])
