"""End to end against the truth: half-space base classifiers, whose smoothed class and radius are known exactly.

On sub-image k the base classifier says class 0 where w.z + b > 0, for the laid-out sub-image z. Under noise of sigma_k
its probability is p_k = Phi(m_k / sigma_k), m_k the signed distance of the image to the plane, and moving the sub-image
by s against the normal lowers m_k by s: a perturbation's effect is known without an attack.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from torch import Tensor, nn

from drs_ray.certificates.radii import certified_radii
from drs_ray.certificates.rule import Rule
from drs_ray.data.arrays import load_mnist5k
from drs_ray.smoothing.keys import NoiseKey, Phase
from drs_ray.smoothing.partition import make_partition
from drs_ray.smoothing.voting import Sampler, count_votes

PROBIT = Rule("probit")
SIZE = 4  # pixels a side: the digits' middle, so that many samples are quick
SAMPLES = 2_000_000
ALPHA = 0.001
FEWER = 200_000  # enough to see a flip 3 % beyond the radius
IMAGE_IDS = (1, 9)


class HalfSpace(nn.Module):
    """Logits (v, -v) with v = w.z + b: class 0 on one side of a plane, class 1 on the other."""

    def __init__(self, normal: Tensor, offset: float) -> None:
        super().__init__()
        self.register_buffer("normal", normal.flatten())
        self.offset = offset

    def forward(self, inputs: Tensor) -> Tensor:
        value = inputs.flatten(1) @ self.normal + self.offset
        return torch.stack([value, -value], dim=1)


@dataclass(frozen=True)
class Case:
    """A partition, its noise, the true distances in units of sigma, and how sub-images are joined."""

    partition: str
    layout: str
    sigmas: tuple[float, ...]
    quantiles: tuple[float, ...]
    rule: Rule = PROBIT

    def __str__(self) -> str:
        return f"{self.partition}-{self.layout}-{self.sigmas}-{self.quantiles}-{self.rule.name}"


CASES = [
    Case("none", "packed", (0.5,), (1.5,)),
    Case("none", "masked", (1.0,), (0.9,)),
    Case("checkerboard", "packed", (0.5, 0.5), (1.6, 1.3)),
    Case("checkerboard", "masked", (0.5, 0.5), (1.6, 1.3)),
    Case("checkerboard", "packed", (1.0, 0.25), (1.2, 1.8)),
    Case("checkerboard", "masked", (0.25, 1.0), (1.8, 1.2)),
    Case("checkerboard", "packed", (0.5, 0.5), (2.0, -0.1)),  # one half votes the other way
    Case("checkerboard", "packed", (0.5, 0.25), (1.5, 1.0), Rule("probit", weights=(1.0, 3.0))),
    Case("checkerboard", "packed", (1.0, 0.5), (1.4, 1.4), Rule("mean")),
    Case("checkerboard", "masked", (0.5, 0.5), (2.0, -0.1), Rule("mean")),
]


class World:
    """One image, a half-space on each of its sub-images at the case's distances, and what is true of them."""

    def __init__(self, case: Case, image: Tensor, image_id: int) -> None:
        self.case, self.image, self.image_id = case, image, image_id
        self.partition = make_partition(case.partition, SIZE, SIZE, case.layout)
        generator = torch.Generator().manual_seed(1000 + image_id)
        self.normals, self.classifiers = [], []
        for k, (sigma, quantile) in enumerate(zip(case.sigmas, case.quantiles, strict=True)):
            values = self.partition.extract(image, k)
            normal = torch.randn(values.shape, generator=generator, dtype=torch.float64)
            normal /= normal.norm()
            offset = quantile * sigma - float((normal * values).sum())
            laid_out = self.partition.arrange(normal.float(), k)
            # Weights on the empty cells of the layout: they must not matter, for those cells are always 0.
            laid_out = torch.where(self.partition.arrange(torch.ones_like(values), k) > 0, laid_out, 77.0)
            self.normals.append(normal)
            self.classifiers.append(HalfSpace(laid_out, offset))

    @property
    def margins(self) -> NDArray[np.float64]:
        return np.array(self.case.sigmas) * np.array(self.case.quantiles)

    @property
    def worst_split(self) -> NDArray[np.float64]:
        """Unit vector of the norms s_k of the perturbation that is worst for the vote."""
        sigmas, weights = np.array(self.case.sigmas), self.case.rule.weights or np.ones(len(self.case.sigmas))
        direction = 1 / sigmas if self.case.rule.vote == "mean" else np.array(weights)
        return np.asarray(direction / np.linalg.norm(direction))

    @property
    def true_radius(self) -> float:
        """Largest l2 perturbation of any kind that cannot flip the smoothed class."""
        if self.case.rule.vote == "mean":  # Phi(a_1 - t_1) + Phi(a_2 - t_2) = 1 at t_1 + t_2 = a_1 + a_2
            return float(sum(self.case.quantiles) / np.linalg.norm(1 / np.array(self.case.sigmas)))
        return float(self.worst_split @ self.margins)

    def perturbed(self, length: float) -> Tensor:
        """The image moved by `length` in the worst direction."""
        moved = [
            self.partition.extract(self.image, k).double() - length * share * normal
            for k, (share, normal) in enumerate(zip(self.worst_split, self.normals, strict=True))
        ]
        return self.partition.merge(moved)

    def smoothed_lead(self, p: NDArray[np.float64]) -> float:
        """Lead of class 0 over class 1 in the smoothed classifier, from the sub-images' probabilities of class 0."""
        if self.case.rule.vote == "mean":
            return float((2 * p - 1).sum())
        weights = self.case.rule.weights or np.ones(len(p))
        return float((np.array(weights) * np.array(self.case.sigmas) * ndtri(p)).sum())

    def exact_probabilities(self, length: float) -> NDArray[np.float64]:
        """Of class 0 after moving by `length` in the worst direction."""
        return np.asarray(ndtr((self.margins - length * self.worst_split) / np.array(self.case.sigmas)))

    def votes(self, image: Tensor, phase: Phase = "estimation", samples: int = SAMPLES) -> NDArray[np.int64]:
        """Votes for class 0 by the package's own path: int64 [K]."""
        counts = []
        for k, sigma in enumerate(self.case.sigmas):
            sampler = Sampler(
                self.partition, sigma, block=20_000, batch=20_000, device=torch.device("cpu"), law="gaussian"
            )
            key = NoiseKey(5, self.image_id, k, phase)
            counts.append(count_votes(self.classifiers[k], image.float(), sampler, key, 0, samples, 2)[0])
        return np.array(counts, np.int64)


