"""The method `gaussian` (Cohen et al. 2019): cross-entropy of one noisy copy of each image."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from drs_ray.training.trainee import NoiseSource, Trainee


def gaussian_loss(
    trainee: Trainee, values: Tensor, labels: Tensor, noise: NoiseSource, *, label_smoothing: float
) -> tuple[Tensor, Tensor]:
    """Cross-entropy under noise; see `drs_ray.training.trainee.Loss`.

    label_smoothing: share of the target that is distributed over all classes, in [0, 1).
    """
    logits = trainee(values + noise(values))
    return functional.cross_entropy(logits, labels, label_smoothing=label_smoothing), logits
