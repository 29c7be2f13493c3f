"""Whole runs in every precision, compiled and not: the same votes from everybody who counts, or one clear line."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from drs_ray import certify, reduce, verify
from drs_ray.config import parse_config
from drs_ray.counts import run_record
from drs_ray.engine.observer import Observer
from drs_ray.errors import ClassifierError, ConfigError, CountsError
from tests.support.runs import counts_digest, drs_ray, killed_at, run_data, stored_parts, write_config

COMBINATIONS = [("float32", False), ("float32", True), ("bfloat16", False), ("bfloat16", True)]


def config_data(place: Path, precision: str = "bfloat16", compile: bool | str = True, **engine: Any) -> dict[str, Any]:
    data = run_data(place, images=6, factory="convolutions", address=engine.pop("address", "inline"))
    data["budget"] = {"selection": 30, "estimation": 230}  # with batches of 50: whole slices and shorter ones
    data["engine"] |= {"precision": precision, "compile": compile, **engine}
    return data


def digest_of(data: dict[str, Any]) -> str:
    certify(parse_config(data))
    return counts_digest(data["output"])


@pytest.fixture(scope="module")
def digests(tmp_path_factory) -> dict[tuple[str, bool], str]:
    """The votes that each combination must give, whoever counts."""
    place = tmp_path_factory.mktemp("precision")
    return {
        (precision, compile): digest_of(config_data(place / f"{precision}-{compile}", precision, compile))
        for precision, compile in COMBINATIONS
    }


@pytest.mark.parametrize(("precision", "compile"), COMBINATIONS)
def test_votes_do_not_depend_on_the_size_of_units(tmp_path, digests, precision, compile):
    data = config_data(tmp_path / "run", precision, compile, images_per_unit=1)
    assert digest_of(data) == digests[precision, compile]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True])
def test_workers_give_the_votes_of_the_inline_engine(tmp_path, local_ray, digests, compile):
    data = config_data(tmp_path / "run", "bfloat16", compile, address="local", workers=3)
    assert digest_of(data) == digests["bfloat16", compile]


@pytest.mark.slow
def test_a_killed_run_goes_on_with_an_empty_compile_cache(tmp_path, digests):
    data = config_data(tmp_path / "run", images_per_unit=1)
    config = write_config(tmp_path / "run.yaml", data)
    first = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "first")}
    killed = killed_at("replace", "/counts/", 3, config, env=first)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert stored_parts(tmp_path / "run") == 2
    done = drs_ray(["certify", str(config)], env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "second")})
    assert done.returncode == 0, done.stderr
    assert counts_digest(tmp_path / "run") == digests["bfloat16", True]


def test_a_resume_keeps_what_the_first_start_decided(tmp_path, digests):
    data = config_data(tmp_path / "run")
    certify(parse_config(data))
    part = next((tmp_path / "run" / "counts").rglob("*.parquet"))
    part.unlink()
    again = certify(parse_config(config_data(tmp_path / "run", "auto", "auto")))
    assert again.record.arithmetic == "bfloat16, compiled"
    assert counts_digest(tmp_path / "run") == digests["bfloat16", True]


@pytest.mark.parametrize(
    ("engine", "difference"),
    [
        ({"compile": False}, "compile: True there, False here"),
        ({"precision": "float32"}, "precision: bfloat16 there, float32 here"),
    ],
)
def test_another_precision_is_another_run(tmp_path, engine, difference):
    certify(parse_config(config_data(tmp_path / "run")))
    with pytest.raises(ConfigError, match=difference):
        certify(parse_config(config_data(tmp_path / "run", **({"precision": "bfloat16", "compile": True} | engine))))


@pytest.mark.slow
def test_who_cannot_compile_counts_nothing_of_a_compiled_run(tmp_path):
    data = config_data(tmp_path / "run")
    config = write_config(tmp_path / "run.yaml", data)
    certify(parse_config(data))
    next((tmp_path / "run" / "counts").rglob("*.parquet")).unlink()
    before = stored_parts(tmp_path / "run")
    without = os.environ | {"CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "empty")}
    done = drs_ray(["certify", str(config)], env=without)
    assert done.returncode == 1
    assert "torch.compile failed" in done.stderr
    assert "Traceback" not in done.stderr
    assert stored_parts(tmp_path / "run") == before


@pytest.mark.slow
def test_compiling_that_fails_at_the_first_start_writes_nothing(tmp_path):
    config = write_config(tmp_path / "run.yaml", config_data(tmp_path / "run"))
    without = os.environ | {"CXX": "/no/such/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "empty")}
    done = drs_ray(["certify", str(config)], env=without)
    assert (done.returncode, (tmp_path / "run" / "run.json").exists()) == (1, False)
    assert "set engine.compile: false" in done.stderr


@pytest.fixture
def with_units(monkeypatch):
    """The device has units for bfloat16, whatever it is."""
    monkeypatch.setattr("drs_ray.models.precision.has_bfloat16", lambda device: True)


def test_auto_is_bfloat16_where_the_device_has_units(tmp_path, with_units, digests):
    data = config_data(tmp_path / "run", "auto", "auto")
    record = certify(parse_config(data)).record
    assert record.arithmetic == "bfloat16"  # and too small to be compiled
    assert counts_digest(tmp_path / "run") == digests["bfloat16", False]


def test_auto_is_float32_elsewhere(tmp_path, monkeypatch, digests):
    monkeypatch.setattr("drs_ray.models.precision.has_bfloat16", lambda device: False)
    assert digest_of(config_data(tmp_path / "run", "auto", "auto")) == digests["float32", False]


def test_bfloat16_without_units_is_done_with_a_warning(tmp_path, monkeypatch, digests):
    monkeypatch.setattr("drs_ray.models.precision.has_bfloat16", lambda device: False)
    events = Events()
    certify(parse_config(config_data(tmp_path / "run", "bfloat16", False)), events)
    assert [event.partition(":")[0] for event in events.told] == ["warning"]
    assert "no units for bfloat16" in events.told[0]
    assert counts_digest(tmp_path / "run") == digests["bfloat16", False]


class Events(Observer):
    """What is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def event(self, message, kind="note", **fields):
        self.told.append(message)


