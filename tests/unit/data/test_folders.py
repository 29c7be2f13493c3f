"""Image folders: order, labels, decoding like torchvision, digests, and broken or missing files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from drs_ray.data.datasets import load_dataset
from drs_ray.errors import DataError


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _random(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, three images of 20x12 (HxW), made in another order than they are read."""
    _save(tmp_path / "test" / "dog" / "b.png", _random(20, 12, 1))
    _save(tmp_path / "test" / "cat" / "z.png", _random(20, 12, 2))
    _save(tmp_path / "test" / "cat" / "A.png", _random(20, 12, 3))
    return tmp_path


def test_classes_and_files_are_sorted_and_pixels_exact(root: Path) -> None:
    dataset = load_dataset("folder", root=root)
    assert (len(dataset), dataset.num_classes, dataset.image_shape) == (3, 2, (3, 20, 12))
    assert dataset.labels(range(3)).tolist() == [0, 0, 1]
    for image_id, seed in enumerate([3, 2, 1]):
        expected = _random(20, 12, seed).transpose(2, 0, 1) / np.float32(255)
        assert np.array_equal(dataset.image(image_id), expected)
    assert np.array_equal(dataset.images([2, 0]), np.stack([dataset.image(2), dataset.image(0)]))


def test_other_files_and_hidden_ones_are_not_images_but_an_empty_class_counts(root: Path) -> None:
    (root / "test" / "cat" / "notes.txt").write_text("no image")
    (root / "test" / "cat" / "._A.png").write_bytes(b"macOS litter")
    (root / "test" / ".cache").mkdir()
    (root / "test" / "bird").mkdir()
    dataset = load_dataset("folder", root=root)
    assert (len(dataset), dataset.num_classes) == (3, 3)
    assert dataset.labels(range(3)).tolist() == [1, 1, 2]


@pytest.mark.parametrize(("height", "width"), [(40, 61), (61, 40), (33, 33), (300, 20), (32, 35)])
def test_resizing_is_torchvisions(tmp_path: Path, height: int, width: int) -> None:
    from torchvision import transforms

    _save(tmp_path / "val" / "n0" / "a.png", _random(height, width))
    (tmp_path / "val" / "n1").mkdir()
    dataset = load_dataset("imagenet", root=tmp_path, split="val", image_size=28)
    reference = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.PILToTensor()])
    with Image.open(tmp_path / "val" / "n0" / "a.png") as image:
        expected = reference(image).numpy() / np.float32(255)
    assert np.array_equal(dataset.image(0), expected)


def test_imagenet_is_224_pixels_by_default(tmp_path: Path) -> None:
    _save(tmp_path / "val" / "n0" / "a.jpg", _random(250, 300))
    (tmp_path / "val" / "n1").mkdir()
    dataset = load_dataset("imagenet", root=tmp_path, split="val")
    assert dataset.image_shape == (3, 224, 224)
    assert dataset.image(0).shape == (3, 224, 224)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1", "CMYK"])
def test_every_8_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "test" / "a" / ("x.png" if mode != "CMYK" else "x.jpg")
    file.parent.mkdir(parents=True)
    Image.fromarray(_random(8, 8)).convert(mode).save(file)
    (tmp_path / "test" / "b").mkdir()
    image = load_dataset("folder", root=tmp_path).image(0)
    assert image.shape == (3, 8, 8)
    assert np.array_equal(image, np.round(image * 255) / np.float32(255))


def test_16_bit_images_are_refused(tmp_path: Path) -> None:
    _save(tmp_path / "test" / "a" / "deep.png", np.full((8, 8), 40_000, np.uint16))
    (tmp_path / "test" / "b").mkdir()
    with pytest.raises(DataError, match=r"deep.png: has 16 bits per channel, .*; convert it to an 8-bit image$"):
        load_dataset("folder", root=tmp_path, image_size=8).image(0)


def test_a_corrupt_image_is_named_when_it_is_asked_for(root: Path) -> None:
    file = root / "test" / "cat" / "z.png"
    file.write_bytes(file.read_bytes()[:200])
    dataset = load_dataset("folder", root=root)
    dataset.image(0)
    with pytest.raises(DataError, match=r"cat/z.png: cannot be read \(.+\); restore the file") as caught:
        dataset.image(1)
    assert "\n" not in str(caught.value)
    file.write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"cat/z.png: cannot be read"):
        dataset.image(1)


def test_an_image_that_has_gone_is_named(root: Path) -> None:
    dataset = load_dataset("folder", root=root)
    (root / "test" / "dog" / "b.png").unlink()
    with pytest.raises(DataError, match=r"dog/b.png: cannot be read \(file not found\)"):
        dataset.image(2)


def test_another_size_is_refused_unless_images_are_resized(root: Path) -> None:
    _save(root / "test" / "dog" / "c.png", _random(12, 20))
    dataset = load_dataset("folder", root=root)
    with pytest.raises(DataError, match=r"c.png: 20x12 pixels, but the first .* has 12x20; set dataset.image_size"):
        dataset.image(3)
    assert load_dataset("folder", root=root, image_size=8).image(3).shape == (3, 8, 8)


def test_digest_sees_names_sizes_classes_and_image_size(root: Path) -> None:
    digests = [load_dataset("folder", root=root).digest, load_dataset("folder", root=root, image_size=8).digest]
    assert load_dataset("folder", root=root).digest == digests[0]
    (root / "test" / "emu").mkdir()
    digests.append(load_dataset("folder", root=root).digest)
    (root / "test" / "dog" / "b.png").rename(root / "test" / "dog" / "c.png")
    digests.append(load_dataset("folder", root=root).digest)
    with (root / "test" / "dog" / "c.png").open("ab") as file:
        file.write(b"\0")
    digests.append(load_dataset("folder", root=root).digest)
    assert len(set(digests)) == 5


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        ("folder", "val", r"dataset.split must be a sub-directory of .*, got 'val'; there: empty, flat, test$"),
        ("imagenet", "val", r"got 'val'; there: test \(ImageNet's labelled test images are its val split\)"),
        ("folder", "../test", r"dataset.split must be a sub-directory"),
        ("folder", "flat", r"flat has no class directories, but images; sort images into flat/<class>/"),
        ("folder", "empty", r"empty has no images \(.jpg, .* in its class directories"),
    ],
)
def test_missing_splits_classes_and_images(root: Path, name: str, split: str, message: str) -> None:
    _save(root / "flat" / "a.png", _random(8, 8))
    (root / "empty" / "cat").mkdir(parents=True)
    (root / "empty" / "dog").mkdir()
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(name, root=root, split=split)
    assert "\n" not in str(caught.value)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder: root .*nowhere is not a directory; correct dataset.root"):
        load_dataset("folder", root=tmp_path / "nowhere")
