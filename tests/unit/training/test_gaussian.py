"""Training under noise: it learns, repeats itself for a seed, and adds noise to the sub-image's own pixels alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import build_architecture
from drs_ray.models.tensors import module_digest
from drs_ray.smoothing.partition import make_partition
from drs_ray.training.gaussian import augment, noisy_sub_images, schedule, train_classifier


def _images(count: int = 120) -> tuple[Tensor, Tensor]:
    """Bright left half or bright right half, 8x8: easy, and each checkerboard half shows it."""
    labels = torch.arange(count) % 2
    images = torch.zeros(count, 1, 8, 8)
    images[labels == 0, :, :, :4] = 1
    images[labels == 1, :, :, 4:] = 1
    return images, labels


def _train(
    seed: int, partition_name: str = "checkerboard", layout: str = "packed", sub_image: int = 1, **changed: object
) -> tuple[nn.Module, list[tuple[int, int, float, float]]]:
    partition = make_partition(partition_name, 8, 8, layout)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_architecture("digits-cnn", partition.layout_shape(sub_image, 1), 2, {"width": 4})
    epochs: list[tuple[int, int, float, float]] = []
    settings = {"sigma": 0.5, "epochs": 10, "batch": 16, "learning_rate": 0.01, "seed": seed, "shift": 1, "flip": False}
    train_classifier(
        module,
        *_images(),
        partition,
        sub_image,
        on_epoch=lambda *report: epochs.append(report),
        **{**settings, **changed},  # type: ignore[arg-type]
    )
    return module, epochs


@pytest.mark.parametrize(
    ("name", "layout"), [("none", "packed"), ("checkerboard", "packed"), ("checkerboard", "masked")]
)
def test_training_learns_and_reports_every_epoch(name: str, layout: str) -> None:
    module, epochs = _train(0, name, layout, sub_image=0)
    assert [(epoch, count) for epoch, count, _, _ in epochs] == [(epoch, 10) for epoch in range(1, 11)]
    losses, accuracies = [e[2] for e in epochs], [e[3] for e in epochs]
    assert losses[0] > 0.4
    assert losses[-1] < 0.1
    assert accuracies[-1] > 0.95
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)
    assert not module.training


def test_a_seed_gives_the_same_weights_whatever_the_global_generator_does() -> None:
    torch.manual_seed(1)
    first, _ = _train(7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, _ = _train(7)
    assert torch.equal(torch.get_rng_state(), before)
    other, _ = _train(8)
    assert module_digest(first) == module_digest(again)
    assert module_digest(first) != module_digest(other)


@pytest.mark.parametrize(
    "change", [{"label_smoothing": 0.2}, {"shift": 0}, {"flip": True}, {"weight_decay": 0.5}, {"sigma": 0.25}]
)
def test_every_setting_has_an_effect(change: dict[str, object]) -> None:
    assert module_digest(_train(7)[0]) != module_digest(_train(7, **change)[0])


@pytest.mark.parametrize("sub_image", [0, 1])
@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_noise_is_on_own_pixels_alone(layout: str, sub_image: int) -> None:
    # 5x5: packed rows of unequal length end in an empty cell.
    partition = make_partition("checkerboard", 5, 5, layout)
    images = torch.rand(2000, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    inputs = noisy_sub_images(images, partition, sub_image, 0.7, torch.Generator().manual_seed(1))
    assert inputs.shape == (2000, *partition.layout_shape(sub_image, 3))
    values = partition.extract(images, sub_image)
    noise = partition.collect(inputs, sub_image) - values
    own = partition.arrange(torch.ones(3, values.shape[-1]), sub_image).bool()
    assert not torch.all(own)
    assert torch.all(inputs[:, ~own] == 0)
    assert abs(noise.mean().item()) < 0.01
    assert abs(noise.std().item() - 0.7) < 0.01
    assert torch.unique(noise).numel() > 0.9 * noise.numel()  # no two pixels, channels or images share noise
    other = images.clone()
    other.flatten(-2)[..., partition.pixels(1 - sub_image)] = 9.0
    again = noisy_sub_images(other, partition, sub_image, 0.7, torch.Generator().manual_seed(1))
    assert torch.equal(again, inputs)  # the other sub-image's pixels are not read


def test_shifts_move_whole_images_and_fill_with_zero() -> None:
    images = torch.zeros(500, 2, 6, 7)
    images[:, 0, 3, 3] = 1
    images[:, 1, 3, 4] = 2
    moved = augment(images, 2, False, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    places = moved[:, 0].nonzero()
    assert len(places) == 500  # one per image: nothing is lost or doubled
    offsets = {(int(row) - 3, int(column) - 3) for _, row, column in places}
    assert offsets == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}
    assert torch.equal(moved[:, 0].roll(1, dims=-1) * 2, moved[:, 1])  # channels move together
    edge = torch.ones(50, 1, 4, 4)
    sums = augment(edge, 1, False, torch.Generator().manual_seed(0)).sum(dim=(1, 2, 3))
    assert set(sums.tolist()) == {9.0, 12.0, 16.0}  # what leaves does not come back on the other side


def test_flips_mirror_about_half_of_the_images() -> None:
    images = torch.rand(400, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    flipped = augment(images, 0, True, torch.Generator().manual_seed(1))
    same = (flipped == images).all(dim=(1, 2, 3))
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    assert torch.all(same ^ mirrored)
    assert 160 < same.sum() < 240
    assert augment(images, 0, False, torch.Generator()) is images


def test_the_learning_rate_rises_peaks_and_falls_to_almost_nothing() -> None:
    rates = [schedule(step / 100) for step in range(100)]
    peak = rates.index(max(rates))
    assert 0 < rates[0] < 0.1
    assert max(rates) == pytest.approx(1.0)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 <= rates[-1] < 0.01


def test_divergence_is_reported_at_once() -> None:
    class Explode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2] * (self.w + math.nan)

    calls: list[int] = []
    report: Callable[[int, int, float, float], None] = lambda epoch, *_: calls.append(epoch)  # noqa: E731
    partition = make_partition("none", 8, 8, "packed")
    with pytest.raises(
        ClassifierError, match=r"sub-image 0: training diverged in epoch 1 .*lower training.learning_rate"
    ):
        train_classifier(
            Explode(), *_images(), partition, 0, sigma=1.0, epochs=3, batch=16, learning_rate=0.1, on_epoch=report
        )
    assert calls == []
