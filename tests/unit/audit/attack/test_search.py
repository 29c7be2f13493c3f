"""The search by itself: bisection, and the direction's descent on classifiers with a known shortest way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from drs_ray.audit.attack.search import search_directions, smallest_norm
from drs_ray.audit.attack.target import Target, _lost_shares
from drs_ray.certificates.rule import Rule
from drs_ray.errors import ClassifierError
from drs_ray.models.inference import VotingClassifier
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler
from tests.support.classifiers import half_space, without_gradient

SIZE = 6
CPU = torch.device("cpu")


def target_of(modules: list[nn.Module], sigmas: list[float], rule: Rule = Rule(), law: str = "gaussian") -> Target:  # noqa: B008
    partition = make_partition("none" if len(modules) == 1 else "checkerboard", SIZE, SIZE, "packed")
    samplers = tuple(Sampler(partition, sigma, 100, 50, CPU, law) for sigma in sigmas)  # type: ignore[arg-type]
    return Target(tuple(VotingClassifier(module, module) for module in modules), samplers, rule, 10, "digest", seed=4)


def directions(target: Target, images: Tensor, ids: list[int], steps: int = 30) -> Tensor:
    predictions, norms = torch.zeros(len(images), dtype=torch.int64), torch.full((len(images),), 0.5)
    return search_directions(target, images, ids, predictions, norms, steps, 16)


@pytest.mark.parametrize("crossing", [0.0, 0.0001, 0.3, 1.0, 3.9])
def test_bisection_ends_just_above_the_crossing(crossing: float) -> None:
    tried = []

    def changes(norm: float) -> bool:
        tried.append(norm)
        return norm > crossing

    found = smallest_norm(changes, 4.0)
    assert found is not None
    assert crossing < found <= max(1.021 * crossing, 0.004)
    assert len(tried) < 16


def test_bisection_says_where_nothing_is_found() -> None:
    assert smallest_norm(lambda norm: False, 4.0) is None


@pytest.mark.parametrize(
    ("sigmas", "rule", "split"),
    [
        ([0.5], Rule(), [1.0]),
        ([0.5, 0.5], Rule(), [1.0, 1.0]),
        ([0.5, 0.25], Rule(weights=(1.0, 2.0)), [1.0, 2.0]),
        ([0.5, 0.25], Rule("mean"), [2.0, 4.0]),
    ],
    ids=str,
)
def test_the_direction_is_the_shortest_way_out_of_half_spaces(
    sigmas: list[float], rule: Rule, split: list[float]
) -> None:
    shape = (1, SIZE, SIZE // len(sigmas))
    modules = [half_space(shape, 10, seed, 0.4) for seed in range(len(sigmas))]
    target = target_of(modules, sigmas, rule)
    partition = target.samplers[0].partition
    share = np.array(split) / np.linalg.norm(split)
    ideal = partition.merge([-float(s) * m.normal[None] for s, m in zip(share, modules, strict=True)])
    images = torch.full((2, 1, SIZE, SIZE), 0.5)
    found = directions(target, images, [3, 8])
    assert torch.allclose(found.flatten(1).norm(dim=1), torch.ones(2))
    assert float((found * ideal).flatten(1).sum(dim=1).min()) > 0.99


def test_a_direction_depends_on_seed_and_image_not_on_the_group() -> None:
    modules = [half_space((1, SIZE, SIZE), 10, 0, 0.4)]
    images = torch.rand((3, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    target = target_of(modules, [0.5])
    together = directions(target, images, [1, 2, 3])
    alone = torch.cat([directions(target, images[i : i + 1], [i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-4)
    assert torch.equal(together, directions(target, images, [1, 2, 3]))


@pytest.mark.parametrize("confident", [5.0, 15.0])
def test_gradients_do_not_vanish_where_the_classifier_is_confident(confident: float) -> None:
    module = half_space((1, SIZE, SIZE), 10, 0, confident * 0.5)
    target = target_of([module], [0.5])
    found = directions(target, torch.full((1, 1, SIZE, SIZE), 0.5), [0], steps=5)
    assert float(-(found.flatten() @ module.normal)) > 0.99


@pytest.mark.parametrize(("how", "words"), [("numpy", "no gradient"), ("detach", "no gradient"), ("round", "all 0")])
def test_a_classifier_without_gradient_is_told_in_one_line(how: str, words: str) -> None:
    target = target_of([without_gradient((1, SIZE, SIZE), 10, how)], [0.5])
    with pytest.raises(ClassifierError, match=words) as error:
        directions(target, torch.zeros((1, 1, SIZE, SIZE)), [0])
    assert "\n" not in str(error.value)


class _Masked(nn.Module):
    """A classifier whose classes from 5 on are masked, and class 2 on some inputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.module(x)
        masked = torch.zeros_like(logits, dtype=torch.bool)
        masked[:, 5:] = True
        masked[:, 2] = x.flatten(1)[:, 0] > 0.5
        return logits.masked_fill(masked, -math.inf)


