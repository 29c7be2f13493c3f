"""True radii of votes in the half-space model, found by attack: no radius formula of the package is used.

On sub-image k, class A has probability Phi(a_k - t_k) and rival B Phi(b_k + t_k) after a perturbation of t_k sigma_k
along the normals: the worst that any base classifier with these probabilities can do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

Floats = NDArray[np.float64]

BISECTIONS = 60
FARTHEST = 64.0


def lead(vote: str, a: Floats, b: Floats, spent: Floats, sigmas: Floats, weights: Floats) -> Floats:
    """Lead of A over B after spending s_k on sub-image k; the last axis of all arguments is K."""
    a_after, b_after = a - spent / sigmas, b + spent / sigmas
    if vote == "probit":
        return np.asarray((weights * sigmas * (a_after - b_after)).sum(axis=-1))
    return np.asarray((ndtr(a_after) - ndtr(b_after)).sum(axis=-1))


def shortest_flip(
    vote: str,
    a: Floats,
    b: Floats,
    sigmas: Sequence[float] | Floats,
    weights: Sequence[float] | Floats | None = None,
    rounds: int = 14,
    directions: int = 64,
) -> Floats:
    """Length of the shortest perturbation found that flips the vote: never below the true radius. [M, K] -> [M].

    All ways to split a length over the sub-images are searched, ever closer around the best; the length along each is
    bisected. 0 where A does not lead to begin with, inf where nothing up to FARTHEST flips.
    """
    images, sub_images = a.shape
    sigmas_ = np.broadcast_to(np.asarray(sigmas, np.float64), a.shape)[:, None, :]
    weights_ = np.broadcast_to(np.ones(sub_images) if weights is None else np.asarray(weights), a.shape)[:, None, :]
    rng = np.random.default_rng(0)
    best = np.full(images, np.inf)
    toward = np.ones((images, sub_images)) / np.sqrt(sub_images)
    for turn in range(rounds if sub_images > 1 else 1):
        width = 2.0 * 0.4**turn
        around = toward[:, None, :] + width * rng.standard_normal((images, directions, sub_images))
        if turn == 0:
            around[:, :sub_images, :] = np.eye(sub_images)  # all of it on one sub-image
        around[:, -1, :] = toward
        around = np.maximum(around, 0.0)  # moving towards A would only help it
        norm = np.linalg.norm(around, axis=-1, keepdims=True)
        around = np.where(norm > 0, around / np.where(norm > 0, norm, 1.0), toward[:, None, :])
        low, high = np.zeros(around.shape[:2]), np.full(around.shape[:2], FARTHEST)
        flips = lead(vote, a[:, None, :], b[:, None, :], FARTHEST * around, sigmas_, weights_) <= 0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            flipped = lead(vote, a[:, None, :], b[:, None, :], middle[..., None] * around, sigmas_, weights_) <= 0
            low, high = np.where(flipped, low, middle), np.where(flipped, middle, high)
        length = np.where(flips, high, np.inf)
        choice = length.argmin(axis=1)
        found = length[np.arange(images), choice]
        better = found < best
        best = np.where(better, found, best)
        toward = np.where(better[:, None], around[np.arange(images), choice], toward)
    leads = lead(vote, a, b, np.zeros_like(a), sigmas_[:, 0], weights_[:, 0]) > 0
    return np.where(leads, best, 0.0)
