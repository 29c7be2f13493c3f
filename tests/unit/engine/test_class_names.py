"""What class numbers mean goes from training to certificates; unfit images are found before the first unit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from drs_ray.config import RunConfig, parse_config
from drs_ray.counts.run_record import read_record
from drs_ray.data.datasets import load_dataset
from drs_ray.data.packed_format import parse_index
from drs_ray.data.packing import pack_dataset
from drs_ray.engine.observer import Observer
from drs_ray.engine.run import certify_run
from drs_ray.errors import ClassifierError, ConfigError, DataError
from drs_ray.models.checkpoints import load_checkpoint, save_checkpoint
from drs_ray.models.factory import load_classifier
from drs_ray.storage import LocalStore
from drs_ray.training.run import train_run
from tests.support.classifiers import Prototypes


def make_images(root: Path, split: str, *classes: str, side: int = 8) -> None:
    for seed, name in enumerate(classes):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(root / split / name / "1.png")


def config_of(root: Path, output: str = "run", **dataset: Any) -> RunConfig:
    return parse_config(
        {
            "dataset": {"name": "folder", "root": str(root), **dataset},
            "partition": {"name": "none"},
            "classifiers": [
                {
                    "architecture": "tests.support.classifiers:prototypes",
                    "checkpoint": str(root / "weights.safetensors"),
                    "sigma": 0.5,
                }
            ],
            "noise": {"block": 10},
            "budget": {"selection": 5, "estimation": 20},
            "training": {"epochs": 1, "batch": 2, "shift": 0, "flip": False},
            "engine": {"address": "inline", "batch": 5, "device": "cpu"},
            "output": str(root / output),
        }
    )


class Heard(Observer):
    """Keeps warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def event(self, message: str, kind: str = "note", **fields: str | float) -> None:
        if kind == "warning":
            self.warnings.append(message)


def test_other_classes_of_the_same_number_are_refused(tmp_path: Path) -> None:
    make_images(tmp_path, "train", "bird", "cat")
    make_images(tmp_path, "test", "airplane", "cat")
    train_run(config_of(tmp_path))
    metadata = load_checkpoint(tmp_path / "weights.safetensors")[1]
    assert metadata is not None
    assert metadata.classes == ("bird", "cat")
    message = r"weights.safetensors: trained for other classes .*: class 0 is 'bird' there, 'airplane' here \(2 classes"
    with pytest.raises(ClassifierError, match=message):
        certify_run(config_of(tmp_path))
    assert not (tmp_path / "run").exists()


def test_what_the_refusal_says_helps(tmp_path: Path) -> None:
    """A checkpoint that was trained in another order, or on more classes than the test split has."""
    make_images(tmp_path, "train", "bird", "cat", "dog")
    make_images(tmp_path, "test", "cat", "dog")
    train_run(config_of(tmp_path, classes=["dog", "cat", "bird"]))
    with pytest.raises(ClassifierError, match=r"class 0 is 'dog' there, 'cat' here \(3 .* 2 here\); .*dataset.classes"):
        certify_run(config_of(tmp_path))
    (tmp_path / "names.txt").write_text("dog\r\ncat\r\nbird\r\n\r\n")
    heard = Heard()
    result = certify_run(config_of(tmp_path, classes=str(tmp_path / "names.txt")), heard)
    assert result.certificates["label"].to_pylist() == [0, 1]
    record = read_record(LocalStore(tmp_path / "run"))
    assert record.dataset.classes == record.config.dataset.classes == ("dog", "cat", "bird")
    (warning,) = (text for text in heard.warnings if "certificate.radii" not in text)  # 20 samples reach little
    assert "1 of 3 classes has no images (bird), and keeps its number" in warning
    (tmp_path / "names.txt").unlink()  # the run has the names
    assert parse_config(record.config.model_dump(mode="json")).dataset.classes == ("dog", "cat", "bird")


def test_the_order_of_classes_makes_another_run(tmp_path: Path) -> None:
    make_images(tmp_path, "test", "cat", "dog")
    save_checkpoint_of_old(tmp_path)
    first = certify_run(config_of(tmp_path))
    with pytest.raises(ConfigError, match=r"not this one \(dataset.classes: class 0 is 'cat' there, 'dog' here"):
        certify_run(config_of(tmp_path, classes=["dog", "cat"]))
    assert certify_run(config_of(tmp_path, classes=["cat", "dog"])).record.run_id == first.record.run_id


def save_checkpoint_of_old(root: Path) -> None:
    """One without names of classes."""
    make_images(root, "train", "cat", "dog")
    file = root / "weights.safetensors"
    train_run(config_of(root))
    tensors, metadata = load_checkpoint(file)
    assert metadata is not None
    module = Prototypes(metadata.image_shape, metadata.num_classes)
    module.load_state_dict(tensors)
    text = {key: value for key, value in vars(metadata).items() if key != "classes"}
    save_checkpoint(file, module, type(metadata)(**text))


