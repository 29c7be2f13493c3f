"""`train_run`: checkpoints that load into their run, each sub-image on its own, mistakes found before training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from drs_ray.config import RunConfig, parse_config
from drs_ray.data import datasets
from drs_ray.data.arrays import ArrayDataset, load_mnist5k
from drs_ray.errors import ConfigError, DataError
from drs_ray.models.checkpoints import load_checkpoint
from drs_ray.models.factory import load_classifier
from drs_ray.training.run import train_run


@pytest.fixture(autouse=True)
def small_mnist5k(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every 40th training digit: the real loader and path, in a fraction of a second."""

    def load(split: str) -> ArrayDataset:
        full = load_mnist5k(split)
        return ArrayDataset(full.name, split, 10, full.pixels[::40], full.targets[::40])

    monkeypatch.setattr(datasets, "load_mnist5k", load)


def _config(folder: Path, *, partition: str = "checkerboard", **training: Any) -> RunConfig:
    count = 2 if partition == "checkerboard" else 1
    return parse_config(
        {
            "dataset": {"name": "mnist5k"},
            "partition": {"name": partition},
            "classifiers": [
                {
                    "architecture": "digits-cnn",
                    "arguments": {"width": 4},
                    "checkpoint": str(folder / f"{partition}-{k}.safetensors"),
                    "sigma": 0.5,
                }
                for k in range(count)
            ],
            "training": {"epochs": 2, "batch": 32, "shift": 0, **training},
            "engine": {"device": "cpu"},
            "output": str(folder / "run"),
        }
    )


def _changed(config: RunConfig, sub_image: int, **values: Any) -> RunConfig:
    data = config.model_dump(mode="json")
    data["classifiers"][sub_image] |= values
    return parse_config(data)


def test_checkpoints_load_into_the_run_that_trained_them(tmp_path: Path) -> None:
    config = _config(tmp_path / "new" / "folder")
    reports: list[tuple[int, int, int, float, float]] = []
    files = train_run(config, on_progress=lambda *report: reports.append(report))
    assert files == [Path(str(c.checkpoint)) for c in config.classifiers]
    assert [(k, epoch, epochs) for k, epoch, epochs, _, _ in reports] == [(0, 1, 2), (0, 2, 2), (1, 1, 2), (1, 2, 2)]
    digests = set()
    for k, classifier in enumerate(config.classifiers):
        loaded = load_classifier(
            **classifier.model_dump(),
            sub_image=k,
            partition="checkerboard",
            layout="packed",
            image_shape=(1, 28, 14),
            num_classes=10,
            dataset="mnist5k",
        )
        assert loaded.warnings == ()
        digests.add(loaded.digest)
    assert len(digests) == 2
    metadata = load_checkpoint(files[1])[1]
    assert metadata is not None
    assert (metadata.sub_image, metadata.sigma, metadata.dataset) == (1, 0.5, "mnist5k")
    assert '"epochs":2' in metadata.training


def test_a_sub_image_learns_the_same_alone_and_seed_and_sigma_matter(tmp_path: Path) -> None:
    both = train_run(_config(tmp_path / "both"))
    torch.manual_seed(123)
    state = torch.get_rng_state()
    (alone,) = train_run(_config(tmp_path / "alone"), sub_images=[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert alone.read_bytes() == both[1].read_bytes()
    assert not (tmp_path / "alone" / "checkerboard-0.safetensors").exists()
    (other,) = train_run(_config(tmp_path / "other", seed=1), sub_images=[1])
    (noisier,) = train_run(_changed(_config(tmp_path / "noisier"), 1, sigma=0.6), sub_images=[1])
    weights = [load_checkpoint(file)[0]["fc2.weight"] for file in (alone, other, noisier)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_plain_smoothing_sees_whole_images(tmp_path: Path) -> None:
    (file,) = train_run(_config(tmp_path, partition="none"))
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    assert metadata.image_shape == (1, 28, 28)


def test_a_users_factory_is_trained_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_net.py").write_text(
        "from torch import nn\n"
        "def make(image_shape, num_classes, hidden):\n"
        "    c, h, w = image_shape\n"
        "    hidden_layers = nn.Linear(c * h * w, hidden), nn.ReLU()\n"
        "    return nn.Sequential(nn.Flatten(), *hidden_layers, nn.Linear(hidden, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    config = _changed(_config(tmp_path), 0, architecture="users_net:make", arguments={"hidden": 8})
    (file,) = train_run(config, sub_images=[0])
    tensors, metadata = load_checkpoint(file)
    assert tensors["1.weight"].shape == (8, 392)
    assert metadata is not None
    assert metadata.architecture == "users_net:make"


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        (None, r"classifiers.1.checkpoint: training writes a local .safetensors file, got None; give a path such as"),
        ("s3://bucket/a.safetensors", r"classifiers.1.checkpoint: training writes a local .* got s3://bucket"),
        ("a.pt", r"classifiers.1.checkpoint: training writes a local .safetensors file, got a.pt"),
        ("FOLDER/checkerboard-0.safetensors", r"every sub-image needs a file of its own, got .* twice; rename one"),
        ("FOLDER/taken/a.safetensors", r"classifiers.1.checkpoint: directory .*taken cannot be created"),
        ("FOLDER/directory.safetensors", r"classifiers.1.checkpoint: .*directory.safetensors cannot be written"),
    ],
)
def test_a_bad_checkpoint_is_refused_before_anything_is_trained(
    tmp_path: Path, checkpoint: str | None, message: str
) -> None:
    (tmp_path / "taken").touch()
    (tmp_path / "directory.safetensors").mkdir()
    given = checkpoint.replace("FOLDER", str(tmp_path)) if checkpoint else checkpoint
    config = _changed(_config(tmp_path), 1, checkpoint=given)

    def never(*report: object) -> None:
        raise AssertionError("training started")

    with pytest.raises(ConfigError, match=message) as caught:
        train_run(config, on_progress=never)
    assert "\n" not in str(caught.value)


def test_pixels_are_trained_with_and_denoisers_are_not(tmp_path: Path) -> None:
    config = _changed(_config(tmp_path), 0, arguments={}, pixels={"mean": [0.1], "std": [0.3]})
    (file,) = train_run(config, sub_images=[0])
    metadata = load_checkpoint(file)[1]
    assert metadata is not None
    assert metadata.pixels == {"range": [0.0, 1.0], "mean": [0.1], "std": [0.3]}
    denoised = _changed(config, 0, denoiser={"architecture": "mine:make"})
    with pytest.raises(ConfigError, match=r"classifiers.0.denoiser: training is without one; remove it"):
        train_run(denoised, sub_images=[0])


def test_an_unknown_sub_image_or_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"partition checkerboard has the sub-images 0..1, got 2"):
        train_run(_config(tmp_path), sub_images=[2])
    with pytest.raises(ConfigError, match=r"split of mnist5k must be train or test, got 'val'"):
        train_run(_config(tmp_path, split="val"))
    data = _config(tmp_path).model_dump(mode="json")
    data["dataset"] |= {"name": "cifar10", "root": str(tmp_path / "nowhere")}
    with pytest.raises(DataError, match=r"nowhere is not a directory"):
        train_run(parse_config(data))
