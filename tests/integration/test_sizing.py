"""Sizes of units, measured on a real Ray: fixed by the first start, kept by a resume, and of no matter to votes."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from drs_ray import certify
from drs_ray.config import parse_config
from drs_ray.engine import sizing
from drs_ray.engine.forecast import plan_run
from drs_ray.engine.observer import Observer
from tests.support.runs import counts_digest, decoded_counts, run_config, run_data

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BRIEF, LONG = 1e-6, 1e6


class Steps(Observer):
    """What a run was doing, and how many units it had to do."""

    def __init__(self):
        self.steps = []
        self.todo = 0

    def step(self, message):
        self.steps.append(message)

    def planned(self, todo, stored):
        self.todo = len(todo)


def _config(place, seconds, **engine):
    data = run_data(place, address="local")
    data["engine"] |= {"workers": 2, "images_per_unit": None, "seconds_per_unit": seconds} | engine
    return parse_config(data)


def _certified(config):
    steps = Steps()
    certify(config, steps)
    return steps


def _sizes(place):
    engine = json.loads((place / "run.json").read_text())["config"]["engine"]
    return engine["images_per_unit"], engine["samples_per_unit"]


def _files(place):
    return {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}


def _votes(place):
    """Votes by sub-image, image, phase and class: what is left when samples are cut elsewhere."""
    total = Counter()
    for row in map(json.loads, decoded_counts(place)):
        for label, votes in row["votes"]:
            total[row["sub_image"], row["image_id"], row["phase"], label] += votes
    return total


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Three images per unit."""
    place = tmp_path_factory.mktemp("undisturbed") / "run"
    certify(run_config(place))
    return place


@pytest.fixture(autouse=True)
def no_run_is_small(monkeypatch):
    monkeypatch.setattr(sizing, "SMALL_RUN", 0)
    monkeypatch.setattr(sizing, "SHORTEST_SECONDS", 0.0)


def test_measured_sizes_are_fixed_by_the_first_start(tmp_path, undisturbed, local_ray):
    place = tmp_path / "run"
    steps = _certified(_config(place, BRIEF, samples_per_unit=400))
    assert "measuring" in steps.steps
    assert _sizes(place) == (1, 400)
    assert steps.todo == 24
    assert counts_digest(place) == counts_digest(undisturbed)

    lost = sorted((place / "counts").rglob("*.parquet"))[::7]
    for part in lost:
        part.unlink()
    steps = _certified(_config(place, LONG))
    assert "measuring" not in steps.steps
    assert steps.todo == len(lost)
    assert _sizes(place) == (1, 400)
    assert counts_digest(place) == counts_digest(undisturbed)


def test_a_plan_writes_nothing_and_is_what_the_run_does(tmp_path, undisturbed, local_ray):
    place = tmp_path / "run"
    planned = plan_run(_config(place, BRIEF))
    assert list(tmp_path.iterdir()) == []
    assert all(speed.least > 0 for speed in planned.speeds.values())
    assert planned.workers == 2

    assert _certified(_config(place, BRIEF)).todo == planned.most.units == 96
    assert _sizes(place) == (1, 100)  # less than a block of samples would be too much
    assert _votes(place) == _votes(undisturbed)

    before = _files(tmp_path)
    assert plan_run(_config(place, LONG)).record.config.engine.samples_per_unit is None  # as a new run would have it
    assert _files(tmp_path) == before
