"""Schedules of the learning rate, and an optimizer that forgets nothing on its way through a file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from drs_ray.config import TrainingConfig
from drs_ray.training.optimization import make_optimizer, optimizer_tensors, rate, restore_optimizer


def test_the_learning_rate_rises_peaks_and_falls_to_almost_nothing() -> None:
    training = TrainingConfig()
    rates = [rate(training, step / 100) for step in range(100)]
    peak = rates.index(max(rates))
    assert 0 < rates[0] < 0.1
    assert max(rates) == pytest.approx(1.0)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert 0 <= rates[-1] < 0.01


def test_a_cosine_begins_at_its_peak() -> None:
    training = TrainingConfig(schedule="cosine")
    assert [rate(training, progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize("per_epoch", [1, 3, 391])
def test_steps_fall_to_a_tenth_between_epochs(per_epoch: int) -> None:
    training = TrainingConfig(schedule="step", epochs=90, step_epochs=30)
    steps = 90 * per_epoch
    for step in range(steps):
        assert rate(training, step / steps) == pytest.approx(0.1 ** (step // per_epoch // 30))


def test_a_step_of_each_optimizer_is_what_its_formula_says() -> None:
    for name, expected in (
        ("sgd", [1 - 0.1 * (3 + 0.01 * 1.0)]),
        ("adamw", [1 * (1 - 0.1 * 0.01) - 0.1 * 3 / (3 + 1e-8)]),
    ):
        module = nn.Linear(1, 1, bias=False)
        nn.init.ones_(module.weight)
        optimizer = make_optimizer(module, TrainingConfig(optimizer=name, learning_rate=0.1, weight_decay=0.01))
        (3 * module.weight).sum().backward()
        optimizer.step()
        assert module.weight.flatten().tolist() == pytest.approx(expected)


@pytest.mark.parametrize("change", [{"optimizer": "adamw"}, {"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0}])
def test_an_optimizer_goes_on_as_if_nothing_had_been(change: dict[str, object]) -> None:
    training = TrainingConfig(**change)  # type: ignore[arg-type]

    def steps(module: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            module(torch.tensor([[1.0, 2.0]])).square().sum().backward()
            optimizer.step()

    torch.manual_seed(0)
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    optimizer = make_optimizer(first, training)
    steps(first, optimizer, 3)
    second.load_state_dict(first.state_dict())
    restored = make_optimizer(second, training)
    if tensors := optimizer_tensors(optimizer):
        restore_optimizer(restored, tensors)
    steps(first, optimizer, 3)
    steps(second, restored, 3)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