@pytest.fixture(scope="module")
def digits() -> dict[int, Tensor]:
    """The middle of a few digits: float32 [1, SIZE, SIZE] in [0, 1]."""
    dataset = load_mnist5k("test")
    low = (28 - SIZE) // 2
    images = {i: torch.from_numpy(dataset.image(i)[:, low : low + SIZE, low : low + SIZE].copy()) for i in IMAGE_IDS}
    assert all(image.std() > 0.05 for image in images.values())  # digits, not background
    return images


@pytest.mark.parametrize("image_id", IMAGE_IDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_certified_radius_is_below_the_truth_and_close(case: Case, image_id: int, digits: dict[int, Tensor]) -> None:
    world = World(case, digits[image_id], image_id)
    selected = int(2 * world.votes(world.image, "selection", 100).sum() < 100 * len(case.sigmas))
    assert selected == 0
    votes = world.votes(world.image)[None, :]
    certified = certified_radii(votes, np.full_like(votes, SAMPLES), case.sigmas, case.rule, ALPHA)
    assert np.all(certified.a_lower[0] <= case.quantiles)
    assert certified.radius[0] <= world.true_radius
    assert certified.radius[0] >= 0.99 * world.true_radius


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_true_radius_is_where_the_class_flips(case: Case, digits: dict[int, Tensor]) -> None:
    """Exactly, through Phi, and by counting votes on the perturbed image."""
    image_id = IMAGE_IDS[0]
    world = World(case, digits[image_id], image_id)
    radius = world.true_radius
    assert world.smoothed_lead(world.exact_probabilities(radius * (1 - 1e-9))) > 0
    assert world.smoothed_lead(world.exact_probabilities(radius * (1 + 1e-9))) < 0
    for length, flipped in ((0.97 * radius, False), (1.03 * radius, True)):
        image = world.perturbed(length)
        assert float((image - world.image.double()).norm()) == pytest.approx(length, rel=1e-9)
        p = world.votes(image, samples=FEWER) / FEWER
        assert np.abs(p - world.exact_probabilities(length)).max() < 5 * 0.5 / np.sqrt(FEWER)
        assert (world.smoothed_lead(p) < 0) == flipped


@pytest.mark.parametrize("case", CASES, ids=str)
def test_just_inside_the_certified_radius_nothing_flips(case: Case, digits: dict[int, Tensor]) -> None:
    image_id = IMAGE_IDS[1]
    world = World(case, digits[image_id], image_id)
    votes = world.votes(world.image, samples=FEWER)[None, :]
    certified = certified_radii(votes, np.full_like(votes, FEWER), case.sigmas, case.rule, ALPHA).radius[0]
    length = certified * (1 - 1e-9)
    assert world.smoothed_lead(world.exact_probabilities(length)) > 0
    p = world.votes(world.perturbed(0.97 * certified), samples=FEWER) / FEWER
    assert world.smoothed_lead(p) > 0


def test_a_rule_from_published_code_is_caught(digits: dict[int, Tensor]) -> None:
    """docs/theory.md 9: within the radius that sqrt(R_1^2 + R_2^2) prints, the smoothed class does flip."""
    world = World(Case("checkerboard", "packed", (0.5, 0.5), (2.2, -0.3)), digits[1], 1)
    votes = world.votes(world.image, samples=FEWER)[None, :]
    margin = certified_radii(votes, np.full_like(votes, FEWER), (0.5, 0.5), Rule(), ALPHA).margin[0]
    printed = np.linalg.norm(np.maximum(margin, 0))
    assert world.smoothed_lead(world.votes(world.perturbed(0.99 * printed), samples=FEWER) / FEWER) < 0


@pytest.mark.parametrize("samples", [50, 500, 5000])
def test_few_samples_certify_less_never_more(samples: int, digits: dict[int, Tensor]) -> None:
    world = World(CASES[2], digits[9], 9)
    votes = world.votes(world.image, samples=samples)[None, :]
    radius = certified_radii(votes, np.full_like(votes, samples), world.case.sigmas, world.case.rule, ALPHA).radius[0]
    assert radius <= world.true_radius
    assert radius > (1 - 10 / np.sqrt(samples)) * world.true_radius
