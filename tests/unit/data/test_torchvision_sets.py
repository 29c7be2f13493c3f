"""CIFAR-100, SVHN and the others in their real on-disk formats, made small; labels that do not match; missing files."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from torchvision.datasets import CIFAR10, CIFAR100, SVHN

from drs_ray.data.datasets import load_dataset
from drs_ray.errors import DataError

RNG = np.random.default_rng(0)


def write_cifar(root: Path, name: str, labels: list[int], images: np.ndarray) -> None:
    """The test split as pickles of rows of 3072 bytes: red, green, blue plane."""
    folder, meta = {
        "cifar10": ("cifar-10-batches-py", "batches.meta"),
        "cifar100": ("cifar-100-python", "meta"),
    }[name]
    batch = {"cifar10": "test_batch", "cifar100": "test"}[name]
    key = {"cifar10": "labels", "cifar100": "fine_labels"}[name]
    (root / folder).mkdir()
    table = {"data": images.reshape(len(images), -1), key: labels, "coarse_labels": [0] * len(labels)}
    (root / folder / batch).write_bytes(pickle.dumps(table))
    names = {"label_names": ["a"], "fine_label_names": ["a"]}
    (root / folder / meta).write_bytes(pickle.dumps(names))


def write_svhn(root: Path, labels: list[int], images: np.ndarray) -> None:
    """MATLAB arrays X [H, W, C, N] and y [N, 1], in which the digit 0 has the label 10."""
    scipy.io.savemat(
        root / "test_32x32.mat", {"X": images.transpose(2, 3, 1, 0), "y": np.array(labels, np.uint8)[:, None]}
    )


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares md5 sums with those of the real archives."""
    for source in (CIFAR10, CIFAR100, SVHN):
        monkeypatch.setattr(source, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)


@pytest.mark.usefixtures("made_up")
def test_cifar100_has_fine_labels_and_channels_first(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (4, 3, 32, 32), np.uint8)
    write_cifar(tmp_path, "cifar100", [3, 99, 8, 0], images)
    dataset = load_dataset("cifar100", root=tmp_path)
    assert (len(dataset), dataset.image_shape, dataset.num_classes) == (4, (3, 32, 32), 100)
    assert np.array_equal(dataset.images(range(4)), images / np.float32(255))
    assert dataset.labels(range(4)).tolist() == [3, 99, 8, 0]


@pytest.mark.usefixtures("made_up")
def test_svhn_is_channels_first_and_zero_is_zero(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (4, 3, 32, 32), np.uint8)
    write_svhn(tmp_path, [10, 9, 1, 10], images)
    dataset = load_dataset("svhn", root=tmp_path)
    assert (len(dataset), dataset.image_shape, dataset.num_classes) == (4, (3, 32, 32), 10)
    assert np.array_equal(dataset.images(range(4)), images / np.float32(255))
    assert dataset.labels(range(4)).tolist() == [0, 9, 1, 0]


@pytest.mark.usefixtures("made_up")
def test_labels_that_do_not_match_the_images(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (4, 3, 32, 32), np.uint8)
    write_cifar(tmp_path, "cifar100", [3, 99, 8], images)
    with pytest.raises(DataError, match=r"cifar100: .* has 4 images and 3 labels of the test split; they must be as"):
        load_dataset("cifar100", root=tmp_path)
    write_cifar(tmp_path, "cifar10", [3, 9, 10, 0], images)
    with pytest.raises(DataError, match=r"cifar10: labels must be in 0..9, image 2 of the test split in .* has 10;"):
        load_dataset("cifar10", root=tmp_path)
    write_svhn(tmp_path, [1, 2, 11, 0], images)
    with pytest.raises(DataError, match=r"svhn: labels must be in 0..9, image 2 of the test split in .* has 11;"):
        load_dataset("svhn", root=tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda images: b"",
        lambda images: images[:-100],
        lambda images: struct.pack(">I", 0xFF03) + images[4:],  # no such type
        lambda images: struct.pack(">I", 0x80A) + images[4:],  # ten axes
    ],
)
def test_damaged_mnist_headers(tmp_path: Path, damage) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    images = struct.pack(">IIII", 0x803, 5, 28, 28) + bytes(5 * 784)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(damage(images))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 5) + bytes(5))
    with pytest.raises(DataError, match="mnist: is not there, or damaged in") as caught:
        load_dataset("mnist", root=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "address", "file"),
    [
        ("mnist", "ossci-datasets", "MNIST/raw/"),
        ("cifar10", "cifar-10-python.tar.gz", "cifar-10-batches-py/"),
        ("cifar100", "cifar-100-python.tar.gz", "cifar-100-python/"),
        ("svhn", "ufldl.stanford.edu/housenumbers", "{train,test}_32x32.mat"),
    ],
)
def test_missing_files_say_where_to_get_them_and_where_to_put_them(
    tmp_path: Path, name: str, address: str, file: str
) -> None:
    for root in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError) as caught:
            load_dataset(name, root=root)
        message = str(caught.value)
        assert str(root) in message
        assert "dataset.download: true" in message
        assert address in message
        assert file in message
        assert "\n" not in message


def test_svhn_that_is_not_the_real_file_is_refused(tmp_path: Path) -> None:
    write_svhn(tmp_path, [1, 2], np.zeros((2, 3, 32, 32), np.uint8))
    with pytest.raises(DataError, match="svhn: is not there, or damaged"):
        load_dataset("svhn", root=tmp_path)
