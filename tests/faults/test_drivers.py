"""Drivers that are killed, interrupted or started twice: the next one finishes, with the undisturbed run's votes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from drs_ray import certify
from drs_ray.config import parse_config
from tests.support.runs import (
    BATCH,
    Driver,
    counts_digest,
    drs_ray,
    run_config,
    run_data,
    stored_parts,
    write_config,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SLOW = {"factory": "slow", "trigger": BATCH, "seconds": 0.02}
ROUNDS = 4


@pytest.fixture
def environment(ray_directory):
    """The environment of a driver process: Ray's files in the tests' own directory."""
    return os.environ | {"RAY_TMPDIR": ray_directory}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The digest that every run must end with."""
    place = tmp_path_factory.mktemp("undisturbed") / "run"
    certify(run_config(place, **SLOW))
    return counts_digest(place)


def test_sigkill_of_the_driver_and_resume(tmp_path, environment, undisturbed):
    driver = Driver(_config(tmp_path), environment)
    _wait_for_parts(driver, tmp_path / "run", 2)
    driver.kill()
    driver.wait()
    before = stored_parts(tmp_path / "run")
    assert 2 <= before < 8, "the driver was to be killed in the middle of the run"
    _resume(tmp_path, environment)
    assert counts_digest(tmp_path / "run") == undisturbed


def test_sigkill_of_the_driver_at_random_moments(tmp_path, environment, undisturbed):
    moments = random.Random(8)
    stored = 0
    for _ in range(ROUNDS):
        driver = Driver(_config(tmp_path), environment)
        try:
            driver.wait(moments.uniform(0, 15))  # from the imports to the reduction
        except subprocess.TimeoutExpired:
            driver.kill()
        assert driver.wait() in (0, -signal.SIGKILL), driver.text
        before, stored = stored, stored_parts(tmp_path / "run")
        assert stored >= before
        if stored:
            counts_digest(tmp_path / "run")  # every part is whole
    last = Driver(_config(tmp_path), environment)
    assert last.wait(timeout=240) == 0, last.text
    assert counts_digest(tmp_path / "run") == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_says_how_to_go_on(tmp_path, environment, undisturbed, number):
    driver = Driver(_config(tmp_path), environment)
    _wait_for_parts(driver, tmp_path / "run", 1)
    driver.send_signal(number)
    driver.wait(timeout=60)
    last = driver.text.splitlines()[-1]
    assert driver.returncode == 128 + number
    assert f"interrupted by {number.name}" in last
    assert "run the same command to resume" in last
    assert "Traceback" not in driver.text
    certify(parse_config(run_data(tmp_path / "run", **SLOW)))  # inline: an engine of another kind resumes as well
    assert counts_digest(tmp_path / "run") == undisturbed


def test_an_interrupted_inline_run_stops_and_blames_no_unit(tmp_path, environment, undisturbed):
    data = run_data(tmp_path / "run", **SLOW)
    driver = Driver(write_config(tmp_path / "config.yaml", data), environment)
    _wait_for_parts(driver, tmp_path / "run", 1)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=60) == 130
    assert "interrupted by SIGINT" in driver.text.splitlines()[-1]
    assert "set aside" not in driver.text
    assert stored_parts(tmp_path / "run") < 8
    certify(parse_config(data))
    assert counts_digest(tmp_path / "run") == undisturbed


def test_two_drivers_at_once_make_one_run(tmp_path, environment, undisturbed):
    config = _config(tmp_path)
    drivers = [Driver(config, environment) for _ in range(2)]
    for driver in drivers:
        assert driver.wait(timeout=240) == 0, driver.text
    assert counts_digest(tmp_path / "run") == undisturbed


def _config(directory: Path) -> Path:
    data = run_data(directory / "run", address="local", **SLOW)
    data["engine"]["workers"] = 1
    return write_config(directory / "config.yaml", data)


def _resume(directory: Path, environment: dict[str, str]) -> None:
    done = drs_ray(["certify", str(_config(directory))], env=environment)
    assert done.returncode == 0, done.stderr
    assert "resuming run" in done.stderr


def _wait_for_parts(driver: Driver, run: Path, count: int) -> None:
    driver.wait_until(lambda: stored_parts(run) >= count, f"{count} parts")
