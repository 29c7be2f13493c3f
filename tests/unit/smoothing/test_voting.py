"""Counting votes: whole numbers that sum to n, the same however the samples are cut, and never from a broken logit."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drs_ray.errors import ClassifierError
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.noise import STANDARD_NORMAL, keyed_batches
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler, count_votes

CPU = torch.device("cpu")
CLASSES = 5
KEY = NoiseKey(seed=1, image_id=42, sub_image=1, phase="estimation")


def sampler(batch: int = 32, block: int = 100, device: torch.device = CPU, layout: str = "packed") -> Sampler:
    return Sampler(make_partition("checkerboard", 6, 8, layout), 0.7, block, batch, device, "gaussian")


def image() -> Tensor:
    return torch.rand((3, 6, 8), generator=torch.Generator().manual_seed(0))


class Linear(nn.Module):
    """A fixed random linear classifier that notes the shapes it saw; `spoil` may break its logits."""

    def __init__(self, size: int, spoil: Callable[[Tensor], Tensor] = lambda logits: logits) -> None:
        super().__init__()
        weights = torch.randn((size, CLASSES), generator=torch.Generator().manual_seed(3))
        self.register_buffer("weights", weights)
        self.spoil = spoil
        self.seen: list[tuple[int, ...]] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen.append(tuple(inputs.shape))
        return self.spoil(inputs.flatten(1) @ self.weights)


PACKED = 3 * 6 * 4


@pytest.mark.parametrize("samples", [1, 31, 32, 33, 100, 250])
def test_votes_sum_to_the_samples(samples: int) -> None:
    votes = count_votes(Linear(PACKED), image(), sampler(), KEY, 0, samples, CLASSES)
    assert votes.dtype == np.int64
    assert votes.shape == (CLASSES,)
    assert votes.sum() == samples
    assert (votes >= 0).all()


@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_the_votes_are_those_of_a_plain_loop(layout: str) -> None:
    how = sampler(layout=layout)
    size = PACKED if layout == "packed" else 2 * PACKED
    classifier = Linear(size)
    values = how.partition.extract(image(), 1)
    expected = np.zeros(CLASSES, np.int64)
    shape = (3, 24)
    for batch in keyed_batches(STANDARD_NORMAL, KEY, 0, 150, values_shape=shape, block=100, batch=1, device=CPU):
        laid_out = how.partition.arrange(values + how.sigma * batch, 1)
        expected[int((laid_out.flatten(1) @ classifier.weights).argmax())] += 1
    assert count_votes(classifier, image(), how, KEY, 0, 150, CLASSES).tolist() == expected.tolist()
    assert len(np.flatnonzero(expected)) > 1


def test_any_cut_at_blocks_gives_the_same_votes() -> None:
    whole = count_votes(Linear(PACKED), image(), sampler(), KEY, 0, 500, CLASSES)
    for cuts in ([0, 100, 500], [0, 300, 400, 500], [0, 100, 200, 300, 400, 500]):
        parts = [
            count_votes(Linear(PACKED), image(), sampler(), KEY, low, high - low, CLASSES)
            for low, high in itertools.pairwise(cuts)
        ]
        assert sum(parts).tolist() == whole.tolist()


def test_a_prefix_is_a_part_of_the_whole() -> None:
    few = count_votes(Linear(PACKED), image(), sampler(), KEY, 0, 130, CLASSES)
    more = count_votes(Linear(PACKED), image(), sampler(), KEY, 130, 120, CLASSES)
    assert (few + more).tolist() == count_votes(Linear(PACKED), image(), sampler(), KEY, 0, 250, CLASSES).tolist()


def test_the_same_again_and_other_noise_for_another_key() -> None:
    once = count_votes(Linear(PACKED), image(), sampler(), KEY, 0, 500, CLASSES)
    assert count_votes(Linear(PACKED), image(), sampler(), KEY, 0, 500, CLASSES).tolist() == once.tolist()
    for other in (NoiseKey(2, 42, 1, "estimation"), NoiseKey(1, 43, 1, "estimation"), NoiseKey(1, 42, 1, "selection")):
        assert count_votes(Linear(PACKED), image(), sampler(), other, 0, 500, CLASSES).tolist() != once.tolist()


@pytest.mark.parametrize("batch", [1, 32, 100, 1000])
def test_memory_is_that_of_a_batch(batch: int) -> None:
    classifier = Linear(PACKED)
    count_votes(classifier, image(), sampler(batch), KEY, 0, 730, CLASSES)
    assert max(shape[0] for shape in classifier.seen) == min(batch, 100)  # never beyond a block of 100
    assert sum(shape[0] for shape in classifier.seen) == 730
    assert {shape[1:] for shape in classifier.seen} == {(3, 6, 4)}


def test_the_image_and_the_classifier_are_left_as_they_were() -> None:
    class InPlace(Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            logits = super().forward(inputs)
            inputs.zero_()
            return logits

    picture = image()
    votes = count_votes(InPlace(PACKED), picture, sampler(), KEY, 0, 300, CLASSES)
    assert torch.equal(picture, image())
    assert votes.tolist() == count_votes(Linear(PACKED), image(), sampler(), KEY, 0, 300, CLASSES).tolist()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("where", ["first", "last"])
def test_broken_logits_are_an_error_that_names_image_and_sub_image(value: float, where: str) -> None:
    calls = 0

    def spoil(logits: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == (1 if where == "first" else 4):
            logits[-1, 2 if value != -torch.inf else slice(None)] = value  # one logit of one sample, or all of them
        return logits

    with pytest.raises(ClassifierError) as error:
        count_votes(Linear(PACKED, spoil), image(), sampler(), KEY, 0, 100, CLASSES)
    message = str(error.value)
    assert "sub-image 1" in message
    assert "image 42" in message
    assert "estimation" in message
    assert "\n" not in message


def test_a_class_may_be_masked_with_minus_infinity() -> None:
    def mask(value: float) -> Callable[[Tensor], Tensor]:
        return lambda logits: torch.cat([logits[:, :-1], torch.full_like(logits[:, :1], value)], dim=1)

    votes, finite = (
        count_votes(Linear(PACKED, mask(value)), image(), sampler(), KEY, 0, 300, CLASSES)
        for value in (-torch.inf, -1e4)
    )
    assert votes.tolist() == finite.tolist()
    assert votes[-1] == 0


@pytest.mark.parametrize("spoil", [lambda x: x[:, :-1], lambda x: torch.cat([x, x], 1), lambda x: x[:-1]])
def test_logits_of_another_shape_are_an_error(spoil: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(ClassifierError, match=r"sub-image 1: logits must be \[32, 5\] \(batch, classes\), got \["):
        count_votes(Linear(PACKED, spoil), image(), sampler(), KEY, 0, 100, CLASSES)


def test_only_the_own_sub_image_is_read() -> None:
    picture = image()
    changed = picture.clone()
    how = sampler()
    changed.flatten(-2)[:, how.partition.pixels(0)] = torch.nan
    votes = count_votes(Linear(PACKED), picture, how, KEY, 0, 300, CLASSES)
    assert count_votes(Linear(PACKED), changed, how, KEY, 0, 300, CLASSES).tolist() == votes.tolist()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_votes_are_reproducible() -> None:
    device = torch.device("cuda")
    classifier = Linear(PACKED).to(device)

    def votes(first: int, samples: int) -> np.ndarray:
        return count_votes(classifier, image(), sampler(device=device), KEY, first, samples, CLASSES)

    whole = votes(0, 1000)
    assert whole.sum() == 1000
    assert votes(0, 1000).tolist() == whole.tolist()
    assert (votes(0, 300) + votes(300, 700)).tolist() == whole.tolist()
    on_cpu = count_votes(Linear(PACKED), image(), sampler(), KEY, 0, 1000, CLASSES)
    assert np.abs(whole - on_cpu).max() < 5 * np.sqrt(1000)  # another generator, the same law
