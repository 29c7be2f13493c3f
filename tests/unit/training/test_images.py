"""Images on their way into training: read in batches, never all at once; augmented whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from drs_ray.data.arrays import ArrayDataset
from drs_ray.data.datasets import load_dataset
from drs_ray.data.folders import load_folder
from drs_ray.data.image_files import unit_range
from drs_ray.data.packing import pack_dataset
from drs_ray.errors import DataError
from drs_ray.storage import LocalStore
from drs_ray.training import images as images_module
from drs_ray.training.images import HeldDataset, augment, in_memory_if_small, read_batches


def _folder(root: Path, count: int = 6) -> Path:
    for index in range(count):
        directory = root / "train" / f"{index % 2}"
        directory.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), 40 * index, np.uint8)).save(directory / f"{index}.png")
    return root


@pytest.mark.parametrize("loaders", [0, 2])
def test_batches_are_read_in_order(tmp_path: Path, loaders: int) -> None:
    dataset = load_folder("folder", _folder(tmp_path), "train", None)
    asked = [[5, 0], [3], [1, 2, 4]]
    read = list(read_batches(dataset, asked, loaders))
    assert [labels.tolist() for _, labels in read] == [[1, 0], [1], [0, 0, 1]]
    for ids, (images, labels) in zip(asked, read, strict=True):
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert torch.equal(images, torch.from_numpy(dataset.images(ids)))


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    dataset = load_folder("folder", _folder(tmp_path), "train", None)
    batches = read_batches(dataset, [[0], [5]], 0)
    next(batches)
    (tmp_path / "train" / "1" / "5.png").unlink()
    with pytest.raises(DataError, match="file not found"):
        next(batches)


@pytest.mark.parametrize("loaders", [0, 1])
def test_a_broken_image_is_one_line(tmp_path: Path, loaders: int) -> None:
    dataset = load_folder("folder", _folder(tmp_path), "train", None)
    (tmp_path / "train" / "0" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"2.png: cannot be read") as caught:
        list(read_batches(dataset, [[0, 1, 2]], loaders))
    assert "\n" not in str(caught.value)


def test_a_held_data_set_reads_once_in_order_and_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = load_folder("folder", _folder(tmp_path), "train", None)
    pack_dataset(source, None, LocalStore(tmp_path / "packed"), lambda done: None)
    asked: list[int] = []
    for dataset in (source, load_dataset("parquet", tmp_path / "packed", "train")):
        held = in_memory_if_small(dataset)
        read = type(dataset).pixels_of
        monkeypatch.setattr(
            type(dataset), "pixels_of", lambda self, image_id, read=read: asked.append(image_id) or read(self, image_id)
        )
        asked.clear()
        ids = [5, 0, 0, 3]
        assert np.array_equal(held.images(ids), dataset.images(ids))
        assert asked == [0, 1, 2, 3, 4, 5, *ids]
        assert held.labels(ids).tolist() == dataset.labels(ids).tolist() == [1, 0, 0, 1]
        asked.clear()
        assert held.image(4).tolist() == held.images([4])[0].tolist()
        assert held.label(4) == 1
        assert asked == []
        assert (held.digest, len(held), held.image_shape, held.num_classes) == (
            dataset.digest,
            6,
            (3, 4, 4),
            2,
        )
        with pytest.raises(DataError, match=r"image -1: folder train has the images 0..5"):
            held.label(-1)


def test_every_value_of_8_bits_is_held_exactly(tmp_path: Path) -> None:
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    source = ArrayDataset("all", "train", 2, pixels, np.zeros(1, np.int64))
    pack_dataset(source, None, LocalStore(tmp_path), lambda done: None)
    for dataset in (source, load_dataset("parquet", tmp_path, "train")):
        held = HeldDataset(dataset)
        assert np.array_equal(held.images([0]), unit_range(pixels))
        assert np.array_equal(held.pixels_of(0), pixels[0])


def test_a_large_data_set_is_read_as_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_folder("folder", _folder(tmp_path), "train", None)
    monkeypatch.setattr(images_module, "MOST_BYTES_HELD", 6 * 3 * 4 * 4 - 1)
    assert in_memory_if_small(dataset) is dataset
    monkeypatch.setattr(images_module, "MOST_BYTES_HELD", 6 * 3 * 4 * 4)
    assert in_memory_if_small(dataset) is not dataset


def test_a_broken_image_of_a_held_data_set_is_one_line(tmp_path: Path) -> None:
    dataset = load_folder("folder", _folder(tmp_path), "train", None)
    (tmp_path / "train" / "0" / "2.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"2.png: cannot be read"):
        list(read_batches(in_memory_if_small(dataset), [[0]], 2))


def test_shifts_move_whole_images_and_fill_with_zero() -> None:
    images = torch.zeros(500, 2, 6, 7)
    images[:, 0, 3, 3] = 1
    images[:, 1, 3, 4] = 2
    moved = augment(images, 2, False, torch.Generator().manual_seed(0))
    assert moved.shape == images.shape
    places = moved[:, 0].nonzero()
    assert len(places) == 500  # one per image: nothing is lost or doubled
    offsets = {(int(row) - 3, int(column) - 3) for _, row, column in places}
    assert offsets == {(row, column) for row in range(-2, 3) for column in range(-2, 3)}
    assert torch.equal(moved[:, 0].roll(1, dims=-1) * 2, moved[:, 1])  # channels move together
    edge = torch.ones(50, 1, 4, 4)
    sums = augment(edge, 1, False, torch.Generator().manual_seed(0)).sum(dim=(1, 2, 3))
    assert set(sums.tolist()) == {9.0, 12.0, 16.0}  # what leaves does not come back on the other side


def test_flips_mirror_about_half_of_the_images() -> None:
    images = torch.rand(400, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    flipped = augment(images, 0, True, torch.Generator().manual_seed(1))
    same = (flipped == images).all(dim=(1, 2, 3))
    mirrored = (flipped == images.flip(-1)).all(dim=(1, 2, 3))
    assert torch.all(same ^ mirrored)
    assert 160 < same.sum() < 240
    assert augment(images, 0, False, torch.Generator()) is images