@pytest.mark.parametrize("rule", [Rule(), Rule("mean")], ids=str)
def test_masked_classes_are_no_rivals_and_no_hindrance(rule: Rule) -> None:
    """-inf beside a finite logit is allowed where votes are counted, and so it is here."""
    module = half_space((1, SIZE, SIZE), 10, 0, 0.4)
    images = torch.full((2, 1, SIZE, SIZE), 0.5, requires_grad=True)
    target = target_of([_Masked(module)], [0.5], rule)
    own = torch.zeros(2, dtype=torch.int64)
    leads = target.soft_leads(images, [3, 8], own, 0, 16).detach()
    assert not leads.isnan().any()
    plain = target_of([module], [0.5], rule).soft_leads(images, [3, 8], own, 0, 16).detach()
    assert torch.equal(leads[:, [0, 1, 3, 4]], plain[:, [0, 1, 3, 4]])
    assert float(leads[:, 5:].min()) >= float(plain[:, 1:].max())
    found = directions(target, images.detach(), [3, 8])
    assert float(-(found.flatten(1) @ module.normal).max()) > 0.99


def test_a_masked_class_loses_to_those_that_are_not() -> None:
    logits = torch.tensor([[[0.0, 1.0, -math.inf], [-math.inf, 1.0, -math.inf], [-math.inf, 1.0, 0.0]]]).double()
    lost = _lost_shares(logits, torch.tensor([0]))
    assert lost[0, 0] == 0.5 / 3  # itself, in the one sample in which it is not masked
    assert lost[0, 1] == pytest.approx((1 + 1 + 1) / 3)  # ahead by 1 in the only sample that compares them: surely
    assert lost[0, 2] == pytest.approx(1 / 3)  # in the last alone
    plain = torch.randn((2, 8, 4), generator=torch.Generator().manual_seed(0)).double()
    own = plain[:, :, 1:2]
    spread = (own - plain).std(dim=1, keepdim=True, correction=0).clamp_min(1e-30)
    expected = torch.erfc((own - plain) / spread / 2**0.5).mean(dim=1) / 2
    assert torch.equal(_lost_shares(plain, torch.tensor([1, 1])), expected)


class _Broken(nn.Module):
    def __init__(self, value: float | None) -> None:
        super().__init__()
        self._value = value

    def forward(self, x: Tensor) -> Tensor:
        if self._value is None:
            raise ValueError("cannot\ndo it")
        return x.flatten(1)[:, :10] * self._value


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "failed on noisy inputs"),
        (math.inf, r"must be \[16, 10\] and finite, or -inf beside a finite one"),
        (math.nan, "and finite"),
        (-math.inf, "and finite"),
    ],
)
def test_a_classifier_that_fails_is_told_in_one_line(value: float | None, words: str) -> None:
    with pytest.raises(ClassifierError, match=words) as error:
        directions(target_of([_Broken(value)], [0.5]), torch.ones((1, 1, SIZE, SIZE)), [0])
    assert "\n" not in str(error.value)


def test_gaussian_noise_clips_nothing_and_lattice_noise_stays_on_8_bit_images() -> None:
    images = torch.tensor([-0.3, 0.1, 0.5012, 1.2]).reshape(1, 1, 2, 2)
    module = half_space((1, SIZE, SIZE), 10, 0, 0.0)
    gaussian, lattice = target_of([module], [0.5]), target_of([module], [0.5], law="lattice")
    assert torch.equal(gaussian.allowed(images), images)
    assert torch.equal(gaussian.exactly_allowed(images.double()), images)
    assert lattice.allowed(images).flatten().tolist() == pytest.approx([0, 0.1, 0.5012, 1])
    assert torch.equal(
        lattice.exactly_allowed(images.double()).flatten(), torch.tensor([0.0, 26.0, 128.0, 255.0]) / 255
    )


def test_norms_are_those_of_the_images_that_the_theorem_speaks_of() -> None:
    module = half_space((1, SIZE, SIZE), 10, 0, 0.0)
    gaussian, lattice = target_of([module], [0.5]), target_of([module], [0.5], law="lattice")
    levels = torch.randint(0, 255, (2, 1, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    moved, image = (levels.float() / 255).unbind()
    of_levels = math.sqrt(int((levels[0] - levels[1]).square().sum())) / 255
    of_floats = math.dist(moved.flatten().tolist(), image.flatten().tolist())
    assert abs(of_levels / of_floats - 1) > 1e-9  # float32 only comes near to multiples of 1/255
    assert of_levels <= lattice.distance(moved, image) <= of_levels * (1 + 1e-9)
    assert of_floats <= gaussian.distance(moved, image) <= of_floats * (1 + 1e-9)


def test_the_leading_rival_is_the_vote_s_own() -> None:
    votes = np.array([[500, 499, 1, *[0] * 7], [500, 1, 499, *[0] * 7]])
    modules = [half_space((1, SIZE, SIZE // 2), 10, k, 0.0) for k in (0, 1)]
    assert target_of(modules, [0.5, 0.25]).leading_rival(votes, 0) == 1
    assert target_of(modules, [0.25, 0.5]).leading_rival(votes, 0) == 2
    assert target_of(modules, [0.5, 0.5], Rule(weights=(1.0, 2.0))).leading_rival(votes, 0) == 2
    votes[0, :2] += [-1, 1]
    assert target_of(modules, [0.25, 0.5], Rule("mean")).leading_rival(votes, 0) == 1
