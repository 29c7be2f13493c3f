"""`jobs/reproduction.py`: from data to certificates with one command that goes on where it was interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from drs_ray import read_run
from drs_ray.config import load_config
from drs_ray.data.arrays import ArrayDataset
from drs_ray.data.packing import pack_dataset
from drs_ray.results.reduce import RunResult
from drs_ray.storage import LocalStore
from jobs import reproduction

JOB = Path(reproduction.__file__)
SMALL = (
    *("dataset.images.skip=4", "training.epochs=1", "training.batch=16", "budget.estimation=16", "budget.stages=1"),
    *("budget.selection=4", "engine.batch=4", "engine.device=cpu"),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 training and 12 test images of 8x8 colour pixels, in ten classes, as the packed CIFAR-10."""
    root = tmp_path_factory.mktemp("data")
    for seed, (split, count) in enumerate({"train": 40, "test": 12}.items()):
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
        images = ArrayDataset("cifar10", split, 10, pixels, np.arange(count) % 10)
        pack_dataset(images, None, LocalStore(root), lambda done: None)
    return root


def _command(data: Path, *arguments: str) -> list[str]:
    sets = [word for setting in SMALL for word in ("--set", setting)]
    return [sys.executable, str(JOB), "--data", str(data), "--workers", "1", *sets, *arguments]


def _only(*names: str) -> list[str]:
    return [word for name in names for word in ("--only", name)]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(JOB.parents[1])}


def _run(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=folder, env=_environment(), capture_output=True, text=True, timeout=300)


