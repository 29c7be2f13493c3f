"""Adaptive runs end to end: the same stages are drawn or skipped whatever the engine, the workers and interruptions."""

from __future__ import annotations

import pytest

from drs_ray import certify, reduce
from drs_ray.config import parse_config
from drs_ray.counts.history import read_counts
from drs_ray.engine.observer import Observer
from drs_ray.errors import CountsError
from drs_ray.storage import open_store
from tests.support.runs import counts_digest, run_data

IMAGES, STAGES, LARGEST = 12, 4, 800


def adaptive(place, *, address: str = "inline", estimation: int = LARGEST, planned: int | None = None):
    """Stages of 100, 200, 400 and 800 samples; a grid that some images reach early and others never."""
    data = run_data(place, address=address, images=IMAGES)
    data["classifiers"] = [{**classifier, "sigma": 0.1} for classifier in data["classifiers"]]
    data["budget"] = {"selection": 50, "estimation": estimation, "stages": STAGES, "planned": planned}
    data["certificate"] = {"radii": [0.0, 0.05, 0.1]}
    return data


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return certify(parse_config(adaptive(tmp_path_factory.mktemp("adaptive") / "run")))


def test_images_stop_at_different_stages_and_save_samples(undisturbed):
    drawn = read_counts(open_store(undisturbed.uri), undisturbed.record).drawn
    assert set(drawn.tolist()) <= {100, 200, 400, 800}
    assert len(set(drawn.tolist())) >= 2, "the example must exercise the decision"
    assert undisturbed.samples == int(drawn.sum()) * 2 + IMAGES * 2 * 50
    assert undisturbed.samples < IMAGES * 2 * (LARGEST + 50)


class _Forecasts(Observer):
    """All estimates of the samples of later stages."""

    def __init__(self):
        self.samples = []

    def expected(self, samples):
        self.samples.append(samples)

    def check(self):
        assert self.samples[0] is None
        assert max(samples for samples in self.samples if samples is not None) > 0
        assert self.samples[-1] == 0


@pytest.mark.parametrize("size", [1, 16])
def test_the_size_of_units_changes_nothing(tmp_path, undisturbed, size):
    data = adaptive(tmp_path / "run")
    data["engine"]["images_per_unit"] = size
    forecasts = _Forecasts()
    assert certify(parse_config(data), forecasts).certificates.equals(undisturbed.certificates)
    forecasts.check()
    assert counts_digest(tmp_path / "run") == counts_digest(undisturbed.uri)


@pytest.mark.ray
def test_ray_draws_the_same_stages(tmp_path, undisturbed, local_ray):
    data = adaptive(tmp_path / "run", address="local")
    data["engine"]["workers"] = 3
    forecasts = _Forecasts()
    assert certify(parse_config(data), forecasts).certificates.equals(undisturbed.certificates)
    forecasts.check()
    assert counts_digest(tmp_path / "run") == counts_digest(undisturbed.uri)


class _Stop(Exception):
    """Stands for a driver that dies."""


class _DiesAfter(Observer):
    def __init__(self, units: int) -> None:
        self._left = units

    def unit_done(self, unit, outcome):
        self._left -= 1
        if not self._left:
            raise _Stop


@pytest.mark.parametrize("units", [1, 3, 8, 11])
def test_resume_in_the_middle_of_any_stage(tmp_path, undisturbed, units):
    data = adaptive(tmp_path / "run")
    with pytest.raises(_Stop):
        certify(parse_config(data), _DiesAfter(units))
    with pytest.raises(CountsError, match="the run is not finished"):
        reduce(str(tmp_path / "run"))
    assert certify(parse_config(data)).certificates.equals(undisturbed.certificates)
    assert counts_digest(tmp_path / "run") == counts_digest(undisturbed.uri)


def test_another_alpha_on_reduction_does_not_change_who_is_finished(tmp_path, undisturbed):
    certify(parse_config(adaptive(tmp_path / "run")))
    looser = reduce(str(tmp_path / "run"), alpha=0.05)
    assert not looser.as_planned
    assert (looser.radius >= undisturbed.radius).all()
    data = adaptive(tmp_path / "run")
    data["certificate"]["alpha"] = 0.2  # a resume with another alpha draws nothing more either
    assert certify(parse_config(data)).samples == undisturbed.samples


def test_a_planned_run_is_extended_and_ends_like_one_that_was_never_stopped(tmp_path):
    whole = certify(parse_config(adaptive(tmp_path / "whole", planned=LARGEST)))
    first = certify(parse_config(adaptive(tmp_path / "run", estimation=200, planned=LARGEST)))
    assert first.samples < whole.samples
    extended = certify(parse_config(adaptive(tmp_path / "run", planned=LARGEST)))
    assert extended.samples >= whole.samples  # the shorter forecast may have asked for a stage that the longer did not
    assert (extended.radius >= first.radius).all()  # shares that were spent stay spent, none is spent twice
    assert extended.record.schedule == whole.record.schedule