def test_a_checkpoint_without_names_loads_and_is_kept(tmp_path: Path) -> None:
    save_checkpoint_of_old(tmp_path)
    before = (tmp_path / "weights.safetensors").read_bytes()
    notes: list[str] = []
    train_run(config_of(tmp_path), on_note=notes.append)
    assert "is kept" in notes[-1]
    assert (tmp_path / "weights.safetensors").read_bytes() == before
    make_images(tmp_path, "test", "airplane", "car")
    certify_run(config_of(tmp_path))


def test_a_checkpoint_of_other_names_is_not_kept(tmp_path: Path) -> None:
    """Packed sets of the same images and labels have one digest, whatever their classes are called."""
    for names in (("cat", "dog"), ("cow", "dog")):
        source, place = tmp_path / names[0], tmp_path / f"packed-{names[0]}"
        make_images(source, "train", *names)
        pack_dataset(load_dataset("folder", source, "train"), None, LocalStore(place), lambda done: None)
        train_run(config_of(tmp_path).updated("dataset", name="parquet", root=str(place)))
        metadata = load_checkpoint(tmp_path / "weights.safetensors")[1]
        assert metadata is not None
        assert metadata.classes == names


def test_names_are_packed_and_compared_with_the_runs(tmp_path: Path) -> None:
    save_checkpoint_of_old(tmp_path)
    make_images(tmp_path, "test", "cat", "dog")
    index, _ = pack_dataset(load_dataset("folder", tmp_path), None, LocalStore(tmp_path / "a"), lambda done: None)
    assert index.classes == ("cat", "dog")
    (tmp_path / "test" / "cat").rename(tmp_path / "test" / "cow")
    other, _ = pack_dataset(load_dataset("folder", tmp_path), None, LocalStore(tmp_path / "b"), lambda done: None)
    assert other.digest == index.digest
    config = config_of(tmp_path).updated("dataset", name="parquet", root=str(tmp_path / "a"))
    assert certify_run(config).record.dataset.classes == ("cat", "dog")
    with pytest.raises(ConfigError, match=r"dataset.classes: class 0 is 'cat' there, 'cow' here"):
        certify_run(config.updated("dataset", root=str(tmp_path / "b")))


def test_packed_sets_of_old_have_no_names(tmp_path: Path) -> None:
    make_images(tmp_path, "test", "cat", "dog")
    index, _ = pack_dataset(load_dataset("folder", tmp_path), None, LocalStore(tmp_path / "a"), lambda done: None)
    old = index.model_dump_json(exclude={"classes"}).encode()
    assert parse_index(old, "a").classes is None
    with pytest.raises(DataError, match=r"it names 1 class, not 2"):
        parse_index(index.model_copy(update={"classes": ("cat",)}).model_dump_json().encode(), "a")


def test_the_built_in_sets_have_names() -> None:
    assert load_dataset("mnist5k").classes == tuple("0123456789")


def test_a_checkpoint_is_compared_where_both_have_names(tmp_path: Path) -> None:
    make_images(tmp_path, "train", "cat", "dog")
    train_run(config_of(tmp_path))
    given: dict[str, Any] = {
        "architecture": "tests.support.classifiers:prototypes",
        "arguments": {},
        "checkpoint": str(tmp_path / "weights.safetensors"),
        "sub_image": 0,
        "partition": "none",
        "layout": "packed",
        "sigma": 0.5,
        "image_shape": (3, 8, 8),
        "num_classes": 2,
    }
    for classes in (None, ("cat", "dog")):
        load_classifier(**given, classes=classes)
    with pytest.raises(ClassifierError, match=r"class 2 is missing there, 'emu' here \(2 classes there, 3 here\)"):
        load_classifier(**given | {"num_classes": 3}, classes=("cat", "dog", "emu"))


def test_images_of_two_sizes_are_found_first_and_the_remedy_helps(tmp_path: Path) -> None:
    save_checkpoint_of_old(tmp_path)
    make_images(tmp_path, "test", "cat")
    make_images(tmp_path, "test", "dog", side=9)
    with pytest.raises(DataError, match=r"1.png: 9x9 pixels, .* has 8x8; set dataset.image_size to resize"):
        certify_run(config_of(tmp_path))
    assert not (tmp_path / "run").exists()
    certify_run(config_of(tmp_path, image_size=8))


def test_deep_images_are_found_first_and_the_remedy_helps(tmp_path: Path) -> None:
    save_checkpoint_of_old(tmp_path)
    make_images(tmp_path, "test", "cat", "dog")
    file = tmp_path / "test" / "dog" / "1.png"
    shutil.copy(file, tmp_path / "eight.png")
    file.write_bytes(b"P6 8 8 65535\n" + bytes(8 * 8 * 6))
    with pytest.raises(DataError, match=r"dog/1.png: has 16 bits per channel, .*; convert it to an 8-bit image"):
        certify_run(config_of(tmp_path))
    assert not (tmp_path / "run").exists()
    certify_run(config_of(tmp_path, "first", images={"ids": [0]}))  # headers of the run's images alone
    shutil.copy(tmp_path / "eight.png", file)
    certify_run(config_of(tmp_path))
