"""The methods' losses against values computed by hand; attacks stay in their ball and on their own pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drs_ray.config import TrainingConfig
from drs_ray.smoothing.partition import Partition, make_partition
from drs_ray.training.consistency import consistency_loss, disagreement
from drs_ray.training.gaussian import gaussian_loss
from drs_ray.training.methods import loss_of
from drs_ray.training.smoothadv import attack, smoothadv_loss
from drs_ray.training.trainee import Trainee
from tests.support.losses import LABELS, NOISES, VALUES, WEIGHT, WHOLE, Scripted, gradient_of, linear, noisy, softmax
from tests.support.partitions import collect


def test_gaussian_is_the_cross_entropy_of_the_noisy_values() -> None:
    module = linear(WEIGHT)
    loss, logits = gaussian_loss(Trainee(module, WHOLE, (0,)), VALUES, LABELS, Scripted(NOISES[0]), label_smoothing=0.1)
    expected = noisy(0) @ np.array(WEIGHT).T
    assert logits.detach().numpy() == pytest.approx(expected)
    target = np.array([[0.95, 0.05], [0.05, 0.95]])
    assert loss.item() == pytest.approx(-(target * np.log(softmax(expected))).sum(axis=1).mean())
    # d loss / d weight = mean of (answer - target) x input
    by_hand = (softmax(expected) - target).T @ noisy(0) / 2
    assert gradient_of(loss, module) == pytest.approx(by_hand, abs=1e-6)


def _consistency_by_hand(weight: np.ndarray, kl_weight: float, entropy_weight: float) -> float:
    answers = [softmax(noisy(copy) @ weight.T) for copy in (0, 1)]
    mean = (answers[0] + answers[1]) / 2
    cross_entropy = -sum(np.log(answer[[0, 1], [0, 1]]).mean() for answer in answers) / 2
    divergence = sum((mean * np.log(mean / answer)).sum(axis=1) for answer in answers) / 2
    entropy = -(mean * np.log(mean)).sum(axis=1)
    return float(cross_entropy + (kl_weight * divergence + entropy_weight * entropy).mean())


@pytest.mark.parametrize(("kl_weight", "entropy_weight"), [(10.0, 0.5), (0.0, 0.5), (3.0, 0.0), (0.0, 0.0)])
def test_consistency_is_the_papers_formula(kl_weight: float, entropy_weight: float) -> None:
    module = linear(WEIGHT)
    loss, logits = consistency_loss(
        Trainee(module, WHOLE, (0,)),
        VALUES,
        LABELS,
        Scripted(*NOISES),
        copies=2,
        kl_weight=kl_weight,
        entropy_weight=entropy_weight,
        label_smoothing=0.0,
    )
    weight = np.array(WEIGHT)
    assert loss.item() == pytest.approx(_consistency_by_hand(weight, kl_weight, entropy_weight), rel=1e-5)
    assert logits.detach().numpy() == pytest.approx(noisy(0) @ weight.T)
    gradient = gradient_of(loss, module)
    for at in np.ndindex(2, 2):
        step = np.zeros((2, 2))
        step[at] = 1e-6
        up, down = (_consistency_by_hand(weight + sign * step, kl_weight, entropy_weight) for sign in (1, -1))
        assert gradient[at] == pytest.approx((up - down) / 2e-6, abs=1e-4)


@pytest.mark.parametrize("copies", [1, 2])
def test_consistency_across_sub_images_is_the_formula_with_their_answers_as_copies(copies: int) -> None:
    """Two pixels of two images, each a sub-image of its own: the answers of a network of one pixel."""
    partition = make_partition("interleave", 1, 2, "packed", interleave=(1, 2))
    module = linear([[1.0], [-2.0]])
    images = torch.tensor([[[[0.25, 0.75]]], [[[0.5, 1.0]]]])
    trainee = Trainee(module, partition, (0, 1))
    values = trainee.values(images)
    assert values.tolist() == [[[0.25], [0.75]], [[0.5], [1.0]]]
    noises = [np.array([[[0.5], [-0.25]], [[0.125], [-0.5]]]), np.array([[[0.0], [1.0]], [[2.0], [-1.0]]])][:copies]
    drawn = iter(noises)
    loss, logits = consistency_loss(
        trainee,
        values,
        LABELS,
        lambda values: torch.tensor(next(drawn), dtype=torch.float32),
        copies=2 * copies,
        kl_weight=3.0,
        entropy_weight=0.5,
        label_smoothing=0.0,
    )
    noisy_pixels = [(values.numpy() + noise)[:, sub_image] for sub_image in (0, 1) for noise in noises]
    answers = [softmax(pixel @ np.array([[1.0, -2.0]])) for pixel in noisy_pixels]
    mean = sum(answers) / len(answers)
    cross_entropy = -np.mean([np.log(answer[[0, 1], LABELS]).mean() for answer in answers])
    divergence = np.mean([(mean * np.log(mean / answer)).sum(axis=1) for answer in answers], axis=0)
    entropy = -(mean * np.log(mean)).sum(axis=1)
    assert loss.item() == pytest.approx(cross_entropy + (3 * divergence + 0.5 * entropy).mean(), rel=1e-5)
    assert logits.detach().numpy() == pytest.approx(noisy_pixels[0] @ np.array([[1.0, -2.0]]))


def test_copies_that_are_sure_and_agree_cost_nothing() -> None:
    agreed = torch.tensor([[[20.0, -20.0]], [[20.0, -20.0]]])
    assert disagreement(agreed, 10.0, 0.5).item() == pytest.approx(0.0, abs=1e-6)
    unsure = torch.zeros(3, 4, 2)
    assert disagreement(unsure, 10.0, 0.5).item() == pytest.approx(0.5 * math.log(2))
    apart = torch.tensor([[[90.0, 0.0]], [[0.0, 90.0]]])  # no infinity, no NaN
    assert disagreement(apart, 1.0, 0.0).item() == pytest.approx(45 - math.log(2))


def test_smoothadv_trains_on_the_attacked_values_under_the_same_noise() -> None:
    """Two classes and a linear classifier: every step goes straight along the difference of their weights."""
    weight = [[1.0, 0.0], [0.0, 0.0]]
    module = linear(weight)
    values, labels = torch.tensor([[[0.5, 0.5]]]), torch.tensor([0])
    noises = ([[0.25, 0.0]], [[-0.5, 0.0]])
    loss, logits = smoothadv_loss(
        Trainee(module, WHOLE, (0,)),
        values,
        labels,
        Scripted(*noises),
        epoch=3,
        copies=2,
        steps=4,
        epsilon=0.4,
        warm_up=6,
        label_smoothing=0.0,
    )
    # Half of the warm-up is over: radius 0.2, reached after two of the four steps of 0.1, along (-1, 0).
    margins = np.array([0.3 + 0.25, 0.3 - 0.5])
    assert logits.detach().numpy() == pytest.approx(np.array([[margins[0], 0.0]]), abs=1e-6)
    assert loss.item() == pytest.approx(np.log1p(np.exp(-margins)).mean(), rel=1e-5)


def test_an_attack_ascends_the_mean_answers_loss_not_the_mean_loss() -> None:
    """Salman et al.'s -log of the mean, not the mean of the logs: the first step follows its gradient exactly."""
    module = linear([[2.0, 1.0], [-1.0, 3.0]])
    values, labels = torch.tensor([[[0.5, 0.5]]]), torch.tensor([0])
    drawn = torch.tensor([[[[1.5, -0.5]]], [[[-2.0, 1.0]]]])
    answers = softmax((values[0].numpy() + drawn[:, 0, 0].numpy()) @ np.array([[2.0, 1.0], [-1.0, 3.0]]).T)
    difference = np.array([3.0, -2.0])  # of the two classes' weights
    # d/dx -log(1/m sum p_i) = -sum p_i (1 - p_i) difference / sum p_i, whose direction is -difference for any noise
    direction = -(answers[:, 0] * (1 - answers[:, 0])).sum() / answers[:, 0].sum() * difference
    moved = attack(Trainee(module, WHOLE, (0,)), values, labels, drawn, steps=2, step_size=0.1, epsilon=0.1) - values
    assert moved[0, 0].numpy() == pytest.approx(0.1 * direction / np.linalg.norm(direction), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("none", "packed"), ("checkerboard", "packed"), ("checkerboard", "masked"), ("checkerboard-2024", "filled")],
)
@pytest.mark.parametrize("epsilon", [0.05, 0.5, 3.0, math.inf])
def test_an_attack_stays_in_its_ball_and_on_its_own_pixels(name: str, layout: str, epsilon: float) -> None:
    partition = make_partition(name, 5, 5, layout)
    generator = torch.Generator().manual_seed(0)
    channels, height, width = partition.layout_shape(0, 2)
    seen: list[Tensor] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.BatchNorm2d(channels), nn.Linear(channels * height * width, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.detach())
            logits: Tensor = self.linear(self.norm(inputs).flatten(1))
            return logits

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Watched().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    images = torch.rand(7, 2, 5, 5, generator=generator)
    images[:, 0] = images[:, 0].round()  # pixels at the ends of their range
    values = partition.extract(images, 0)
    drawn = 0.5 * torch.randn(2, *values.shape, generator=generator)
    labels = torch.arange(7) % 3
    step_size = 1.0 if math.isinf(epsilon) else 2 * epsilon / 5
    moved = attack(
        Trainee(module, partition, (0,)), values, labels, drawn, steps=5, step_size=step_size, epsilon=epsilon
    )
    assert moved.shape == values.shape
    assert not moved.requires_grad
    distance = (moved - values).flatten(1).norm(dim=1)
    assert torch.all(distance <= epsilon * (1 + 1e-5))
    assert torch.all(distance <= 5 * step_size)
    assert torch.all(distance > step_size / 4)
    assert moved.min() >= 0
    assert moved.max() <= 1
    empty = ~partition.arrange(torch.ones(2, values.shape[-1]), 0).bool()
    assert len(seen) == 5
    assert all(torch.all(inputs[:, empty] == 0) for inputs in seen)  # the attack never left the own pixels
    # The classifier is as it was: weights, statistics, mode.
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert module.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in module.parameters())


