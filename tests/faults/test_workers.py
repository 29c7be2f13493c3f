"""Workers that die, cannot start, or never come: who is blamed, what is stored, and that no vote changes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from drs_ray import certify
from drs_ray.config import parse_config
from drs_ray.engine import unit_failures
from drs_ray.engine.observer import Observer
from drs_ray.errors import ClassifierError, EngineError, UnitsSetAsideError
from tests.support.runs import BATCH, counts_digest, run_config, run_data

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


class Events(Observer):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        self.messages.append(message)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run of a classifier without faults: all faulty ones here are the same function."""
    return certify(run_config(tmp_path_factory.mktemp("undisturbed") / "run"))


def _two_workers(place: Path, **options: Any) -> dict[str, Any]:
    data = run_data(place, address="local", **options)
    data["engine"]["workers"] = 2
    return data


def test_a_killed_worker_gives_its_unit_back(tmp_path):
    marker = tmp_path / "die-once"
    options = {"factory": "dies", "trigger": BATCH, "marker": str(marker)}
    undisturbed = certify(run_config(tmp_path / "undisturbed", **options))
    marker.touch()
    events = Events()
    disturbed = certify(run_config(tmp_path / "disturbed", address="local", **options), events)
    assert not marker.exists()
    assert [m for m in events.messages if m.startswith("lost a worker at counts/")]
    assert counts_digest(disturbed.uri) == counts_digest(undisturbed.uri)
    assert disturbed.certificates.equals(undisturbed.certificates)


def test_a_worker_whose_gpu_is_lost_ends_and_no_unit_is_blamed(tmp_path, undisturbed):
    marker = tmp_path / "lose-once"
    marker.touch()
    data = _two_workers(tmp_path / "run", factory="loses_device", trigger=BATCH, marker=str(marker))
    events = Events()
    disturbed = certify(parse_config(data), events)
    assert not marker.exists()
    assert len([m for m in events.messages if m.startswith("lost a worker at counts/")]) == 1
    assert not [m for m in events.messages if m.startswith("set aside")]
    assert counts_digest(disturbed.uri) == counts_digest(undisturbed.uri)


@pytest.mark.slow
def test_a_worker_killed_while_it_starts_is_replaced(tmp_path, undisturbed):
    marker = tmp_path / "die-once"
    marker.touch()
    data = _two_workers(tmp_path / "run", factory="dies_loading", marker=str(marker), process=os.getpid())
    events = Events()
    disturbed = certify(parse_config(data), events)
    assert not marker.exists()
    assert len([m for m in events.messages if "was lost while starting: " in m]) == 1
    assert not [m for m in events.messages if "the unit is tried again" in m]
    assert counts_digest(disturbed.uri) == counts_digest(undisturbed.uri)


@pytest.mark.slow
@pytest.mark.parametrize("committed", [False, True])
def test_a_worker_killed_while_it_writes_leaves_a_whole_part_or_none(tmp_path, undisturbed, committed):
    marker = tmp_path / "die-once"
    marker.touch()
    options = {"marker": str(marker), "process": os.getpid(), "committed": committed}
    data = _two_workers(tmp_path / "run", factory="dies_storing", **options)
    events = Events()
    disturbed = certify(parse_config(data), events)
    assert not marker.exists()
    assert len([m for m in events.messages if m.startswith("lost a worker at counts/")]) == 1
    # A part that never got its name is hidden from every reader.
    assert len(list((tmp_path / "run" / "counts").rglob(".*.tmp"))) == (0 if committed else 1)
    assert counts_digest(disturbed.uri) == counts_digest(undisturbed.uri)
    assert disturbed.certificates.equals(undisturbed.certificates)


@pytest.mark.slow
def test_a_unit_that_always_kills_its_worker_is_set_aside_and_the_rest_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(unit_failures, "KILLS_BEFORE_SET_ASIDE", 2)  # a new worker takes seconds
    marker = tmp_path / "die"
    options = {"images": 6, "factory": "dies", "trigger": BATCH, "marker": str(marker), "once": False}
    undisturbed = certify(run_config(tmp_path / "undisturbed", **options))
    data = run_data(tmp_path / "run", address="local", **options)
    data["engine"]["workers"] = 1
    data["engine"]["images_per_unit"] = 6
    marker.touch()
    with pytest.raises(UnitsSetAsideError, match=r"2 units were set aside, .*took down 2 workers") as caught:
        certify(parse_config(data))
    assert caught.value.exit_code == 3
    marker.unlink()
    assert certify(parse_config(data)).certificates.equals(undisturbed.certificates)


def test_a_worker_that_cannot_load_its_classifier_ends_the_run_with_the_cause(tmp_path):
    config = run_config(tmp_path / "run", address="local", factory="only_in", process=os.getpid())
    with pytest.raises(ClassifierError, match=r"weights\.safetensors is not on this node") as caught:
        certify(config)
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "run" / "counts").rglob("*.parquet"))


def test_units_that_raise_in_a_worker_name_image_and_sub_image(tmp_path):
    with pytest.raises(UnitsSetAsideError, match=r"sub-image \d: NaN or infinite logits for image \d+ ") as caught:
        certify(run_config(tmp_path / "run", address="local", images=6, factory="overflows", trigger=BATCH))
    assert "\n" not in str(caught.value)


def test_a_run_that_nothing_can_serve_says_what_was_asked_for(tmp_path):
    data = run_data(tmp_path / "run", address="auto", images=3)
    data["engine"] |= {"cpus_per_worker": 64.0, "stall_seconds": 3.0}
    with pytest.raises(EngineError, match=r"no worker could be had for 3 s: asked for 64 CPUs .* free: 2 CPUs"):
        certify(parse_config(data))
