"""The method `smoothmix` (Jeong et al. 2021): on the way to an adversarial example, answers should become unsure."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from drs_ray.training.answers import log_mean_answer
from drs_ray.training.smoothadv import attack
from drs_ray.training.trainee import NoiseSource, Trainee


def smoothmix_loss(
    trainee: Trainee,
    values: Tensor,
    labels: Tensor,
    noise: NoiseSource,
    epoch: int,
    *,
    copies: int,
    steps: int,
    step_size: float,
    mix_weight: float,
    one_step: bool,
    warm_up: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy of `copies` noisy copies plus `unsureness`; see `drs_ray.training.trainee.Loss`.

    Jeong et al. 2021, section 3, with the weight eta of the second term: the adversarial example is found by gradient
    ascent on the smoothed classifier's loss, in [0, 1] but in no ball. The mixture is anywhere up to half of the way
    there, lambda ~ U[0, 1/2]. All copies, also those in the attack, are under the same noise. As in the authors' code,
    eta rises linearly in the first `warm_up` epochs, and one_step puts the first step of the attack, at most its share
    of the warm-up long, in the place of the clean image.

    Other than in that code, a batch is one step (there one of each of m parts of the batch), and clean and mixed copies
    are one forward pass, so that batch norm has common statistics of both.
    """
    ramp = min(1.0, epoch / warm_up)
    drawn = torch.stack([noise(values) for _ in range(copies)])
    first = attack(trainee, values, labels, drawn, steps=1, step_size=step_size)
    adversarial = attack(trainee, first, labels, drawn, steps=steps - 1, step_size=step_size)
    if one_step:
        values = values + (first - values).renorm(p=2, dim=0, maxnorm=ramp * step_size)
    share = torch.rand(len(values), device=values.device) / 2  # seeded by the loop
    mixed = torch.lerp(values, adversarial, share[:, None, None])
    logits = trainee((torch.stack([values, mixed])[:, None] + drawn).flatten(0, 2))
    clean, under_way = logits.view(2, copies, len(values), -1)
    loss = functional.cross_entropy(clean.flatten(0, 1), labels.repeat(copies), label_smoothing=label_smoothing)
    return loss + ramp * mix_weight * unsureness(clean, under_way, labels, share), clean[0]


def unsureness(clean: Tensor, mixed: Tensor, labels: Tensor, share: Tensor) -> Tensor:
    """The mixup term for logits [copies, n, classes] of clean and mixed copies: a scalar >= 0, a mean over n images.

    1/m sum_i KL((1 - lambda) * F_mean + lambda/C || F_i) of every image whose mean clean answer F_mean is correct, with
    F_i the answers to its mixed copies, C the number of classes and lambda `share` [n]; 0 of every other image.
    """
    log_mean = log_mean_answer(clean)
    log_uniform = -math.log(clean.shape[-1])
    log_target = torch.logaddexp(log_mean + torch.log1p(-share)[:, None], (share.log() + log_uniform)[:, None])
    log_answers = functional.log_softmax(mixed, dim=-1)
    divergence = (log_target.exp() * (log_target - log_answers)).sum(dim=-1).mean(dim=0)
    is_correct = log_mean.argmax(dim=-1) == labels
    return (is_correct * divergence).mean()