def test_an_attack_on_a_constant_classifier_moves_nothing() -> None:
    trainee = Trainee(linear([[0.0, 0.0], [0.0, 0.0]]), WHOLE, (0,))
    moved = attack(trainee, VALUES, LABELS, torch.zeros(1, 2, 1, 2), steps=3, step_size=1.0)
    assert torch.equal(moved, VALUES)


def test_weights_that_were_fixed_stay_fixed_after_an_attack() -> None:
    module = linear(WEIGHT)
    module.requires_grad_(False)
    attack(Trainee(module, WHOLE, (0,)), VALUES, LABELS, torch.zeros(1, 2, 1, 2), steps=1, step_size=1.0)
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_config_chooses_the_loss() -> None:
    def loss(**changed: object) -> float:
        training = TrainingConfig(label_smoothing=0.0, **changed)  # type: ignore[arg-type]
        generator = torch.Generator().manual_seed(0)
        noise = lambda values: torch.randn(values.shape, generator=generator)  # noqa: E731
        return loss_of(training, 0.5)(Trainee(linear(WEIGHT), WHOLE, (0,)), VALUES, LABELS, noise, 1)[0].item()

    methods = ("gaussian", "consistency", "smoothadv", "macer", "smoothmix")
    losses = [loss(method=method) for method in methods]
    assert len(set(losses)) == len(methods)
    assert loss(consistency={"kl_weight": 1.0}) == losses[0]
    without = loss(method="consistency", consistency={"kl_weight": 0.0, "entropy_weight": 0.0})
    assert losses[1] > without