def test_a_classifier_that_cannot_do_bfloat16_votes_in_float32_and_says_so(tmp_path, with_units):
    data = config_data(tmp_path / "run", "auto", False)
    for classifier in data["classifiers"]:
        classifier["architecture"] = "tests.support.classifiers:only_float32"
    events = Events()
    assert certify(parse_config(data), events).record.arithmetic == "float32"
    (warning,) = events.told
    assert warning.startswith("warning: the run is done in float32, because in bfloat16 sub-image 0: the classifier")
    data["engine"]["precision"] = "bfloat16"
    data["output"] = str(tmp_path / "asked-for")
    with pytest.raises(ClassifierError, match=r"BFloat16.*engine\.precision: float32 may help"):
        certify(parse_config(data))
    assert not (tmp_path / "asked-for" / "run.json").exists()


def test_a_run_of_an_earlier_version_is_reduced_but_not_counted_on(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(run_record, "_inference_identity", lambda config: {})
        earlier.setattr(run_record, "_generator", lambda config: "numpy-philox")
        radius = certify(parse_config(config_data(tmp_path / "run", "float32", False))).radius
    file = tmp_path / "run" / "run.json"
    content = json.loads(file.read_text())
    for key in ("precision", "compile"):
        del content["config"]["engine"][key]
    file.write_text(json.dumps(content))
    assert (reduce(str(tmp_path / "run")).radius == radius).all()
    for precision in ("float32", "auto"):
        with pytest.raises(CountsError, match="was begun by an earlier version of drs-ray"):
            certify(parse_config(config_data(tmp_path / "run", precision, False)))
    with pytest.raises(CountsError, match="was begun by an earlier version of drs-ray"):
        verify(str(tmp_path / "run"))
