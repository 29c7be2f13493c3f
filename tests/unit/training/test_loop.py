"""The training loop: it learns, repeats itself for a seed, goes on from any epoch, and shares batches evenly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drs_ray.config import TrainingConfig
from drs_ray.data.arrays import ArrayDataset
from drs_ray.errors import ClassifierError
from drs_ray.models.architectures import build_architecture
from drs_ray.models.tensors import module_digest
from drs_ray.smoothing.partition import make_partition
from drs_ray.training import loop
from drs_ray.training.loop import EpochDone, ImagesDone, Place, Report, _batches, derived_seed, train_network
from drs_ray.training.state import TrainingState, load_state, save_state, weights_of

METHODS = [
    {"method": "gaussian"},
    {"method": "consistency"},
    {"method": "smoothadv", "smoothadv": {"steps": 2, "warm_up": 2}},
    {"method": "macer", "macer": {"copies": 3, "radius_weight": 1.0}},
    {"method": "smoothmix", "smoothmix": {"steps": 2, "warm_up": 2}},
]
ACROSS = {"method": "consistency", "consistency": {"across": True, "copies": 4}}


def _dataset(count: int = 120, channels: int = 1) -> ArrayDataset:
    """Bright left half or bright right half, 8x8: easy, and each checkerboard half shows it."""
    labels = np.arange(count) % 2
    pixels = np.zeros((count, channels, 8, 8), np.uint8)
    pixels[labels == 0, :, :, :4] = 255
    pixels[labels == 1, :, :, 4:] = 255
    return ArrayDataset("halves", "train", 2, pixels, labels)


def _module(partition: Any, sub_image: int, dropout: float = 0.0, channels: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build_architecture("digits-cnn", partition.layout_shape(sub_image, channels), 2, {"width": 4})
    return nn.Sequential(nn.Dropout(dropout), network) if dropout else network


def _train(
    seed: int,
    partition_name: str = "checkerboard",
    layout: str = "packed",
    sub_image: int = 1,
    start: TrainingState | None = None,
    dropout: float = 0.0,
    channels: int = 1,
    warnings: list[str] | None = None,
    **changed: Any,
) -> tuple[nn.Module, list[EpochDone]]:
    partition = make_partition(partition_name, 8, 8, layout)
    module = _module(partition, sub_image, dropout, channels)
    epochs: list[EpochDone] = []

    def hear(report: Report) -> None:
        if isinstance(report, EpochDone):
            epochs.append(report)
        elif isinstance(report, str) and warnings is not None:
            warnings.append(report)

    settings = {"epochs": 10, "batch": 16, "learning_rate": 0.01, "shift": 1, "label_smoothing": 0.0, **changed}
    sigma = settings.pop("sigma", 0.5)
    train_network(
        module,
        _dataset(channels=channels),
        partition,
        [sub_image],
        sigma,
        TrainingConfig(**settings),
        seed=seed,
        start=start,
        on_report=hear,
    )
    return module, epochs


@pytest.mark.parametrize(
    ("name", "layout"), [("none", "packed"), ("checkerboard", "packed"), ("checkerboard", "masked")]
)
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["method"])
def test_training_learns_and_reports_every_epoch(name: str, layout: str, method: dict[str, Any]) -> None:
    module, epochs = _train(0, name, layout, sub_image=0, **method)
    assert [done.epoch for done in epochs] == list(range(1, 11))
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].accuracy > 0.9
    assert all(0 <= done.accuracy <= 1 for done in epochs)
    assert not module.training
    assert all(parameter.requires_grad for parameter in module.parameters())


def test_the_loss_of_gaussian_training_is_the_cross_entropy() -> None:
    losses = [done.loss for done in _train(0)[1]]
    assert losses[0] > 0.4
    assert losses[-1] < 0.1


def test_a_seed_gives_the_same_weights_whatever_the_global_generator_does() -> None:
    torch.manual_seed(1)
    first, _ = _train(7, dropout=0.2)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    again, _ = _train(7, dropout=0.2)
    assert torch.equal(torch.get_rng_state(), before)
    other, _ = _train(8, dropout=0.2)
    assert module_digest(first) == module_digest(again)
    assert module_digest(first) != module_digest(other)


def test_a_state_of_another_kind_of_device_goes_on_with_other_noise() -> None:
    half, epochs = _train(7, epochs=2, checkpoint_every=1)
    state = epochs[0].state
    assert state is not None
    there = replace(state, generator=torch.zeros(16, dtype=torch.uint8))  # the size of a state of CUDA's generator
    warnings: list[str] = []
    resumed, again = _train(7, epochs=2, start=there, warnings=warnings)
    assert [done.epoch for done in again] == [2]
    assert module_digest(resumed) == module_digest(_train(7, epochs=2, start=there)[0])
    assert module_digest(resumed) != module_digest(half)
    first_epochs_noise = _train(7, epochs=2, start=replace(state, generator=None))[0]
    assert module_digest(resumed) != module_digest(first_epochs_noise)
    assert warnings == [
        "sub-image 1: the state is of another kind of device than cpu: the order and noise of the remaining epochs "
        "differ from those of an undisturbed training; go on there to keep them"
    ]


def test_every_setting_has_an_effect() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"label_smoothing": 0.2},
        {"shift": 0},
        {"flip": True},
        {"weight_decay": 0.5},
        {"sigma": 0.25},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "momentum": 0.5},
        {"schedule": "cosine"},
        {"schedule": "step", "step_epochs": 2},
        *METHODS[1:],
        {"method": "consistency", "consistency": {"kl_weight": 1.0}},
        {"method": "consistency", "consistency": {"entropy_weight": 0.0}},
        {"method": "consistency", "consistency": {"copies": 3}},
        {"method": "smoothadv", "smoothadv": {"steps": 2, "epsilon": 0.1}},
        {"method": "smoothadv", "smoothadv": {"steps": 2, "copies": 1}},
        {"method": "smoothadv", "smoothadv": {"steps": 2}},
        {"method": "macer", "macer": {"copies": 2}},
        {"method": "macer", "macer": {"copies": 3}},
        {"method": "macer", "macer": {"copies": 3, "inverse_temperature": 2.0}},
        {"method": "macer", "macer": {"copies": 3, "margin": 2.0}},
        {"method": "smoothmix", "smoothmix": {"steps": 2}},
        {"method": "smoothmix", "smoothmix": {"steps": 1}},
        {"method": "smoothmix", "smoothmix": {"steps": 2, "copies": 1}},
        {"method": "smoothmix", "smoothmix": {"steps": 2, "step_size": 0.5}},
        {"method": "smoothmix", "smoothmix": {"steps": 2, "mix_weight": 1.0}},
        {"method": "smoothmix", "smoothmix": {"steps": 2, "one_step": True}},
    ]
    digests = {module_digest(_train(7, epochs=3, **change)[0]) for change in changes}
    assert len(digests) == len(changes)


@pytest.mark.parametrize("loaders", [0, 2])
def test_reading_ahead_changes_nothing(loaders: int) -> None:
    assert module_digest(_train(3, epochs=2, loaders=loaders)[0]) == module_digest(_train(3, epochs=2)[0])


@pytest.mark.parametrize("change", [*METHODS, {"optimizer": "sgd", "schedule": "step", "step_epochs": 2}])
def test_training_goes_on_from_any_state_to_the_same_weights(change: dict[str, Any]) -> None:
    undisturbed, epochs = _train(5, epochs=4, dropout=0.2, **change)
    for done in epochs:
        assert done.state is not None
        again, rest = _train(5, epochs=4, dropout=0.2, start=done.state, **change)
        assert module_digest(again) == module_digest(undisturbed)
        assert [(e.epoch, e.loss, e.accuracy) for e in rest] == [
            (e.epoch, e.loss, e.accuracy) for e in epochs[done.epoch :]
        ]


class _Inputs(nn.Module):
    """Keeps what it is given in training."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x.detach().clone())
        logits: Tensor = self.fc(x.flatten(1))
        return logits


