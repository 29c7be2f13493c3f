"""Trainings that are killed, alone and on Ray: the same command goes on, to the weights of the undisturbed one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from drs_ray.config import RunConfig, parse_config
from drs_ray.errors import ClassifierError, ConfigError
from drs_ray.training.run import state_file, train_run
from tests.support.runs import FACTORY, Driver, drs_ray, write_config

BATCH = 40


def _data(folder: Path, marker: Path, address: str = "local", workers: int = 1, **training: Any) -> dict[str, Any]:
    """RS of a linear classifier, which kills its process in a whole batch of one worker when the marker is there."""
    arguments = {"trigger": BATCH // workers, "marker": str(marker)}
    return {
        "dataset": {"name": "mnist5k"},
        "partition": {"name": "none"},
        "classifiers": [
            {
                "architecture": f"{FACTORY}:dies",
                "arguments": arguments,
                "checkpoint": str(folder / "a.safetensors"),
                "sigma": 0.5,
            }
        ],
        "training": {"epochs": 12, "batch": BATCH, "workers": workers, **training},
        "engine": {"address": address, "device": "cpu", "cpus_per_worker": 0.5},
        "output": str(folder / "run"),
    }


def _train(config: RunConfig, marker: Path | None = None) -> tuple[bytes, list[int]]:
    """The checkpoint and the epochs told; the marker is put down after the second one."""
    told: list[int] = []

    def on_progress(sub_image: int, epoch: int, *_: object) -> None:
        told.append(epoch)
        if marker is not None and epoch == 2:
            marker.touch()

    (file,) = train_run(config, on_progress=on_progress)
    return Path(file).read_bytes(), told


def test_a_training_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    marker = tmp_path / "die-once"
    undisturbed, _ = _train(parse_config(_data(tmp_path / "undisturbed", marker, "inline")))
    data = _data(tmp_path / "killed", marker, "inline")
    config = write_config(tmp_path / "config.yaml", data)
    checkpoint = Path(data["classifiers"][0]["checkpoint"])
    driver = Driver(config, os.environ, subcommand="train")
    driver.wait_until(Path(state_file(str(checkpoint))).exists, "the first state")
    marker.touch()
    assert driver.wait(timeout=60) == -signal.SIGKILL
    assert not checkpoint.exists()
    assert not marker.exists()
    again = drs_ray(["train", str(config)])
    assert again.returncode == 0, again.stderr
    assert "train: sub-image 0: going on after epoch " in again.stderr
    assert checkpoint.read_bytes() == undisturbed
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    kept = drs_ray(["train", str(config)])
    assert "is kept; delete it to train again" in kept.stderr
    assert kept.stdout.strip() == str(checkpoint)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # Ray's own, as it starts a group
class TestOnRay:
    def test_a_worker_that_dies_changes_no_weight(self, tmp_path):
        marker = tmp_path / "die-once"
        undisturbed, _ = _train(parse_config(_data(tmp_path / "undisturbed", marker, workers=2)))
        disturbed, told = _train(parse_config(_data(tmp_path / "disturbed", marker, workers=2)), marker)
        assert not marker.exists()
        assert disturbed == undisturbed
        assert told == list(range(1, 13))

    def test_one_worker_on_a_cluster_trains_what_this_process_trains(self, tmp_path):
        options = {"epochs": 2, "method": "consistency", "shift": 1, "loaders": 1}
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        here, _ = _train(parse_config(_data(tmp_path / "here", tmp_path / "never", **options)))
        torch.set_num_threads(threads)
        there, told = _train(parse_config(_data(tmp_path / "there", tmp_path / "never", "auto", **options)))
        assert there == here
        assert told == [1, 2]

    def test_what_a_worker_raises_is_one_line(self, tmp_path):
        data = _data(tmp_path, tmp_path / "never", workers=2, learning_rate=1e38, optimizer="sgd", schedule="cosine")
        with pytest.raises(ClassifierError, match=r"^sub-image 0: training diverged in epoch 1 .*lower") as caught:
            train_run(parse_config(data))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "a.safetensors").exists()

    def test_more_workers_than_this_machine_holds_are_refused(self, tmp_path):
        data = _data(tmp_path, tmp_path / "never", workers=20)
        with pytest.raises(
            ConfigError, match=r"training.workers: this machine's Ray has room for 4: asked for 20 worke"
        ):
            train_run(parse_config(data))


@pytest.mark.ray
@pytest.mark.slow
def test_an_interrupted_training_on_ray_says_how_to_go_on(tmp_path, ray_directory):
    data = _data(tmp_path, tmp_path / "never", workers=2, epochs=10_000)
    config = write_config(tmp_path / "config.yaml", data)
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"RAY_TMPDIR": ray_directory, "PYTHONPATH": root}
    state = Path(state_file(str(tmp_path / "a.safetensors")))
    driver = Driver(config, environment, subcommand="train")
    driver.wait_until(state.exists, "the first state")
    driver.send_signal(signal.SIGINT)
    assert driver.wait(timeout=60) == 128 + signal.SIGINT
    assert driver.text.strip().endswith(
        "error: interrupted by SIGINT; what was trained is kept; run the same command to go on"
    )
    assert "Traceback" not in driver.text
