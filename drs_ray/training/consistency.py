"""The method `consistency` (Jeong and Shin 2020): noisy copies of an image should get equal predictions."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from drs_ray.training.trainee import NoiseSource, Trainee


def consistency_loss(
    trainee: Trainee,
    values: Tensor,
    labels: Tensor,
    noise: NoiseSource,
    *,
    copies: int,
    kl_weight: float,
    entropy_weight: float,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of `copies` noisy copies plus `disagreement`; see `drs_ray.training.trainee.Loss`.

    copies: of an image in all sub-images of the trainee together.
    """
    noisy = torch.cat([values + noise(values) for _ in range(copies // len(trainee.sub_images))])
    logits = trainee(noisy)
    loss = functional.cross_entropy(logits, labels.repeat(copies), label_smoothing=label_smoothing)
    apart = logits.view(copies, len(labels), -1)
    return loss + disagreement(apart, kl_weight, entropy_weight), apart[0]


def disagreement(logits: Tensor, kl_weight: float, entropy_weight: float) -> Tensor:
    """The regularization term for logits [copies, n, classes]: a scalar >= 0, mean over the n images.

    Jeong and Shin 2020, section 3, with F the softmax of the logits and F_mean its mean over the m copies:
    lambda * 1/m sum_i KL(F_mean || F_i) + eta * H(F_mean).
    """
    log_answers = functional.log_softmax(logits, dim=-1)
    log_mean = torch.logsumexp(log_answers, dim=0) - math.log(len(logits))
    mean = log_mean.exp()
    entropy = -(mean * log_mean).sum(dim=-1)
    divergence = -(mean * log_answers).sum(dim=-1).mean(dim=0) - entropy  # 1/m sum_i KL(F_mean || F_i)
    return (kl_weight * divergence + entropy_weight * entropy).mean()
