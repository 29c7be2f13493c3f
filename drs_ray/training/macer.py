"""The method `macer` (Zhai et al. 2020): the certified radius of the soft smoothed classifier should be large."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from drs_ray.training.answers import log_mean_answer
from drs_ray.training.trainee import NoiseSource, Trainee


def macer_loss(
    trainee: Trainee,
    values: Tensor,
    labels: Tensor,
    noise: NoiseSource,
    *,
    sigma: float,
    copies: int,
    radius_weight: float,
    inverse_temperature: float,
    margin: float,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the mean answer to `copies` noisy copies plus `radius_hinge`; see `trainee.Loss`.

    Zhai et al. 2020, algorithm 1: 1/n sum_i -log z_y(x_i) + lambda * radius_hinge, with z the mean over the k copies of
    the softmax. As in the authors' code, the inverse temperature is in the radius alone.
    """
    noisy = torch.cat([values + noise(values) for _ in range(copies)])
    apart = trainee(noisy).view(copies, len(values), -1)
    loss = functional.cross_entropy(log_mean_answer(apart), labels, label_smoothing=label_smoothing)
    return loss + radius_weight * radius_hinge(inverse_temperature * apart, labels, sigma, margin), apart[0]


def radius_hinge(logits: Tensor, labels: Tensor, sigma: float, margin: float) -> Tensor:
    """The hinge on soft certified radii, for logits [copies, n, classes]: a scalar >= 0, a sum over images / n.

    sigma/2 * max(0, gamma - (Phi^-1(z_A) - Phi^-1(z_B))) of every image that the mean answer z classifies correctly,
    with z_A its largest and z_B its second largest probability; 0 of every other image. sigma is the sub-image's own.
    Where z_A rounds to 1 in float32, the difference is more than 10, which is the largest margin: the hinge is 0.
    """
    top, classes = log_mean_answer(logits).exp().topk(2, dim=-1)
    is_sure = top[:, 0] >= 1  # its quantile is infinite
    counted = (classes[:, 0] == labels) & ~is_sure
    quantiles = torch.special.ndtri(top[counted])
    hinge = functional.relu(margin - (quantiles[:, 0] - quantiles[:, 1]))
    return sigma / 2 * hinge.sum() / len(labels)