def test_the_sub_images_of_one_network_take_turns_also_after_an_interruption() -> None:
    """Three steps an epoch, so that an epoch begins with the other half than the one before."""
    partition = make_partition("checkerboard", 8, 8, "masked")
    training = TrainingConfig(epochs=4, batch=50)
    states: list[TrainingState] = []

    def hear(report: Report) -> None:
        if isinstance(report, EpochDone) and report.state is not None:
            states.append(report.state)

    torch.manual_seed(0)
    undisturbed = _Inputs()
    train_network(undisturbed, _dataset(), partition, [0, 1], 0.5, training, on_report=hear)
    assert len(undisturbed.seen) == 12
    for step, inputs in enumerate(undisturbed.seen):
        own, other = partition.pixels(step % 2), partition.pixels(1 - step % 2)
        assert (inputs.flatten(1)[:, other] == 0).all()
        assert (inputs.flatten(1)[:, own] != 0).all()
    resumed = _Inputs()
    train_network(resumed, _dataset(), partition, [0, 1], 0.5, training, start=states[0])
    assert all(torch.equal(*pair) for pair in zip(undisturbed.seen[3:], resumed.seen, strict=True))
    assert module_digest(resumed) == module_digest(undisturbed)


def test_consistency_across_sub_images_sees_each_image_in_all_of_them_in_one_step() -> None:
    partition = make_partition("checkerboard", 8, 8, "masked")
    torch.manual_seed(0)
    module = _Inputs()
    train_network(module, _dataset(), partition, [0, 1], 1e-3, TrainingConfig(epochs=1, batch=50, **ACROSS))
    assert [len(inputs) for inputs in module.seen] == [200, 200, 80]  # two copies of each half of 50, 50 and 20 images
    for inputs in module.seen:
        halves = inputs.flatten(1).view(2, 2, -1, 64)  # sub-image, copy, image
        for sub_image in (0, 1):
            assert (halves[sub_image][..., partition.pixels(1 - sub_image)] == 0).all()
            assert (halves[sub_image][..., partition.pixels(sub_image)] != 0).all()
        images = halves.sum(0)  # a checkerboard's halves of the same image
        assert torch.allclose(images.round(), images, atol=0.01)
        assert (images.round()[:, :, :4] != images.round()[:, :, 4:8]).any()
        assert torch.equal(images[0].round(), images[1].round())
        assert not torch.equal(images[0], images[1])


