"""The method `smoothadv` (Salman et al. 2019): cross-entropy on attacks of the smoothed classifier."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from drs_ray.training.answers import log_mean_answer
from drs_ray.training.trainee import NoiseSource, Trainee


def smoothadv_loss(
    trainee: Trainee,
    values: Tensor,
    labels: Tensor,
    noise: NoiseSource,
    epoch: int,
    *,
    copies: int,
    steps: int,
    epsilon: float,
    warm_up: int,
    label_smoothing: float,
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of attacked images under the noise of the attack (Salman et al. 2019).

    The attack's radius rises linearly to `epsilon` in the first `warm_up` epochs. See `drs_ray.training.trainee.Loss`.
    """
    drawn = torch.stack([noise(values) for _ in range(copies)])
    epsilon *= min(1.0, epoch / warm_up)
    attacked = attack(trainee, values, labels, drawn, steps=steps, step_size=2 * epsilon / steps, epsilon=epsilon)
    logits = trainee((attacked + drawn).flatten(0, 1))
    loss = functional.cross_entropy(logits, labels.repeat(copies), label_smoothing=label_smoothing)
    return loss, logits[: len(values)]


def attack(
    trainee: Trainee,
    values: Tensor,
    labels: Tensor,
    drawn: Tensor,
    *,
    steps: int,
    step_size: float,
    epsilon: float = math.inf,
) -> Tensor:
    """Values near `values` with a large loss of the smoothed classifier, as estimated with the noise `drawn`.

    Args:
        trainee: the classifier, which is not changed.
        values: float32 [n, C, d] in [0, 1], without noise.
        labels: int64 [n].
        drawn: noise [copies, n, C, d], equal in every step.
        steps: gradient steps.
        step_size: l2 length of each.
        epsilon: l2 radius of the ball around each image's values.

    Returns:
        float32 [n, C, d] in [0, 1], at most epsilon from `values`.
    """
    moved = torch.zeros_like(values)
    with trainee.fixed() as classifier, torch.enable_grad():
        for _ in range(steps):
            moved.requires_grad_(True)
            logits = classifier((values + moved + drawn).flatten(0, 1)).view(len(drawn), len(values), -1)
            # Salman et al. 2019: ascend -log(1/m sum_i F(x' + noise_i)_y), the smoothed classifier's own loss.
            loss = functional.nll_loss(log_mean_answer(logits), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, moved)
            length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)[:, None, None]
            moved = moved.detach() + step_size * gradient / length
            # Clamp to the range of pixels first: scaling towards the image, to stay in the ball, stays in this range.
            moved = ((values + moved).clamp(0, 1) - values).renorm(p=2, dim=0, maxnorm=epsilon)
    return (values + moved).detach()
