"""Search for a short perturbation: gradient descent for its direction, bisection for its norm.

The direction comes from projected gradient descent on the smoothed classifier's lead, whose gradient is an expectation
over noise samples (Salman et al. 2019), through all sub-images at once. The norm is decoupled from the direction (Rony
et al. 2019): it shrinks while the prediction is changed, and grows while it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from drs_ray.checks.attack.target import Target
from drs_ray.errors import ClassifierError

_RATE = 0.05  # first relative change of the norm per step: 60 steps reach 4 times the first norm, or a fifth of it
_STRIDE = 0.5  # first length of a step, relative to the norm
_LAST_STRIDE = 0.02
_AVERAGED = 0.25  # share of the steps, the last ones, whose directions are averaged, because a step has few samples
_RESOLUTION = 0.02  # relative to the norm


def search_directions(
    target: Target,
    images: Tensor,
    image_ids: Sequence[int],
    predictions: Tensor,
    norms: Tensor,
    steps: int,
    samples: int,
) -> Tensor:
    """Directions in which a small norm changes the prediction: float32 [N, C, H, W], of l2 norm 1.

    Args:
        target: the smoothed classifier.
        images: float32 [N, C, H, W] in [0, 1], on the target's device.
        image_ids: N ids that key the noise.
        predictions: int64 [N], the smoothed classifier's classes.
        norms: float32 [N], initial l2 norms, pixel units.
        steps: descent steps.
        samples: noise samples of each sub-image and step.

    Raises:
        ClassifierError: a classifier fails, or has no gradient.
    """
    moved, norm = torch.zeros_like(images), norms.clone()
    total = torch.zeros_like(images)
    for step in range(steps):
        fade = (1 + math.cos(math.pi * step / steps)) / 2
        lead, gradient = _lead(target, images + moved, image_ids, predictions, step, samples)
        length = _norm(gradient)
        if step == 0 and not bool(length.any()):
            raise ClassifierError(
                "the classifiers' gradients with respect to their inputs are all 0, and the attack searches by them; "
                "their logits must react to the input (steps and rounding do not)"
            )
        downhill = gradient / length.clamp_min(torch.finfo(torch.float32).tiny)[:, None, None, None]
        stride = norm * (_LAST_STRIDE + (_STRIDE - _LAST_STRIDE) * fade)
        moved = moved - stride[:, None, None, None] * downhill
        norm = norm * torch.where(lead > 0, 1 + _RATE * fade, 1 - _RATE * fade)
        direction = _unit(moved)
        moved = norm[:, None, None, None] * direction
        if step >= (1 - _AVERAGED) * steps - 1:
            total += direction
    return _unit(total)


def smallest_norm(changes: Callable[[float], bool], limit: float) -> float | None:
    """The norm along a ray at which the prediction begins to change, by bisection; None if it is unchanged at `limit`.

    Args:
        changes: whether the prediction is changed at a norm; if it is not monotone, one crossing is found.
        limit: largest norm.
    """
    if not changes(limit):
        return None
    low, high = 0.0, limit
    while high - low > _RESOLUTION * high and high > 1e-3 * limit:  # the prediction may be changed at norm 0
        middle = (low + high) / 2
        low, high = (low, middle) if changes(middle) else (middle, high)
    return high


def _lead(
    target: Target, images: Tensor, image_ids: Sequence[int], predictions: Tensor, step: int, samples: int
) -> tuple[Tensor, Tensor]:
    """The predictions' lead over their closest rivals [N], and its gradient [N, C, H, W]."""
    inputs = images.detach().requires_grad_()
    leads = target.soft_leads(target.allowed(inputs), image_ids, predictions, step, samples)
    lead = leads.amin(dim=1)
    (gradient,) = torch.autograd.grad(lead.sum(), inputs)
    return lead.detach(), gradient


def _norm(images: Tensor) -> Tensor:
    length: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return length


def _unit(images: Tensor) -> Tensor:
    return images / _norm(images).clamp_min(torch.finfo(torch.float32).tiny)[:, None, None, None]