@pytest.mark.parametrize("method", [*METHODS, ACROSS], ids=[*(each["method"] for each in METHODS), "across"])
def test_one_network_learns_both_sub_images_by_every_method(method: dict[str, Any]) -> None:
    partition = make_partition("checkerboard", 8, 8, "packed")
    module = _module(partition, 0)
    training = TrainingConfig(epochs=10, batch=16, learning_rate=0.01, **method)
    train_network(module, _dataset(), partition, [0, 1], 0.5, training)
    images = torch.from_numpy(_dataset().images(range(120)))
    for sub_image in (0, 1):
        answers = module(partition.arrange(partition.extract(images, sub_image), sub_image)).argmax(1)
        assert answers.tolist() == _dataset().targets.tolist()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method["method"])
def test_in_bfloat16_it_learns_repeats_itself_and_goes_on(method: dict[str, Any], tmp_path: Path) -> None:
    """On a CPU without units for it, too. Colour: weights lie in memory channels last, and in a file do not."""
    module, epochs = _train(7, mixed_precision=True, channels=3, **method)
    assert epochs[-1].loss < 0.5 * epochs[0].loss
    assert epochs[-1].accuracy > 0.9
    again, _ = _train(7, mixed_precision=True, channels=3, **method)
    assert module_digest(again) == module_digest(module)
    other, _ = _train(7, mixed_precision=False, channels=3, **method)
    assert module_digest(other) != module_digest(module)
    file = str(tmp_path / "state.safetensors")
    assert epochs[3].state is not None
    save_state(file, epochs[3].state, {})
    gone_on, _ = _train(7, mixed_precision=True, channels=3, start=load_state(file, {True: {}}), **method)
    assert module_digest(gone_on) == module_digest(module)


def test_auto_is_what_is_fast_here_and_a_training_goes_on_as_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    fixed = {precision: module_digest(_train(7, epochs=2, mixed_precision=precision)[0]) for precision in (True, False)}
    for has_units in (True, False):
        monkeypatch.setattr(loop, "has_bfloat16", lambda device, has=has_units: has)
        module, epochs = _train(7, epochs=2, mixed_precision="auto")
        assert module_digest(module) == fixed[has_units]
        assert epochs[0].state is not None
        assert epochs[0].state.bfloat16 is has_units
        monkeypatch.setattr(loop, "has_bfloat16", lambda device, has=has_units: not has)  # another machine
        elsewhere, _ = _train(7, epochs=2, mixed_precision="auto", start=epochs[0].state)
        assert module_digest(elsewhere) == fixed[has_units]


@pytest.mark.parametrize("has_units", [True, False])
def test_bfloat16_without_units_is_slow_and_warned_of(monkeypatch: pytest.MonkeyPatch, has_units: bool) -> None:
    monkeypatch.setattr(loop, "has_bfloat16", lambda device: has_units)
    warnings: list[str] = []
    _train(7, epochs=1, mixed_precision=True, warnings=warnings)
    _train(7, epochs=1, mixed_precision="auto", warnings=warnings)
    _train(7, epochs=1, mixed_precision=False, warnings=warnings)
    assert len(warnings) == (0 if has_units else 1)
    for warning in warnings:
        assert warning.startswith("sub-image 1: computes in bfloat16, for which cpu has no units: slower than float32")


