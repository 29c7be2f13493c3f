"""The losses of `macer` and `smoothmix` and their gradients against the papers' formulas, step by step in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import norm

from drs_ray.training.macer import macer_loss, radius_hinge
from drs_ray.training.smoothmix import smoothmix_loss, unsureness
from drs_ray.training.trainee import Trainee
from tests.support.losses import LABELS, NOISES, VALUES, WHOLE, Scripted, gradient_of, linear, noisy, softmax

THREE = [[2.0, -1.0], [-0.5, 1.5], [0.5, 0.25]]
"""Weights of three classes: the mean answer to the first image of VALUES is class 0, to the second class 1."""


def _by_differences(function: Callable[[np.ndarray], float], at: list[list[float]]) -> np.ndarray:
    """The gradient of a function of weights, in float64."""
    result = np.zeros((len(at), 2))
    for place in np.ndindex(*result.shape):
        step = np.zeros_like(result)
        step[place] = 1e-5
        result[place] = (function(np.array(at) + step) - function(np.array(at) - step)) / 2e-5
    return result


def _macer_by_hand(weight: np.ndarray, labels: list[int], beta: float, gamma: float) -> tuple[float, list[float]]:
    """The loss with lambda 3 and sigma 0.5, and the hinges of the correct images (Zhai et al. 2020, algorithm 1)."""
    cross_entropy, hinges = 0.0, []
    for image, label in enumerate(labels):
        logits = [noisy(copy)[image] @ weight.T for copy in (0, 1)]
        soft = (softmax(logits[0]) + softmax(logits[1])) / 2
        cross_entropy -= np.log(soft[label])
        sharp = (softmax(beta * logits[0]) + softmax(beta * logits[1])) / 2
        if sharp.argmax() == label:
            second = max(value for c, value in enumerate(sharp) if c != label)
            hinges.append(max(0.0, gamma - (norm.ppf(sharp[label]) - norm.ppf(second))))
    return (cross_entropy + 3.0 * 0.5 / 2 * sum(hinges)) / len(labels), hinges


@pytest.mark.parametrize(
    ("labels", "beta", "gamma", "counted"),
    [([0, 1], 1.0, 8.0, 2), ([0, 1], 4.0, 8.0, 2), ([0, 1], 1.0, 1.0, 1), ([0, 2], 2.0, 8.0, 1), ([1, 2], 2.0, 8.0, 0)],
)
def test_macer_is_the_papers_formula(labels: list[int], beta: float, gamma: float, counted: int) -> None:
    module = linear(THREE)
    loss, logits = macer_loss(
        Trainee(module, WHOLE, (0,)),
        VALUES,
        torch.tensor(labels),
        Scripted(*NOISES),
        sigma=0.5,
        copies=2,
        radius_weight=3.0,
        inverse_temperature=beta,
        margin=gamma,
        label_smoothing=0.0,
    )
    expected, hinges = _macer_by_hand(np.array(THREE), labels, beta, gamma)
    assert sum(hinge > 0 for hinge in hinges) == counted
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert logits.detach().numpy() == pytest.approx(noisy(0) @ np.array(THREE).T)
    by_hand = _by_differences(lambda weight: _macer_by_hand(weight, labels, beta, gamma)[0], THREE)
    assert gradient_of(loss, module) == pytest.approx(by_hand, abs=1e-4)


@pytest.mark.parametrize("gap", [8.0, 30.0, 1000.0])
def test_macer_has_finite_gradients_at_sure_answers(gap: float) -> None:
    """Also where one more copy is unsure, and where a probability rounds to 0 or 1."""
    logits = torch.tensor([[[gap, 0.0, -gap], [gap, 0.0, -gap]], [[gap, 0.0, -gap], [0.1, 0.0, 0.0]]])
    logits.requires_grad_(True)
    hinge = radius_hinge(logits, torch.tensor([0, 0]), sigma=1.0, margin=10.0)
    (gradient,) = torch.autograd.grad(hinge, logits)
    assert torch.all(torch.isfinite(gradient))
    assert torch.any(gradient[:, 1] != 0)
    assert bool(torch.any(gradient[:, 0] != 0)) is (gap < 10)


def _smoothmix_by_hand(weight: np.ndarray, adversarial: np.ndarray, share: np.ndarray, start: np.ndarray) -> float:
    """The loss with weight 0.75 of the mixtures and labels 0, 1, for fixed adversarial images (Jeong et al. 2021)."""
    total = 0.0
    for image, label in enumerate([0, 1]):
        noises = [np.array(NOISES[copy])[image] for copy in (0, 1)]
        clean = [softmax((start[image] + noise) @ weight.T) for noise in noises]
        mean = (clean[0] + clean[1]) / 2
        total -= sum(np.log(answer[label]) for answer in clean) / 2
        mixture = (1 - share[image]) * start[image] + share[image] * adversarial[image]
        target = (1 - share[image]) * mean + share[image] / 3
        if mean.argmax() == label:
            for noise in noises:
                answer = softmax((mixture + noise) @ weight.T)
                total += 0.75 * (target * np.log(target / answer)).sum() / 2
    return float(total) / 2


def _ascended(start: np.ndarray, label: int, image: int, steps: int) -> np.ndarray:
    """Steps of length 0.4 up -log of the mean answer, by numerical derivatives, each clipped to pixels."""

    def loss(pixels: np.ndarray) -> float:
        logits = [(pixels + np.array(NOISES[copy])[image]) @ np.array(THREE).T for copy in (0, 1)]
        return -float(np.log((softmax(logits[0])[label] + softmax(logits[1])[label]) / 2))

    pixels = start.astype(float)
    for _ in range(steps):
        axes = np.eye(2) * 1e-6
        gradient = np.array([loss(pixels + axis) - loss(pixels - axis) for axis in axes])
        pixels = np.clip(pixels + 0.4 * gradient / np.linalg.norm(gradient), 0, 1)
    return pixels


@pytest.mark.parametrize("one_step", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_smoothmix_is_the_papers_formula(one_step: bool, steps: int) -> None:
    module = linear(THREE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        share = torch.rand(2).double().numpy() / 2
        torch.manual_seed(5)
        loss, logits = smoothmix_loss(
            Trainee(module, WHOLE, (0,)),
            VALUES,
            LABELS,
            Scripted(*NOISES),
            epoch=2,
            copies=2,
            steps=steps,
            step_size=0.4,
            mix_weight=1.5,  # half of it at epoch 2 of 4
            one_step=one_step,
            warm_up=4,
            label_smoothing=0.0,
        )
    start = VALUES[:, 0].double().numpy()
    adversarial = np.array([_ascended(start[image], image, image, steps) for image in (0, 1)])
    if one_step:
        for image in (0, 1):
            step = _ascended(start[image], image, image, 1) - start[image]
            start[image] += step * min(1.0, 0.2 / np.linalg.norm(step))  # half of its length, too
    expected = _smoothmix_by_hand(np.array(THREE), adversarial, share, start)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    first = (start + np.array(NOISES[0])) @ np.array(THREE).T
    assert logits.detach().numpy() == pytest.approx(first, abs=1e-5)
    by_hand = _by_differences(lambda weight: _smoothmix_by_hand(weight, adversarial, share, start), THREE)
    assert gradient_of(loss, module) == pytest.approx(by_hand, abs=1e-4)


def test_smoothmix_leaves_out_images_that_are_wrong() -> None:
    sure = torch.tensor([[[9.0, 0.0], [0.0, 9.0]]])
    mixed, share = torch.tensor([[[0.0, 3.0], [3.0, 0.0]]]), torch.tensor([0.0, 0.5])
    both, first, none = (
        unsureness(sure, mixed, torch.tensor(labels), share).item() for labels in ([0, 1], [0, 0], [1, 0])
    )
    assert both > first > none == 0.0
