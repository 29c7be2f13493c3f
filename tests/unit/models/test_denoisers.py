"""Denoisers: published names, in front of the classifier, blind to all pixels but their sub-image's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from drs_ray.config import DenoiserConfig
from drs_ray.errors import ClassifierError
from drs_ray.models.denoisers import DnCNN, load_denoiser
from drs_ray.models.factory import load_classifier
from drs_ray.smoothing.keys import NoiseKey
from drs_ray.smoothing.partition import Partition, make_partition
from drs_ray.smoothing.voting import Sampler, count_votes

SHAPE = (3, 8, 4)
GIVEN: dict[str, Any] = {
    "architecture": "tests.support.classifiers:prototypes",
    "arguments": {},
    "checkpoint": None,
    "sub_image": 1,
    "partition": "checkerboard",
    "layout": "packed",
    "sigma": 0.5,
    "image_shape": SHAPE,
    "num_classes": 10,
}


def salmans_dncnn(depth: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of microsoft/denoised-smoothing's DnCNN: a bias in the first convolution alone."""
    yield "dncnn.0.weight", (width, 3, 3, 3)
    yield "dncnn.0.bias", (width,)
    for block in range(depth - 2):
        yield f"dncnn.{3 * block + 2}.weight", (width, width, 3, 3)
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"dncnn.{3 * block + 3}.{part}", (width,)
        yield f"dncnn.{3 * block + 3}.num_batches_tracked", ()
    yield f"dncnn.{3 * depth - 4}.weight", (3, width, 3, 3)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_denoisers_load_unchanged(tmp_path: Path, prefix: str) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors = {
        prefix + name: torch.rand(shape, generator=generator) / 30 if shape else torch.tensor(5)
        for name, shape in salmans_dncnn(17, 64)
    }
    file = str(tmp_path / "best.pth.tar")
    torch.save({"epoch": 90, "arch": "cifar_dncnn", "state_dict": tensors, "optimizer": {}}, file)
    denoiser, _ = load_denoiser(
        DenoiserConfig(architecture="dncnn", checkpoint=file), 0.5, (3, 32, 16), 0, "checkerboard", "packed"
    )
    assert denoiser.state_dict().keys() == {name.removeprefix(prefix) for name in tensors}
    x = torch.rand(2, 3, 32, 16)
    with torch.inference_mode():
        assert torch.equal(denoiser(x), x - denoiser.get_submodule("dncnn")(x))
    wide = DenoiserConfig(architecture="dncnn", arguments={"width": 128}, checkpoint=file)
    with pytest.raises(ClassifierError, match=r"dncnn.0.weight \[64, 3, 3, 3\] instead of \[128, 3, 3, 3\]"):
        load_denoiser(wide, 0.5, (3, 32, 16), 0, "checkerboard", "packed")


def halving(image_shape: tuple[int, int, int], by: float = 2.0) -> nn.Module:
    class Halving(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / by

    return Halving()


def cropping(image_shape: tuple[int, int, int]) -> nn.Module:
    class Cropping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., :-1]

    return Cropping()


def test_the_classifier_sees_what_the_denoiser_leaves() -> None:
    plain = load_classifier(**GIVEN)
    denoised = load_classifier(
        **GIVEN, denoiser=DenoiserConfig(architecture=f"{__name__}:halving", arguments={"by": 4.0})
    )
    x = torch.rand(2, *SHAPE)
    with torch.inference_mode():
        assert torch.equal(denoised.module(x), plain.module(x / 4))


def test_the_denoisers_weights_are_part_of_the_digest(tmp_path: Path) -> None:
    digests = set()
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(DnCNN(3, 3, 4).state_dict(), tmp_path / f"{seed}.pt")
        config = DenoiserConfig(
            architecture="dncnn", arguments={"depth": 3, "width": 4}, checkpoint=str(tmp_path / f"{seed}.pt")
        )
        digests.add(load_classifier(**GIVEN, denoiser=config).digest)
    assert len(digests | {load_classifier(**GIVEN).digest}) == 3


