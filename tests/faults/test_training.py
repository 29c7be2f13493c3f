"""Trainings that are killed, alone and on Ray: the same command goes on, to the weights of the undisturbed one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed

from drs_ray.config import RunConfig, parse_config
from drs_ray.data.arrays import ArrayDataset, load_mnist5k
from drs_ray.data.packing import pack_dataset
from drs_ray.errors import ClassifierError, ConfigError
from drs_ray.models.checkpoints import load_checkpoint
from drs_ray.storage import LocalStore
from drs_ray.training.job import TrainingJob, training_split
from drs_ray.training.loop import EpochDone, Place, Report
from drs_ray.training.run import state_file, train_run
from drs_ray.training.state import TrainingState, weights_of
from tests.support.runs import FACTORY, Driver, drs_ray, write_config

BATCH = 40
STEPS = 5  # an epoch has so many
EPOCHS = 4
DEADLY = 2 * STEPS + 3  # in the third epoch


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 training digits, packed: every process reads them in no time."""
    root = tmp_path_factory.mktemp("digits")
    full = load_mnist5k("train")
    few = ArrayDataset("mnist5k", "train", 10, full.pixels[::20], full.targets[::20])
    assert len(few) == STEPS * BATCH
    pack_dataset(few, None, LocalStore(root), lambda images: None)
    return root


def _data(
    folder: Path, digits: Path, marker: Path, address: str = "auto", workers: int = 1, **training: Any
) -> dict[str, Any]:
    """RS of a linear classifier, which kills its process in the third epoch when the marker is there."""
    arguments = {"trigger": BATCH // workers, "marker": str(marker), "after": DEADLY}
    return {
        "dataset": {"name": "parquet", "root": str(digits)},
        "partition": {"name": "none"},
        "classifiers": [
            {
                "architecture": f"{FACTORY}:dies",
                "arguments": arguments,
                "checkpoint": str(folder / "a.safetensors"),
                "sigma": 0.5,
            }
        ],
        "training": {"epochs": EPOCHS, "batch": BATCH, "workers": workers, **training},
        "engine": {"address": address, "device": "cpu", "cpus_per_worker": 0.5},
        "output": str(folder / "run"),
    }


def _train(data: dict[str, Any]) -> tuple[bytes, list[int], list[str]]:
    """The checkpoint, the epochs told, and the notes."""
    told: list[int] = []
    notes: list[str] = []
    (file,) = train_run(
        parse_config(data), on_progress=lambda sub_image, epoch, *_: told.append(epoch), on_note=notes.append
    )
    return Path(file).read_bytes(), told, notes


def test_a_training_that_was_killed_goes_on_to_the_same_weights(tmp_path, digits):
    marker = tmp_path / "die-once"
    undisturbed, _, _ = _train(_data(tmp_path / "undisturbed", digits, marker, "inline"))
    data = _data(tmp_path / "killed", digits, marker, "inline")
    config = write_config(tmp_path / "config.yaml", data)
    checkpoint = Path(data["classifiers"][0]["checkpoint"])
    marker.touch()
    assert Driver(config, os.environ, subcommand="train").wait(timeout=120) == -signal.SIGKILL
    assert Path(state_file(str(checkpoint))).exists()
    assert not checkpoint.exists()
    assert not marker.exists()
    again = drs_ray(["train", str(config)])
    assert again.returncode == 0, again.stderr
    assert "train: sub-image 0: going on after epoch 2 of 4" in again.stderr
    assert again.stdout.strip() == str(checkpoint)
    assert checkpoint.read_bytes() == undisturbed
    assert [path.name for path in checkpoint.parent.iterdir()] == [checkpoint.name]
    kept, told, (note,) = _train(data)
    assert kept == undisturbed
    assert told == []
    assert note.endswith("was trained with these settings, and is kept; delete it to train again")


def _without_ray(rank: int, config: RunConfig, meeting: Path, kept: Path) -> None:
    """One of two processes that train by torch.distributed alone, and again from the state after the first epoch.

    The first process keeps both weights.
    """
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    dataset = training_split(config)
    job = TrainingJob(config, (0,), dataset.digest)
    states: list[TrainingState] = []

    def hear(report: Report) -> None:
        if isinstance(report, EpochDone):
            assert report.state is not None
            states.append(report.state)

    job.train(dataset, Place("cpu", rank, 2), TrainingState(0, weights_of(job.build(dataset))), hear)
    last = len(states)  # none but in the first process
    first: list[Any] = states[:1] or [None]
    distributed.broadcast_object_list(first)
    job.train(dataset, Place("cpu", rank, 2), first[0], hear)
    if rank == 0:
        torch.save([states[last - 1].weights, states[-1].weights], kept)
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)  # gloo's threads may abort the process while the interpreter ends