def test_an_experiment_is_trained_and_certified_and_what_is_done_is_kept(data: Path, tmp_path: Path) -> None:
    command = _command(data, *_only("drs-0.50-finetuned", "rs-0.50-seed1"))
    first = _run(tmp_path, command)
    assert first.returncode == 0, first.stderr
    assert "2 of 2 experiments are done" in first.stdout
    assert "warning: the test images have the digest" in first.stderr
    weights = {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").rglob("*.safetensors")}
    assert len(weights) == 1 + 2
    run = read_run(str(tmp_path / "runs/reproduction/drs-0.50-finetuned"))
    assert isinstance(run, RunResult)
    assert (run.images, run.record.sub_images) == (3, 2)
    assert run.record.config.training.epochs == 1
    again = _run(tmp_path, command)
    assert again.returncode == 0, again.stderr
    assert weights == {file: file.stat().st_mtime_ns for file in (tmp_path / "checkpoints").rglob("*.safetensors")}
    log = (tmp_path / "runs/reproduction/drs-0.50-finetuned.log").read_text()
    assert log.count("is kept; delete it to train again") == 2


def test_denoisers_stand_before_the_classifier_of_an_earlier_experiment(data: Path, tmp_path: Path) -> None:
    unet = ("block_out_channels=[4]", "down_block_types=[DownBlock2D]", "up_block_types=[UpBlock2D]")
    small = [word for k in (0, 1) for key in unet for word in ("--set", f"classifiers.{k}.denoiser.arguments.{key}")]
    trained = _run(tmp_path, _command(data, *_only("rs-clean")))
    assert trained.returncode == 0, trained.stderr
    done = _run(tmp_path, _command(data, *small, *_only("drs-denoised-masked-0.50")))
    assert done.returncode == 0, done.stderr
    files = [file.relative_to(tmp_path / "checkpoints/reproduction") for file in tmp_path.rglob("*.safetensors")]
    assert [file for file in files if len(file.parts) == 1] == [Path("rs-clean.safetensors")]
    assert {file.parts[0] for file in files if len(file.parts) == 2} == {
        f"drs-denoised-masked-0.50-{k}" for k in (0, 1)
    }
    assert not (tmp_path / "runs/reproduction/rs-clean").exists()  # trained only
    assert (tmp_path / "runs/reproduction/drs-denoised-masked-0.50/certificates.parquet").exists()


def test_an_interrupted_command_ends_its_children_and_can_be_run_again(data: Path, tmp_path: Path) -> None:
    long = ["--set", "training.epochs=10000", *_only("rs-0.50", "rs-0.25")]
    command = [*_command(data), *long]
    log = tmp_path / "runs/reproduction/rs-0.50.log"
    with subprocess.Popen(
        command, cwd=tmp_path, env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as child:
        deadline = time.monotonic() + 120
        while "epoch 2 of 10000" not in (log.read_text() if log.exists() else ""):
            assert time.monotonic() < deadline
            assert child.poll() is None
            time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGTERM
    assert "run the same command to go on" in errors
    assert "interrupted by SIGTERM" in log.read_text()
    assert not (tmp_path / "runs/reproduction/rs-0.25.log").exists()
    shorter = _run(tmp_path, [*_command(data), *_only("rs-0.25")])
    assert shorter.returncode == 0, shorter.stderr


def test_what_fails_is_named_and_the_others_go_on(data: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints/reproduction").mkdir(parents=True)
    (tmp_path / "checkpoints/reproduction/rs-0.50.training.safetensors").write_bytes(b"no state")
    done = _run(tmp_path, _command(data, *_only("rs-0.50", "rs-0.25")))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: rs-0.50: drs-ray train ended with 1: training state ")
    assert "1 of 2 experiments are done" in done.stdout
    assert (tmp_path / "runs/reproduction/rs-0.25/certificates.parquet").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "rs-9"], "error: --only rs-9: no such experiment; `--list` prints their names"),
        (["--data", "nowhere"], "error: data set parquet: "),
        (["--set", "training.epoch=1"], "error: "),
    ],
)
def test_bad_input_is_one_line_and_starts_nothing(
    data: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = _run(tmp_path, _command(data, *arguments))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(message)
    assert not (tmp_path / "runs").exists()


def test_one_network_for_all_is_expected_to_cost_what_its_epochs_cost() -> None:
    """As much in training as a network for each with a share of its epochs, and as much in certification."""
    experiments = {e.name: load_config(e.file, e.settings([])) for e in reproduction.EXPERIMENTS}
    for kind in ("drs", "k4"):
        each, shared = (reproduction.weight(experiments[name]) for name in (f"{kind}-0.25", f"{kind}-shared-0.25"))
        budget = experiments[f"{kind}-shared-0.25"].budget
        assert budget == experiments["rs-0.50-seed1"].budget
        assert shared == pytest.approx(each)


def test_experiments_are_valid_and_comparable() -> None:
    names = [experiment.name for experiment in reproduction.EXPERIMENTS]
    assert len(set(names)) == len(names)
    configs = {e.name: load_config(e.file, e.settings(["dataset.root=data"])) for e in reproduction.EXPERIMENTS}
    for experiment in reproduction.EXPERIMENTS:
        config = configs[experiment.name]
        total = float(experiment.config.rpartition("-")[2])
        assert sum(sigma**2 for sigma in config.sigmas) == pytest.approx(total**2)
        assert config.dataset.images.skip == 20
        first = configs["rs-0.50" if experiment.name in ("rs-0.50", "drs-0.50") else "rs-0.50-seed1"]
        assert config.certificate == first.certificate
        if experiment.behind is None:
            assert config.budget == first.budget
        for needed in experiment.needs:
            assert names.index(needed.name) < names.index(experiment.name)
        other = experiment.with_architecture("resnet110")
        larger = load_config(other.file, other.settings([]))
        assert {classifier.architecture for classifier in larger.classifiers} == {"resnet110"}
        assert other.name == f"{experiment.name}-resnet110"
    outputs = [config.output.uri for config in configs.values()]
    trained = [config.trained(group[0]).checkpoint for config in configs.values() for group in config.networks]
    assert len(set(outputs)) == len(outputs)
    assert len(set(trained)) == len(trained)
    for experiment in reproduction.EXPERIMENTS:
        if experiment.behind is not None:
            behind = {classifier.checkpoint for classifier in configs[experiment.behind.name].classifiers}
            assert {classifier.checkpoint for classifier in configs[experiment.name].classifiers} == behind
