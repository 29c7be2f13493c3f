"""Tiny-ImageNet and STL-10 in the layouts in which they are unpacked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import STL10, ImageFolder

from drs_ray.data.datasets import load_dataset
from drs_ray.errors import DataError

WNIDS = ("n03", "n01", "n02")  # wnids.txt is not sorted
VAL = ("n02", "n01", "n02", "n03")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (64, 64, 3), np.uint8)).save(path, "png")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    (tmp_path / "wnids.txt").write_text("\n".join(WNIDS) + "\n")
    for wnid in WNIDS:
        for index in range(2):
            picture(tmp_path / "train" / wnid / "images" / f"{wnid}_{index}.png", index)
        (tmp_path / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    for index in range(len(VAL)):
        picture(tmp_path / "val" / "images" / f"val_{index}.png", index)
    lines = [f"val_{index}.png\t{wnid}\t0\t0\t63\t63\n" for index, wnid in enumerate(VAL)]
    (tmp_path / "val" / "val_annotations.txt").write_text("".join(lines))
    return tmp_path


def test_tiny_imagenets_train_is_image_folders(tiny: Path) -> None:
    theirs = ImageFolder(str(tiny / "train"))
    for name in ("tiny-imagenet", "folder"):
        dataset = load_dataset(name, tiny, "train")
        assert dataset.classes == ("n01", "n02", "n03") == tuple(theirs.classes)
        assert dataset.image_shape == (3, 64, 64)
        assert dataset.labels(range(6)).tolist() == theirs.targets
        assert np.array_equal(dataset.encoded(3)[1], np.asarray(theirs[3][0]).transpose(2, 0, 1))


def test_tiny_imagenets_val_has_the_ids_of_the_same_images_sorted_into_classes(tiny: Path) -> None:
    dataset = load_dataset("tiny-imagenet", tiny, "val")
    assert dataset.labels(range(4)).tolist() == [0, 1, 1, 2]
    for index, wnid in enumerate(VAL):
        target = tiny / "val" / wnid / f"val_{index}.png"
        target.parent.mkdir(exist_ok=True)
        (tiny / "val" / "images" / target.name).rename(target)
    shutil.rmtree(tiny / "val" / "images")
    theirs = ImageFolder(str(tiny / "val"))
    sorted_in = load_dataset("tiny-imagenet", tiny, "val")
    for image_id, (image, label) in enumerate(theirs):
        pixels = np.asarray(image).transpose(2, 0, 1) / np.float32(255)
        assert np.array_equal(sorted_in.image(image_id), pixels)
        assert dataset.label(image_id) == sorted_in.label(image_id) == label


def test_tiny_imagenets_classes_in_another_order(tiny: Path) -> None:
    plain = load_dataset("tiny-imagenet", tiny, "val")
    dataset = load_dataset("tiny-imagenet", tiny, "val", classes=WNIDS)
    assert dataset.labels(range(4)).tolist() == [0, 1, 2, 2]
    assert np.array_equal(dataset.image(0), plain.image(3))
    assert dataset.digest != plain.digest
    with pytest.raises(DataError, match=r"dataset.classes must name the 3 classes of .*wnids.txt, each once"):
        load_dataset("tiny-imagenet", tiny, "val", classes=["n01", "n02"])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / "wnids.txt").unlink(), r"the file .*wnids.txt cannot be read \(No such file"),
        (lambda root: (root / "val" / "val_annotations.txt").unlink(), r"the file .*val_annotations.txt cannot be"),
        (lambda root: picture(root / "val" / "images" / "val_9.png", 9), r"has no known class for images/val_9.png"),
        (lambda root: (root / "val" / "images" / "val_1.png").unlink(), r"lacks 1 image of .*, first val_1.png"),
        (lambda root: (root / "wnids.txt").write_text("n01\nn02\n"), r"has no known class for images/val_3.png"),
    ],
)
def test_a_damaged_tiny_imagenet_is_one_line(tiny: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    spoil(tiny)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("tiny-imagenet", tiny, "val")
    assert "\n" not in str(caught.value)


def test_tiny_imagenet_has_no_labelled_test(tiny: Path) -> None:
    picture(tiny / "test" / "images" / "test_0.png", 0)
    with pytest.raises(DataError, match=r"got 'test'; there: train, val$"):
        load_dataset("tiny-imagenet", tiny, "test")


def write_stl10(root: Path, labels: list[int], images: int) -> None:
    (root / "stl10_binary").mkdir(exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, images * 3 * 96 * 96, np.uint8)
    pixels.tofile(root / "stl10_binary" / "test_X.bin")
    np.array(labels, np.uint8).tofile(root / "stl10_binary" / "test_y.bin")


def test_stl10_is_read_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_stl10(tmp_path, [1, 10, 3], 3)
    (tmp_path / "stl10_binary" / "class_names.txt").write_text("airplane\nbird\ncar\n")
    monkeypatch.setattr(STL10, "_check_integrity", lambda self: True)
    theirs = STL10(str(tmp_path), "test")
    dataset = load_dataset("stl10", tmp_path)
    assert dataset.labels(range(3)).tolist() == theirs.labels.tolist() == [0, 9, 2]
    assert np.array_equal(dataset.images(range(3)) * np.float32(255), theirs.data.astype(np.float32))
    assert dataset.classes is not None
    assert list(dataset.classes[:3]) == theirs.classes


@pytest.mark.parametrize(
    ("labels", "images", "message"),
    [
        ([1, 2], 3, r"has 3 images and 2 labels of the test split"),
        ([0, 2], 2, r"must hold labels in 1..10, it has 0 to 2"),
        ([11, 2], 2, r"must hold labels in 1..10, it has 2 to 11"),
        ([], 0, r"has 0 images and 0 labels of the test split"),
    ],
)
def test_a_damaged_stl10_is_one_line(tmp_path: Path, labels: list[int], images: int, message: str) -> None:
    write_stl10(tmp_path, labels, images)
    with pytest.raises(DataError, match=rf"stl10: .*{message}; dataset.root must hold what http"):
        load_dataset("stl10", tmp_path)


def test_a_missing_stl10_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"stl10: .*test_X.bin: No such file or directory; dataset.root must hold"):
        load_dataset("stl10", tmp_path)