class Watching(nn.Module):
    """A classifier behind a DnCNN that remembers all that the denoiser was given."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.denoiser = DnCNN(channels, 3, 4)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        denoised = self.denoiser(x)
        return torch.stack([denoised.mean(dim=(1, 2, 3)), denoised.amax(dim=(1, 2, 3)) / 2], dim=1)


@settings(derandomize=True, deadline=None, database=None, max_examples=20)
@given(
    name=st.sampled_from(["checkerboard", "checkerboard-2024"]),
    layout=st.sampled_from(["packed", "masked", "filled"]),
    law=st.sampled_from(["gaussian", "lattice"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_denoiser_of_a_sub_image_cannot_see_other_pixels(name: str, layout: str, law: Any, seed: int) -> None:
    """Through the code that counts votes: change every pixel of the other sub-image, and nothing moves, to the bit."""
    generator = np.random.default_rng(seed)
    image = torch.from_numpy(generator.integers(0, 256, (3, 6, 6))).float() / 255
    other = torch.from_numpy(generator.integers(0, 256, (3, 6, 6))).float() / 255
    partition = make_partition(name, 6, 6, layout)
    for k in range(2):
        changed = other.clone()
        changed.flatten(-2)[:, partition.pixels(k)] = image.flatten(-2)[:, partition.pixels(k)]
        votes, seen = _votes(partition, k, image, law)
        votes_changed, seen_changed = _votes(partition, k, changed, law)
        assert torch.equal(seen, seen_changed)
        assert np.array_equal(votes, votes_changed)
        moved = image.clone()
        moved.flatten(-2)[:, partition.pixels(k)[0]] = (moved.flatten(-2)[:, partition.pixels(k)[0]] < 0.5).float()
        assert not torch.equal(seen, _votes(partition, k, moved, law)[1])


def _votes(partition: Partition, k: int, image: Tensor, law: Any) -> tuple[Any, Tensor]:
    watching = Watching(3).eval()
    sampler = Sampler(partition, 0.5, 20, 10, torch.device("cpu"), law)
    votes = count_votes(watching, image, sampler, NoiseKey(0, 7, k, "estimation", "d"), 0, 20, 2)
    return votes, torch.cat(watching.seen)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"architecture": "memnet"},
            r"sub-image 1: denoiser memnet: must be dncnn, diffusers, improved-diffusion, guided-diffusion, or your",
        ),
        ({"architecture": "dncnn"}, r"denoiser dncnn needs a checkpoint; set classifiers.1.denoiser.checkpoint"),
        ({"architecture": "dncnn", "arguments": {"deep": 3}}, r"depth and width, whole numbers >= 2, got deep: 3"),
        ({"architecture": "dncnn", "arguments": {"depth": 1}}, r"depth and width, whole numbers >= 2, got depth: 1"),
        (
            {"architecture": f"{__name__}:cropping"},
            r"must return sub-images of shape \[2, 3, 8, 4\], as it is given, got \[2, 3, 8, 3\]",
        ),
        ({"architecture": "tests.support.classifiers:nothing"}, r"has no function 'nothing'"),
        (
            {"architecture": f"{__name__}:halving", "arguments": {"buy": 1}},
            r"called with image_shape=\(3, 8, 4\) .*buy",
        ),
    ],
)
def test_mistakes_are_one_clear_line(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ClassifierError, match=message) as caught:
        load_classifier(**GIVEN, denoiser=DenoiserConfig(**config))
    assert "\n" not in str(caught.value)


def test_a_denoiser_that_fails_is_told_as_one() -> None:
    class Failing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("too small")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.halving", lambda image_shape: Failing())
        with pytest.raises(
            ClassifierError, match=r"halving failed on an input of shape \[2, 3, 8, 4\] \(RuntimeError: t"
        ):
            load_denoiser(DenoiserConfig(architecture=f"{__name__}:halving"), 0.5, SHAPE, 0, "checkerboard", "packed")
