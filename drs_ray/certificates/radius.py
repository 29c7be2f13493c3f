"""From bounds to a certified l2 radius, for the probit and the mean vote.

Bounds are quantiles: a_k <= Phi^-1(p^k_A) for the certified class A, and b_k >= Phi^-1(p^k_B) for a rival B. If only
p_A is bounded, b_k = -a_k. Radii may be negative: R <= 0 means that nothing is certified.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def margins(a_lower: Floats, b_upper: Floats, sigmas: Sequence[float]) -> Floats:
    """The radius of randomized smoothing on each sub-image alone: m_k = sigma_k (a_k - b_k) / 2, signed.

    A sub-image that votes for another class has a negative margin and subtracts. Cohen et al. 2019, Theorem 1.

    Args:
        a_lower: float64 [..., K], lower bounds of Phi^-1(p_A).
        b_upper: float64 [..., K], upper bounds of Phi^-1(p_B).
        sigmas: K noise standard deviations, pixel units.

    Returns:
        float64 [..., K], pixel units.

    Raises:
        ValueError: not K positive sigmas.
    """
    return _one_each("sigmas", sigmas, a_lower.shape[-1]) * (a_lower - b_upper) / 2


def probit_radius(margin: Floats, weights: Sequence[float] | None = None) -> Floats:
    """Radius of the probit vote, any K: R = sum_k w_k m_k / ||w||_2.

    x^k -> sigma_k Phi^-1(p^k_c(x^k)) is 1-Lipschitz (Salman et al. 2019, Lemma 2), so a perturbation with parts of
    norms s_k takes at most 2 sum_k w_k s_k <= 2 ||w|| ||s|| from A's lead over B. K = 1: Cohen et al. 2019, Theorem 1.
    K = 2 with equal sigmas and weights: the theorem of Xia et al. 2024 (DRS).

    Args:
        margin: float64 [..., K], pixel units, signed.
        weights: K positive weights, fixed before the images are seen; None: all 1.

    Returns:
        float64 [...], pixel units; <= 0 where nothing is certified.

    Raises:
        ValueError: not K positive weights.
    """
    w = normalised_weights(weights, margin.shape[-1])
    return np.asarray((margin * w).sum(axis=-1) / np.linalg.norm(w), np.float64)


def normalised_weights(weights: Sequence[float] | None, sub_images: int) -> Floats:
    """The weights of the probit vote, scaled so that the largest is 1: float64 [K].

    The radius does not depend on the scale; squares of tiny weights would underflow in the norm.

    Raises:
        ValueError: not K positive weights.
    """
    w = np.ones(sub_images) if weights is None else _one_each("weights", weights, sub_images)
    return np.asarray(w / w.max(), np.float64)


def mean_radius(a_lower: Floats, sigmas: Sequence[float]) -> Floats:
    """Radius of the mean vote from p_A alone, K <= 2: R = sum_k a_k / sqrt(sum_k 1 / sigma_k^2).

    Phi(a_1 - t_1) + Phi(a_2 - t_2) > 1 exactly while t_1 + t_2 < a_1 + a_2, with t_k = ||delta^k|| / sigma_k.
    For K > 2 the formula is wrong (an attack on K - 1 sub-images can be cheaper).

    Raises:
        ValueError: K > 2, or not K positive sigmas.
    """
    if a_lower.shape[-1] > 2:
        raise ValueError(f"the mean vote has no radius for K = {a_lower.shape[-1]} > 2; use the probit vote")
    cost = np.linalg.norm(1 / _one_each("sigmas", sigmas, a_lower.shape[-1]))
    return np.asarray(a_lower.sum(axis=-1) / cost, np.float64)


def cross_pairing_radius(a_lower: Floats, b_upper: Floats, sigmas: Sequence[float]) -> Floats:
    """Radius of the mean vote against one rival, K <= 2: R = min(a_1 - b_2, a_2 - b_1) / sqrt(sum_k 1 / sigma_k^2).

    Phi(a_1 - t_1) > Phi(b_2 + t_2) and Phi(a_2 - t_2) > Phi(b_1 + t_1) together keep A ahead. Never below the radius
    from p_A alone with the same a (b_k <= -a_k); exact where a_1 + b_1 = a_2 + b_2. K = 1: sigma (a - b) / 2.

    Args:
        a_lower: float64 [..., K], lower bounds of Phi^-1(p_A).
        b_upper: float64 [..., K], upper bounds of Phi^-1(p_B).
        sigmas: K noise standard deviations, pixel units.

    Returns:
        float64 [...], pixel units; <= 0 where nothing is certified.

    Raises:
        ValueError: K > 2, or not K positive sigmas.
    """
    if a_lower.shape[-1] == 1:
        return margins(a_lower, b_upper, sigmas)[..., 0]
    if a_lower.shape[-1] > 2:
        raise ValueError(f"the mean vote has no radius for K = {a_lower.shape[-1]} > 2; use the probit vote")
    cost = np.linalg.norm(1 / _one_each("sigmas", sigmas, 2))
    return np.asarray((a_lower - b_upper[..., ::-1]).min(axis=-1) / cost, np.float64)


def _one_each(name: str, values: Sequence[float], sub_images: int) -> Floats:
    """Require one positive number per sub-image: numpy would broadcast a single one, which makes radii too large."""
    array = np.asarray(values, np.float64)
    if array.shape != (sub_images,) or not np.all(np.isfinite(array) & (array > 0)):
        raise ValueError(f"{name} must be {sub_images} positive numbers, one per sub-image, got {list(values)}")
    return array