def _weights_without_ray(data: dict[str, Any], folder: Path) -> list[dict[str, Tensor]]:
    """The weights of an undisturbed training, and of one that was resumed after the first epoch."""
    config = parse_config(data)
    torch.multiprocessing.start_processes(
        _without_ray, (config, folder / "meeting", folder / "weights"), nprocs=2, start_method="spawn"
    )
    weights: list[dict[str, Tensor]] = torch.load(folder / "weights", weights_only=True)
    return weights


def test_workers_that_attack_go_on_to_the_same_weights(tmp_path, digits):
    """An attack uses a worker's own statistics of batch norm, and a state has those of the first worker."""
    attack = {"method": "smoothadv", "smoothadv": {"steps": 1, "copies": 1, "warm_up": 1}}
    data = _data(tmp_path, digits, tmp_path / "never", workers=2, **{**attack, "epochs": 2})
    data["classifiers"][0] |= {"architecture": "digits-cnn", "arguments": {"width": 4}}
    undisturbed, resumed = _weights_without_ray(data, tmp_path)
    assert all(torch.equal(undisturbed[name], resumed[name]) for name in undisturbed)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")  # Ray's own, as it starts a group
class TestOnRay:
    def test_a_worker_that_dies_changes_no_weight(self, tmp_path, digits):
        marker = tmp_path / "die-once"
        data = _data(tmp_path, digits, marker, workers=2)
        undisturbed, _ = _weights_without_ray(data, tmp_path)
        marker.touch()
        _, told, _ = _train(data)
        assert not marker.exists()
        assert told == [1, 2, 3, 4]
        weights, _ = load_checkpoint(tmp_path / "a.safetensors")
        assert weights.keys() == undisturbed.keys()
        assert all(torch.equal(weights[name], undisturbed[name]) for name in weights)

    def test_what_a_worker_raises_is_one_line(self, tmp_path, digits):
        options = {"learning_rate": 1e38, "optimizer": "sgd", "schedule": "cosine"}
        with pytest.raises(ClassifierError, match=r"^sub-image 0: training diverged in epoch 1 .*lower") as caught:
            _train(_data(tmp_path, digits, tmp_path / "never", workers=2, **options))
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "a.safetensors").exists()

    def test_more_workers_than_this_machine_holds_are_refused(self, tmp_path, digits):
        with pytest.raises(
            ConfigError, match=r"training.workers: this machine's Ray has room for 4: asked for 20 worke"
        ):
            _train(_data(tmp_path, digits, tmp_path / "never", "local", workers=20))

    def test_an_interrupted_training_says_how_to_go_on_and_goes_on_anywhere(self, tmp_path, digits):
        import ray

        gate = tmp_path / "slowly"
        here, there = (
            _data(tmp_path / name, digits, gate, address, epochs=12, method="consistency", shift=1, loaders=1)
            for name, address in (("here", "local"), ("there", "auto"))
        )
        for data in (here, there):  # another setting would be another training
            slow = {"trigger": BATCH, "seconds": 0.3, "gate": str(gate)}
            data["classifiers"][0] |= {"architecture": f"{FACTORY}:slow", "arguments": slow}
        undisturbed, _, _ = _train(here)
        config = write_config(tmp_path / "config.yaml", there)
        head = ray.get_runtime_context().gcs_address
        environment = os.environ | {"RAY_ADDRESS": head, "PYTHONPATH": str(Path(__file__).parents[2])}
        gate.touch()  # 18 seconds, in which it is interrupted
        driver = Driver(config, environment, subcommand="train")
        driver.wait_until(Path(state_file(str(tmp_path / "there" / "a.safetensors"))).exists, "the first state")
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=60) == 128 + signal.SIGINT
        assert driver.text.strip().endswith(
            "error: interrupted by SIGINT; what was trained is kept; run the same command to go on"
        )
        assert "Traceback" not in driver.text
        gate.unlink()
        there["engine"]["address"] = "local"  # one worker: this process
        gone_on, told, (note,) = _train(there)
        assert note.startswith(f"sub-image 0: going on after epoch {told[0] - 1} of 12")
        assert 1 < told[0] <= 12
        assert gone_on == undisturbed
