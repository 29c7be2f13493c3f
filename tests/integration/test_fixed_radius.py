"""Runs at a fixed radius end to end, on half-spaces whose true radii are known: who is certified, and what is said."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from drs_ray import certify, read_certificate, read_run, reduce
from drs_ray.config import parse_config
from drs_ray.counts.history import read_counts
from drs_ray.data.arrays import load_mnist5k
from drs_ray.engine.observer import Observer
from drs_ray.errors import ConfigError
from drs_ray.results.reduce import RunResult
from drs_ray.smoothing.partition import make_partition
from drs_ray.storage import open_store
from tests.support.classifiers import half_space
from tests.support.runs import counts_digest, drs_ray_here, run_data, write_config

IMAGES, STAGES, LARGEST, RADIUS = 40, 8, 12_800, 0.25
SIGMAS = {1: (0.5,), 2: (0.5, 0.25)}
SIZE = 28


def fixed_radius(place: Any, sub_images: int = 2, **certificate: Any) -> dict[str, Any]:
    data = run_data(place, images=IMAGES)
    data["partition"]["name"] = {1: "none", 2: "checkerboard"}[sub_images]
    data["classifiers"] = [
        {"architecture": "tests.support.classifiers:half_space", "arguments": arguments_of(k), "sigma": sigma}
        for k, sigma in enumerate(SIGMAS[sub_images])
    ]
    data["engine"] |= {"batch": 100, "images_per_unit": 8}
    data["budget"] = {"selection": 50, "estimation": LARGEST, "stages": STAGES}
    data["certificate"] = {"radius": RADIUS, "alpha": 0.01, **certificate}
    return data


def arguments_of(sub_image: int) -> dict[str, Any]:
    return {"seed": 3 + sub_image, "offset": 0.2}


def true_radii(sub_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Smoothed class [IMAGES] and its exact l2 radius: the distances to the planes add up."""
    dataset = load_mnist5k("test")
    partition = make_partition("none" if sub_images == 1 else "checkerboard", SIZE, SIZE, "packed")
    distance = np.zeros(IMAGES)
    for k in range(sub_images):
        module = None
        for image in range(IMAGES):
            values = partition.arrange(partition.extract(torch.from_numpy(dataset.image(image)), k), k)
            module = module or half_space(tuple(values.shape), 10, **arguments_of(k))
            distance[image] += float(module(values[None])[0, 0]) / np.sqrt(sub_images)
    return np.where(distance > 0, 0, 1), np.abs(distance)