class _Views(nn.Module):
    """A user's network as many are written: `view` needs maps that lie one after another."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 8 * 8, 2)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x)
        self.channels_last = maps.is_contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.fc(maps.view(len(x), -1) if self.views else maps.flatten(1))
        return logits

    views = True


@pytest.mark.parametrize("views", [True, False])
def test_colour_images_lie_channels_last_where_the_network_takes_them(views: bool) -> None:
    partition = make_partition("none", 8, 8, "packed")
    module = _Views()
    module.views = views
    train_network(module, _dataset(channels=3), partition, [0], 0.5, TrainingConfig(epochs=1))
    assert module.channels_last is not views


def test_an_epoch_tells_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "SECONDS_BETWEEN_REPORTS", 0.0)
    partition = make_partition("none", 8, 8, "packed")
    heard: list[Report] = []
    training = TrainingConfig(epochs=2, batch=50)
    train_network(_module(partition, 0), _dataset(), partition, [0], 0.5, training, on_report=heard.append)
    told = [(report.epoch, report.images) if isinstance(report, ImagesDone) else "done" for report in heard]
    assert told == [(1, 0), (1, 50), (1, 100), (1, 120), "done", (2, 0), (2, 50), (2, 100), (2, 120), "done"]


def test_states_are_told_when_they_are_due_and_after_the_last_epoch() -> None:
    _, epochs = _train(5, epochs=5, checkpoint_every=2)
    assert [done.epoch for done in epochs if done.state is not None] == [2, 4, 5]
    assert [done.state.epoch for done in epochs if done.state is not None] == [2, 4, 5]


def test_a_state_is_a_copy_that_later_epochs_do_not_change() -> None:
    module, epochs = _train(5, epochs=2)
    first, last = epochs[0].state, epochs[1].state
    assert first is not None
    assert last is not None
    assert all(torch.equal(last.weights[name], value) for name, value in weights_of(module).items())
    assert not torch.equal(first.weights["fc2.weight"], last.weights["fc2.weight"])
    assert not torch.equal(first.optimizer["0/exp_avg"], last.optimizer["0/exp_avg"])


@pytest.mark.parametrize(("count", "workers", "batch"), [(120, 3, 12), (121, 4, 16), (2, 5, 10)])
def test_workers_share_every_batch_evenly_and_miss_no_image(count: int, workers: int, batch: int) -> None:
    shares = [
        _batches(count, batch, torch.Generator(), seed=1, epoch=2, place=Place(rank=rank, workers=workers))
        for rank in range(workers)
    ]
    assert len({len(share) for share in shares}) == 1
    for parts in zip(*shares, strict=True):
        assert len({len(part) for part in parts}) == 1
        assert 0 < sum(map(len, parts)) <= batch
    seen = sorted(image for share in shares for part in share for image in part)
    assert set(seen) == set(range(count))
    assert len(seen) == math.ceil(count / workers) * workers
    other = _batches(count, batch, torch.Generator(), seed=1, epoch=3, place=Place(workers=workers))
    assert count < 10 or other != shares[0]


def test_workers_draw_different_noise_and_the_same_again() -> None:
    drawn = []
    for rank in (0, 1, 0):
        generator = torch.Generator()
        _batches(10, 4, generator, seed=1, epoch=2, place=Place(rank=rank, workers=2))
        drawn.append(torch.rand(5, generator=generator).tolist())
    assert drawn[0] == drawn[2] != drawn[1]


def test_seeds_do_not_repeat_each_other() -> None:
    seeds = {derived_seed(a, b) for a in range(30) for b in range(30)} | {derived_seed(a) for a in range(30)}
    assert len(seeds) == 930
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_divergence_is_reported_at_once() -> None:
    class Explode(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :2] * (self.w + math.nan)

    calls: list[object] = []
    partition = make_partition("none", 8, 8, "packed")
    with pytest.raises(
        ClassifierError, match=r"sub-image 0: training diverged in epoch 1 .*lower training.learning_rate"
    ):
        train_network(Explode(), _dataset(), partition, [0], 1.0, TrainingConfig(epochs=3), on_report=calls.append)
    assert calls == [ImagesDone(1, 0, 120)]
