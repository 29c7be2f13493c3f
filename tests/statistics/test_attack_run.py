"""Attacks on runs of half-spaces, whose true radii are known: what is found lies just above, and nothing below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import norm

import drs_ray
from drs_ray.audit.attack.report import AttackReport
from drs_ray.config import parse_config
from drs_ray.data.arrays import ArrayDataset
from drs_ray.data.datasets import load_dataset
from drs_ray.data.packing import pack_dataset
from drs_ray.smoothing.partition import Partition, make_partition
from drs_ray.storage import LocalStore
from tests.support.classifiers import half_space
from tests.support.runs import run_data

OFFSETS = {1: (1.0,), 2: (0.9, 0.7), 4: (0.7, 0.6, 0.5, 0.6)}
IMAGES = 3
SIZE = 14  # few pixels: little noise to draw
CONFIRMATION = 5000
EFFORT = {"steps": 20, "samples": 16, "confirmation": CONFIRMATION, "seed": 3}
PARTITIONS = {1: {"name": "none"}, 2: {"name": "checkerboard"}, 4: {"name": "interleave", "interleave": [2, 2]}}


@pytest.fixture(scope="module")
def greys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small images, packed; no pixel is so dark or bright that an 8-bit image could not move either way."""
    root = tmp_path_factory.mktemp("greys")
    pixels = np.random.default_rng(0).integers(64, 192, (IMAGES, 1, SIZE, SIZE), np.uint8)
    pack_dataset(
        ArrayDataset("greys", "test", 10, pixels, np.zeros(IMAGES, np.int64)),
        None,
        LocalStore(root),
        lambda images: None,
    )
    return root


def half_spaces(
    greys: Path,
    place: Path,
    sigmas: Sequence[float],
    law: str = "gaussian",
    offsets: Sequence[float] | None = None,
    **certificate: Any,
) -> str:
    """A finished run whose base classifiers are half-spaces; returns its uri."""
    data = run_data(place)
    data["dataset"] = {"name": "parquet", "root": str(greys)}
    data["partition"] = PARTITIONS[len(sigmas)]
    data["classifiers"] = [
        {
            "architecture": "tests.support.classifiers:half_space",
            "arguments": {"seed": k, "offset": offset},
            "sigma": sigma,
        }
        for k, (offset, sigma) in enumerate(zip(offsets or OFFSETS[len(sigmas)], sigmas, strict=True))
    ]
    data["engine"] |= {"batch": 500}
    data["noise"] = {"law": law, "block": 500}
    data["budget"] = {"selection": 50, "estimation": 2000}
    data["certificate"] = certificate
    return drs_ray.certify(parse_config(data)).uri


def true_radii(
    greys: Path,
    report: AttackReport,
    sigmas: Sequence[float],
    vote: str = "probit",
    weights: Sequence[float] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of each attacked image to where the vote flips, exactly, and what n samples leave open there: [N].

    The latter is five standard errors of every sub-image's Phi^-1 of its vote share, in units of the distance.
    """
    images = attacked_images(greys, report)
    cut = PARTITIONS[len(sigmas)]
    partition = make_partition(cut["name"], SIZE, SIZE, "packed", cut.get("interleave"))
    margin = np.stack([_distances(partition, images, k, len(sigmas)) for k in range(len(sigmas))], axis=1)
    pull = 1 / np.asarray(sigmas) if vote == "mean" else np.ones(len(sigmas)) if weights is None else np.array(weights)
    pull /= np.linalg.norm(pull)
    radius = margin @ pull
    quantile = (margin - radius[:, None] * pull) / sigmas
    error = np.sqrt(norm.cdf(quantile) * norm.sf(quantile) / CONFIRMATION) / norm.pdf(quantile)
    return np.abs(radius), 5 * (error * sigmas) @ pull


def attacked_images(greys: Path, report: AttackReport) -> NDArray[np.float64]:
    """Float64 [N, 1, SIZE, SIZE]."""
    return load_dataset("parquet", greys).images(report.table["image_id"].to_pylist()).astype(np.float64)


def _distances(partition: Partition, images: NDArray[np.float64], k: int, sub_images: int) -> NDArray[np.float64]:
    """Signed distances of the sub-images to the plane, on the side of class 0."""
    import torch

    module = half_space(partition.layout_shape(k, 1), 10, k, OFFSETS[sub_images][k])
    normal = module.normal.double().numpy()
    values = partition.arrange(partition.extract(torch.from_numpy(images), k), k).flatten(1).numpy()
    return np.asarray((values @ normal + OFFSETS[sub_images][k]) / np.linalg.norm(normal))


CASES: list[tuple[tuple[float, ...], str, tuple[float, ...] | None]] = [
    ((0.5,), "probit", None),
    ((0.4, 0.4), "probit", None),
    ((0.25, 0.5), "probit", (1.0, 3.0)),
    ((0.5, 0.25), "mean", None),
    ((0.3, 0.3, 0.3, 0.3), "probit", None),
]


@pytest.mark.parametrize(("sigmas", "vote", "weights"), CASES, ids=str)
def test_the_norms_found_lie_just_above_the_true_radii(
    greys: Path, tmp_path: Path, sigmas: tuple[float, ...], vote: str, weights: tuple[float, ...] | None
) -> None:
    uri = half_spaces(greys, tmp_path / "run", sigmas, vote=vote, weights=weights)
    report = drs_ray.attack(uri, IMAGES, **EFFORT)
    report.check()
    true, unseen = true_radii(greys, report, sigmas, vote, weights)
    assert report.attacked == IMAGES
    assert np.all(report.radius <= true)  # the certificates hold
    assert np.all(report.norm > true)  # nothing is confirmed that is not so
    assert report.broken.all()
    # The last norm tried is 1.5 % long at most, and the direction has some noise too.
    assert np.all(report.norm <= 1.025 * true + unseen)
    assert np.median(report.norm / true) < 1.1


def test_on_the_lattice_8_bit_images_are_confirmed(greys: Path, tmp_path: Path) -> None:
    uri = half_spaces(greys, tmp_path / "run", (0.4, 0.4), law="lattice")
    report = drs_ray.attack(uri, IMAGES, **EFFORT)
    report.check()
    assert report.broken.all()
    images = attacked_images(greys, report)
    for image, row in zip(images, report.table.to_pylist(), strict=True):
        perturbed = np.array(row["perturbed"], np.float32)
        levels = np.round(perturbed.astype(np.float64) * 255)
        assert np.array_equal((levels / 255).astype(np.float32), perturbed)
        exact = np.linalg.norm(levels - np.round(255 * image.ravel())) / 255  # of the 8-bit images
        assert exact <= row["norm"] <= exact * (1 + 1e-9)
    assert np.all(report.norm > true_radii(greys, report, (0.4, 0.4))[0])


def test_a_radius_of_published_code_is_caught(greys: Path, tmp_path: Path) -> None:
    """docs/theory.md 9: sqrt(R_1^2 + R_2^2) in place of the theorem's radius."""
    uri = half_spaces(greys, tmp_path / "run", (0.5, 0.5), offsets=(1.4, 0.0))
    report = drs_ray.attack(uri, IMAGES, **EFFORT)
    margin = np.array(drs_ray.read_certificates(uri)["margin"].to_pylist())
    ids = np.array(report.table["image_id"].to_pylist())
    printed = np.linalg.norm(np.maximum(margin[ids], 0), axis=1)
    assert np.all(report.norm > report.radius)
    assert np.any(report.norm < printed)