@pytest.fixture(scope="module", params=[1, 2], ids=["K=1", "K=2"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, RunResult]:
    place = tmp_path_factory.mktemp("fixed") / "run"
    return request.param, certify(parse_config(fixed_radius(place, request.param)))


def test_only_images_that_are_robust_at_the_radius_are_certified(run: tuple[int, RunResult]) -> None:
    sub_images, result = run
    answer, truth = true_radii(sub_images)
    certified = result.radius > 0
    assert set(result.radius.tolist()) == {0.0, RADIUS}
    assert np.all(truth[certified] > RADIUS)
    assert np.array_equal(result.certificates["prediction"].to_numpy(), np.where(certified, answer, -1))
    clear = truth > 1.2 * RADIUS
    assert clear.sum() > 8
    assert np.all(certified[clear])
    assert (truth < RADIUS).sum() > 8


def test_images_stop_early_and_where_they_are_certified(run: tuple[int, RunResult]) -> None:
    _, result = run
    drawn = read_counts(open_store(result.uri), result.record).drawn
    ends = result.record.schedule.samples
    assert len(ends) == 2 * STAGES - 1
    assert set(drawn.tolist()) <= set(ends)
    assert drawn.mean() < 0.25 * LARGEST
    stage = result.certificates["stage"].to_numpy()
    certified = result.radius > 0
    assert np.array_equal(drawn[certified], np.asarray(ends)[stage[certified]])
    assert len(np.unique(drawn[certified])) > 2


def test_the_table_ends_at_the_radius(run: tuple[int, RunResult]) -> None:
    _, result = run
    radii = result.curve["radius"].to_pylist()
    assert radii == [0.0, RADIUS]
    accuracy = result.curve["certified_accuracy"].to_pylist()
    assert accuracy[0] == accuracy[1] == (result.radius > 0)[result.correct].sum() / IMAGES
    assert result.rule == f"probit p_A e-value r={RADIUS}"
    assert result.as_planned
    assert read_run(result.uri).certificates.equals(result.certificates)


def test_a_certificate_in_full_says_what_was_asked(run: tuple[int, RunResult]) -> None:
    _, result = run
    certified = int(np.flatnonzero(result.radius > 0)[0])
    abstains = int(np.flatnonzero(result.radius == 0)[0])
    for image, answer in ((certified, "0.250000000 (l2, pixel units)"), (abstains, "none")):
        found = read_certificate(result.uri, image)
        logs = [stage.log_e for stage in found.stages]
        assert (max(log for log in logs if log is not None) >= -np.log(0.01)) == (image == certified)
        told = drs_ray_here(["certificate", result.uri, str(image)])
        assert told.returncode == 0, told.stderr
        text = " ".join(told.stdout.split())
        assert f"certified radius {answer}" in text
        assert "radius 0.25 or none; no other radius was asked for" in text
        assert "log E >= log(1 / alpha) = 4.6052" in text


def test_status_and_report_say_that_one_radius_was_asked_for(run: tuple[int, RunResult]) -> None:
    _, result = run
    assert "robust at radius 0.25 or not" in drs_ray_here(["status", result.uri]).stdout
    told = drs_ray_here(["report", result.uri, "--compare-rules"])
    assert told.returncode == 0, told.stderr
    html = open_store(result.uri).get("report.html").decode()
    assert "asked for one radius, 0.25</strong>" in html
    assert "an image is certified at it or not at all" in html
    assert "own share of the allowed error" not in html
    assert "an image stops where it is certified" in html


def test_reduced_again_at_other_alphas_and_radii(run: tuple[int, RunResult]) -> None:
    sub_images, result = run
    _, truth = true_radii(sub_images)
    try:
        looser = reduce(result.uri, alpha=0.1)
        assert not looser.as_planned
        assert np.all((looser.radius > 0) >= (result.radius > 0))
        for radius in (0.05, 0.2, 0.3):
            other = reduce(result.uri, radius=radius)
            assert set(other.radius.tolist()) <= {0.0, radius}
            assert np.all(truth[other.radius > 0] > radius)
            assert not other.as_planned
            if radius < RADIUS:
                assert np.all((other.radius > 0) >= (result.radius > 0))
            else:
                assert np.all((other.radius > 0) <= (result.radius > 0))
        largest = reduce(result.uri, radius=None)
        assert largest.rule.startswith("probit pairs")
        assert np.all(largest.radius <= truth)
    finally:
        assert reduce(result.uri).certificates.equals(result.certificates)


def test_an_ordinary_run_can_be_asked_for_one_radius(tmp_path: Any) -> None:
    data = fixed_radius(tmp_path / "run", radius=None)
    assert "asks" not in drs_ray_here(["status", certify(parse_config(data)).uri]).stdout
    told = drs_ray_here(["reduce", str(tmp_path / "run"), "--radius", "0.25"])
    assert told.returncode == 0, told.stderr
    radius = read_run(str(tmp_path / "run")).radius
    assert set(radius.tolist()) == {0.0, RADIUS}
    assert np.all(true_radii(2)[1][radius > 0] > RADIUS)


class _Stop(Exception):
    """Stands for a driver that dies."""


class _DiesAfter(Observer):
    def __init__(self, units: int) -> None:
        self._left = units

    def unit_done(self, unit: Any, outcome: Any) -> None:
        self._left -= 1
        if not self._left:
            raise _Stop


@pytest.mark.parametrize("units", [1, 9, 25])
def test_a_resumed_run_goes_by_the_radius_it_began_with(tmp_path: Any, units: int) -> None:
    whole = certify(parse_config(fixed_radius(tmp_path / "whole")))
    with pytest.raises(_Stop):
        certify(parse_config(fixed_radius(tmp_path / "run")), _DiesAfter(units))
    other = certify(parse_config(fixed_radius(tmp_path / "run", radius=0.2)))
    assert counts_digest(tmp_path / "run") == counts_digest(whole.uri)
    assert not other.as_planned
    assert reduce(other.uri, radius=RADIUS).certificates.equals(whole.certificates)


def test_a_planned_run_is_extended_and_loses_nothing(tmp_path: Any) -> None:
    data = fixed_radius(tmp_path / "run")
    data["budget"] |= {"estimation": LARGEST // 8, "planned": LARGEST}
    first = certify(parse_config(data))
    extended = certify(parse_config(data | {"budget": data["budget"] | {"estimation": LARGEST}}))
    assert np.all((extended.radius > 0) >= (first.radius > 0))
    assert (extended.radius > 0).sum() > (first.radius > 0).sum()
    assert np.all(true_radii(2)[1][extended.radius > 0] > RADIUS)
    with pytest.raises(ConfigError, match=r"holds run .* budget.planned"):
        certify(parse_config(data | {"budget": data["budget"] | {"estimation": LARGEST // 2, "planned": None}}))


def test_a_radius_out_of_reach_is_refused_before_anything_is_drawn(tmp_path: Any) -> None:
    config = write_config(tmp_path / "run.yaml", fixed_radius(tmp_path / "run", 1, radius=2.0))
    told = drs_ray_here(["certify", str(config)])
    assert told.returncode == 2
    assert "certificate.radius: 2 is out of reach: 12,800 samples of each sub-image certify 1.5" in told.stderr
    assert not (tmp_path / "run").exists()