@pytest.mark.parametrize("sub_image", [0, 1])
@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_noise_is_on_own_pixels_alone(layout: str, sub_image: int) -> None:
    # 5x5: packed rows of unequal length end in an empty cell.
    partition = make_partition("checkerboard", 5, 5, layout)
    images = torch.rand(2000, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    inputs = _inputs(images, partition, sub_image)
    assert inputs.shape == (2000, *partition.layout_shape(sub_image, 3))
    values = partition.extract(images, sub_image)
    noise = collect(partition, inputs, sub_image) - values
    own = partition.arrange(torch.ones(3, values.shape[-1]), sub_image).bool()
    assert not torch.all(own)
    assert torch.all(inputs[:, ~own] == 0)
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 0.7) < 0.01
    assert torch.unique(noise).numel() > 0.9 * noise.numel()  # no two pixels, channels or images share noise
    other = images.clone()
    other.flatten(-2)[..., partition.pixels(1 - sub_image)] = 9.0
    again = _inputs(other, partition, sub_image)
    assert torch.equal(again, inputs)  # the other sub-image's pixels are not read


@pytest.mark.parametrize("method", ["consistency", "smoothadv", "macer", "smoothmix"])
@pytest.mark.parametrize(("name", "layout"), [("checkerboard", "packed"), ("checkerboard-2024", "filled")])
def test_every_method_stays_on_own_pixels(method: str, name: str, layout: str) -> None:
    partition = make_partition(name, 5, 5, layout)
    channels, height, width = partition.layout_shape(0, 1)
    seen: list[Tensor] = []
    weight = torch.randn(3, channels * height * width, generator=torch.Generator().manual_seed(2))

    class Seeing(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.detach())
            return inputs.flatten(1) @ weight.T

    generator = torch.Generator().manual_seed(1)
    noise = lambda values: 0.7 * torch.randn(values.shape, generator=generator)  # noqa: E731
    images = torch.rand(6, 1, 5, 5, generator=generator)
    loss = loss_of(TrainingConfig(method=method), 0.7)  # type: ignore[arg-type]
    loss(Trainee(Seeing(), partition, (0,)), partition.extract(images, 0), torch.arange(6) % 3, noise, 5)
    own = partition.arrange(torch.ones(1, len(partition.pixels(0))), 0).bool()
    assert not torch.all(own)
    assert seen
    assert all(torch.all(inputs[:, ~own] == 0) and torch.any(inputs[:, own] != 0) for inputs in seen)


def _inputs(images: Tensor, partition: Partition, sub_image: int) -> Tensor:
    """What a sub-image's classifier is given in a step of Gaussian training with sigma 0.7."""
    seen: list[Tensor] = []

    class Seeing(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs)
            return inputs.flatten(1)[:, :2]

    generator = torch.Generator().manual_seed(1)
    noise = lambda values: 0.7 * torch.randn(values.shape, generator=generator)  # noqa: E731
    labels = torch.zeros(len(images), dtype=torch.int64)
    trainee = Trainee(Seeing(), partition, (sub_image,))
    gaussian_loss(trainee, partition.extract(images, sub_image), labels, noise, label_smoothing=0.0)
    return seen[0]
