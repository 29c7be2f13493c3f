"""Packed data sets: the source's bits, only what is asked for is read, and whatever is missing or changed is named."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from drs_ray.data import packing
from drs_ray.data.arrays import ArrayDataset, load_mnist5k
from drs_ray.data.datasets import Dataset, load_dataset
from drs_ray.data.image_files import encode_png
from drs_ray.data.packed_format import SCHEMA, PackedIndex, index_key, parse_index, rows_digest
from drs_ray.data.packing import pack_dataset
from drs_ray.data.parquet import PackedDataset
from drs_ray.errors import ConfigError, DataError, StoreError
from drs_ray.storage import LocalStore


def untold(done: int) -> None:
    """No progress."""


def colours(count: int = 40, size: int = 16) -> ArrayDataset:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3, size, size), np.uint8)
    return ArrayDataset("colours", "test", 5, pixels, np.arange(count) % 5)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row groups of four images of `colours`, shards of three row groups."""
    monkeypatch.setattr(packing, "ROW_GROUP_BYTES", 3000)
    monkeypatch.setattr(packing, "SHARD_BYTES", 10_000)


@pytest.fixture
def packed(tmp_path: Path, small: None) -> PackedIndex:
    return pack_dataset(colours(), None, LocalStore(tmp_path), untold)[0]


def same(dataset: Dataset, source: Dataset) -> bool:
    ids = range(len(source))
    return bool(
        len(dataset) == len(source)
        and np.array_equal(dataset.images(ids), source.images(ids))
        and np.array_equal(dataset.labels(ids), source.labels(ids))
    )


def test_arrays_come_back_to_the_bit_with_the_same_digest(tmp_path: Path, packed: PackedIndex) -> None:
    source, dataset = colours(), load_dataset("parquet", root=tmp_path)
    assert same(dataset, source)
    assert dataset.digest == source.digest == packed.digest
    assert (dataset.name, dataset.split, dataset.num_classes) == ("colours", "test", 5)
    assert dataset.image_shape == (3, 16, 16)
    assert [[group.images for group in shard.row_groups] for shard in packed.shards] == [[4, 4, 4]] * 3 + [[4]]


def test_pixels_may_lie_anyhow_in_memory(tmp_path: Path) -> None:
    full = colours()
    view = ArrayDataset(full.name, full.split, 5, full.pixels[:, :, ::2, ::2], full.targets)
    assert not view.pixels[0].flags.c_contiguous
    assert pack_dataset(view, None, LocalStore(tmp_path), untold)[0].digest == view.digest
    assert same(load_dataset("parquet", root=tmp_path), view)


def test_mnist5k_keeps_its_digest_and_is_smaller_than_its_pixels(tmp_path: Path) -> None:
    source = load_mnist5k("test")
    index, was_there = pack_dataset(source, None, LocalStore(tmp_path), untold)
    assert not was_there
    assert index.digest == source.digest
    assert index.size < source.pixels.nbytes / 2
    assert same(load_dataset("parquet", root=tmp_path), source)


def _folder(root: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("cat/a.jpg", "cat/b.png", "dog/c.webp"):
        file = root / "val" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 12, 3), np.uint8)).save(file)


def test_files_are_kept_as_they_are(tmp_path: Path) -> None:
    _folder(tmp_path)
    source = load_dataset("folder", root=tmp_path, split="val")
    pack_dataset(source, None, LocalStore(tmp_path / "out"), untold)
    dataset = load_dataset("parquet", root=tmp_path / "out", split="val")
    assert same(dataset, source)
    for image_id, name in enumerate(("cat/a.jpg", "cat/b.png", "dog/c.webp")):
        assert dataset.encoded(image_id)[0] == (tmp_path / "val" / name).read_bytes()


def test_resized_images_come_back_to_the_bit(tmp_path: Path) -> None:
    _folder(tmp_path)
    source = load_dataset("imagenet", root=tmp_path, split="val", image_size=8)
    index, _ = pack_dataset(source, 8, LocalStore(tmp_path / "out"), untold)
    assert (index.name, index.image_size, index.image_shape) == ("imagenet", 8, (3, 8, 8))
    assert same(load_dataset("parquet", root=tmp_path / "out", split="val"), source)


def test_a_packed_set_can_be_packed_again_in_other_row_groups(tmp_path: Path, packed: PackedIndex) -> None:
    again, _ = pack_dataset(load_dataset("parquet", root=tmp_path), None, LocalStore(tmp_path / "other"), untold)
    assert again.digest == packed.digest
    assert same(load_dataset("parquet", root=tmp_path / "other"), colours())


def test_the_content_digest_of_a_folder_sees_one_pixel(tmp_path: Path) -> None:
    digests = []
    (tmp_path / "in" / "test" / "b").mkdir(parents=True)
    for value in (7, 8):
        file = tmp_path / "in" / "test" / "a" / "x.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file)
        source = load_dataset("folder", root=tmp_path / "in")
        digests.append((source.digest, pack_dataset(source, None, LocalStore(tmp_path / f"{value}"), untold)[0].digest))
    assert digests[0][0] == digests[1][0]  # of names and sizes: what packing improves on
    assert digests[0][1] != digests[1][1]


def test_splits_lie_side_by_side(tmp_path: Path) -> None:
    for split in ("train", "test"):
        pack_dataset(load_mnist5k(split), None, LocalStore(tmp_path), untold)
    assert len(load_dataset("parquet", root=tmp_path, split="train")) == 4000
    assert len(load_dataset("parquet", root=tmp_path, split="test")) == 1000


def test_shards_are_plain_parquet(tmp_path: Path, packed: PackedIndex) -> None:
    table = pq.read_table(tmp_path / "test").sort_by("image_id")
    assert table["image_id"].to_pylist() == list(range(40))
    pixels = np.asarray(Image.open(io.BytesIO(table["image"][17].as_py())))
    assert np.array_equal(pixels.transpose(2, 0, 1), colours().pixels[17])


def test_packing_twice_writes_nothing(tmp_path: Path, packed: PackedIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalStore, "put", None)
    assert pack_dataset(colours(), None, LocalStore(tmp_path), untold) == (packed, True)


def test_another_data_set_is_not_written_over_it(tmp_path: Path, packed: PackedIndex) -> None:
    with pytest.raises(
        ConfigError, match=r"test/_dataset.json: another data set is packed there \(colours test, .*name"
    ):
        pack_dataset(colours(39), None, LocalStore(tmp_path), untold)


def test_a_pack_that_broke_off_cannot_be_read_and_is_taken_up(
    tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ArrayDataset):
        def label(self, image_id: int) -> int:
            if image_id == 30:
                raise DataError("image 30: gone")
            return super().label(image_id)

    source = colours()
    with pytest.raises(DataError, match="image 30: gone"):
        pack_dataset(Broken("colours", "test", 5, source.pixels, source.targets), None, LocalStore(tmp_path), untold)
    left = sorted(path.name for path in (tmp_path / "test").iterdir())
    assert len(left) == 2
    with pytest.raises(DataError, match=r"no split 'test' is packed in .*; there: none; .*`drs-ray pack`"):
        load_dataset("parquet", root=tmp_path)
    (tmp_path / "test" / "00002-0123456789abcdef.parquet").write_bytes(b"of another pack that was killed")
    (tmp_path / "test" / "notes.txt").write_text("the user's own")
    stored = []
    put = LocalStore.put
    monkeypatch.setattr(LocalStore, "put", lambda self, key, data: (stored.append(key), put(self, key, data)))
    index, _ = pack_dataset(source, None, LocalStore(tmp_path), untold)
    assert stored == [shard.key for shard in index.shards[2:]]  # the first two are there already
    assert same(load_dataset("parquet", root=tmp_path), source)
    names = {path.name for path in (tmp_path / "test").iterdir()}
    assert names == {Path(shard.key).name for shard in index.shards} | {"_dataset.json", "notes.txt"}


def test_an_image_of_a_folder_that_cannot_be_packed_is_named(tmp_path: Path) -> None:
    _folder(tmp_path)
    (tmp_path / "val" / "cat" / "b.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"cat/b.png: cannot be read"):
        pack_dataset(load_dataset("folder", root=tmp_path, split="val"), None, LocalStore(tmp_path / "out"), untold)
    assert not (tmp_path / "out" / "val").exists()


# Reading


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Shard and size of each read."""
    seen: list[tuple[str, int]] = []
    get_range = LocalStore.get_range

    def counted(self: LocalStore, key: str, first: int, size: int) -> bytes:
        if key.endswith(".parquet"):
            seen.append((key, size))
        return get_range(self, key, first, size)

    monkeypatch.setattr(LocalStore, "get_range", counted)
    return seen


def test_only_the_row_group_of_an_image_is_read_and_once(tmp_path: Path, reads: list[tuple[str, int]]) -> None:
    source = colours(60, 128)  # 49 kB an image: 1 MiB is 22 of them
    index, _ = pack_dataset(source, None, LocalStore(tmp_path), untold)
    assert [group.images for group in index.shards[0].row_groups] == [22, 22, 16]
    dataset = load_dataset("parquet", root=tmp_path)
    assert reads == []  # the index is enough
    dataset.images(range(24, 40))
    assert 22 * 49_152 < sum(size for _, size in reads) < 24 * 49_152 + 70_000  # and the footer
    assert len(reads) == 2
    before = len(reads)
    dataset.labels(range(24, 40))
    dataset.image(23)
    assert len(reads) == before  # at hand
    dataset.labels(range(22))
    assert sum(size for _, size in reads[before:]) < 5000  # without images
    dataset.image(0)
    assert len(reads) == before + 2  # the footer was read once


def test_every_order_of_ids_gives_the_same_images(tmp_path: Path, packed: PackedIndex) -> None:
    ids = np.random.default_rng(0).permutation(40).tolist()
    dataset, source = load_dataset("parquet", root=tmp_path), colours()
    assert np.array_equal(dataset.images(ids), source.images(ids))
    assert np.array_equal(dataset.labels(ids), source.labels(ids))


@pytest.mark.parametrize("image_id", [-1, 40])
def test_an_unknown_image_id_is_refused(tmp_path: Path, packed: PackedIndex, image_id: int) -> None:
    dataset = load_dataset("parquet", root=tmp_path)
    for ask in (dataset.image, dataset.label):
        with pytest.raises(DataError, match=rf"image {image_id}: colours test has the images 0..39"):
            ask(image_id)


def _fails(dataset: Dataset, image_id: int, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        dataset.image(image_id)
    assert "\n" not in str(caught.value)


def test_a_flipped_bit_names_the_image_and_leaves_the_others(tmp_path: Path, packed: PackedIndex) -> None:
    file = tmp_path / packed.shards[1].key
    image = encode_png(colours().pixels[17])
    data = bytearray(file.read_bytes())
    data[data.find(image) + len(image) // 2] ^= 1
    file.write_bytes(data)
    dataset = load_dataset("parquet", root=tmp_path)
    _fails(dataset, 17, rf"image 17: .*{file.name}, row group 1: (cannot be read|its pixels are not those)")
    ids = [i for i in range(40) if i != 17]
    assert np.array_equal(dataset.images(ids), colours().images(ids))


def _rewrite(root: Path, index: PackedIndex, number: int, change: Callable[[list[dict[str, object]]], object]) -> None:
    """Change the rows of a shard, and make its index fit, but for the digests."""
    shard = index.shards[number]
    rows = pq.read_table(root / shard.key).to_pylist()
    change(rows)
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, root / shard.key, row_group_size=4, compression="none", use_dictionary=False)
    data = json.loads((root / index_key(index.split)).read_text())
    data["shards"][number]["size"] = (root / shard.key).stat().st_size
    (root / index_key(index.split)).write_text(json.dumps(data))


def test_another_image_in_its_place_is_noticed(tmp_path: Path, packed: PackedIndex) -> None:
    other = encode_png(np.zeros((3, 16, 16), np.uint8))
    _rewrite(tmp_path, packed, 0, lambda rows: rows[5].update(image=other))
    dataset = load_dataset("parquet", root=tmp_path)
    _fails(dataset, 5, r"image 5: .*row group 1: its pixels are not those that were packed; packed with Pillow")
    dataset.image(4)


def test_another_shape_is_noticed(tmp_path: Path, packed: PackedIndex) -> None:
    other = encode_png(np.zeros((3, 8, 16), np.uint8))
    _rewrite(tmp_path, packed, 0, lambda rows: rows[5].update(image=other))
    _fails(load_dataset("parquet", root=tmp_path), 5, r"image 5: .*has the shape 3 x 8 x 16, the data set 3 x 16 x 16")


def test_an_empty_image_is_missing(tmp_path: Path, packed: PackedIndex) -> None:
    _rewrite(tmp_path, packed, 0, lambda rows: rows[6].update(image=b""))
    _fails(load_dataset("parquet", root=tmp_path), 6, r"image 6: .*row group 1: the image is missing; pack")


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[5].update(label=4 - rows[5]["label"]),
        lambda rows: rows[5].update(image_id=50),
        lambda rows: rows[5].update(pixels_sha256=bytes(32)),
        lambda rows: rows.__setitem__(slice(4, 6), [rows[5], rows[4]]),
        lambda rows: rows.pop(5),
    ],
    ids=["label", "id", "digest", "order", "missing row"],
)
def test_rows_that_are_not_the_packed_ones_are_noticed(
    tmp_path: Path, packed: PackedIndex, change: Callable[[list[dict[str, object]]], object]
) -> None:
    _rewrite(tmp_path, packed, 0, change)
    dataset = load_dataset("parquet", root=tmp_path)
    _fails(dataset, 4, r"images 4..7: .*row group 1: ids, labels or digests of pixels are not those of _dataset.json")
    with pytest.raises(DataError, match=r"images 4..7: .*row group 1: "):
        dataset.label(4)
    dataset.image(0)


def test_a_missing_shard_is_named(tmp_path: Path, packed: PackedIndex) -> None:
    (tmp_path / packed.shards[2].key).unlink()
    dataset = load_dataset("parquet", root=tmp_path)
    dataset.image(23)
    _fails(dataset, 24, rf"images 24..27: .*{packed.shards[2].key}, row group 0: the shard is missing; pack")


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-4] + b"XXXX",
        lambda data: data[:-40] + bytes(40),
        lambda data: bytes(len(data)),
    ],
    ids=["empty", "half", "magic", "footer", "zeros"],
)
def test_a_damaged_shard_is_named(tmp_path: Path, packed: PackedIndex, damage: Callable[[bytes], bytes]) -> None:
    file = tmp_path / packed.shards[2].key
    file.write_bytes(damage(file.read_bytes()))
    _fails(load_dataset("parquet", root=tmp_path), 24, r"images 24..27: .*row group 0: cannot be read \(.+\); pack")


def test_a_foreign_parquet_file_is_refused(tmp_path: Path, packed: PackedIndex) -> None:
    file = tmp_path / packed.shards[0].key
    pq.write_table(pa.table({"image": [b"1"]}), file)
    data = json.loads((tmp_path / "test" / "_dataset.json").read_text())
    data["shards"][0]["size"] = file.stat().st_size
    (tmp_path / "test" / "_dataset.json").write_text(json.dumps(data))
    _fails(load_dataset("parquet", root=tmp_path), 0, r"cannot be read \(it has other columns than a shard")


def test_a_store_that_fails_while_it_is_read_stays_a_store_error(
    tmp_path: Path, packed: PackedIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the engine tries the unit again later, as after every failure of a store that may pass."""
    dataset = load_dataset("parquet", root=tmp_path)

    def failing(self: LocalStore, key: str, first: int, size: int) -> bytes:
        raise StoreError("overloaded", transient=True)

    for image_id in (0, 9):  # while the footer is read, and while a row group is
        with monkeypatch.context() as patch:
            patch.setattr(LocalStore, "get_range", failing)
            with pytest.raises(StoreError, match="overloaded") as caught:
                dataset.image(image_id)
        assert caught.value.transient
        dataset.image(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: "{", r"test/_dataset.json: not the index of a packed data set, or damaged \(.*; pack"),
        (lambda data: "[]", "not the index of a packed data set"),
        (lambda data: data | {"format": "drs-ray images 2"}, r"damaged \(format: "),
        (lambda data: data | {"images": 41}, "its row groups have 40 images, not 41"),
        (lambda data: data | {"digest": "x"}, r"damaged \(digest: "),
        (lambda data: data | {"split": "train"}, "is the index of the split 'train'; rename"),
    ],
)
def test_a_damaged_index_is_one_line(
    tmp_path: Path, packed: PackedIndex, change: Callable[[dict[str, object]], object], message: str
) -> None:
    file = tmp_path / "test" / "_dataset.json"
    changed = change(json.loads(file.read_text()))
    file.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("parquet", root=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_split_that_is_not_there_names_those_that_are(tmp_path: Path, packed: PackedIndex) -> None:
    with pytest.raises(DataError, match=r"no split 'val' is packed in .*; there: test; correct dataset.root or"):
        load_dataset("parquet", root=tmp_path, split="val")
    with pytest.raises(DataError, match=r"nowhere; there: none"):
        load_dataset("parquet", root=tmp_path / "nowhere")
    for split in ("", "../test", ".test", "a/b"):
        with pytest.raises(ConfigError, match=r"dataset.split must be the name of a packed split"):
            load_dataset("parquet", root=tmp_path, split=split)


def test_other_data_sets_are_not_read_from_s3() -> None:
    with pytest.raises(
        ConfigError, match=r"dataset.root: cifar10 is read from a directory, got s3://b/c; .*drs-ray pack"
    ):
        load_dataset("cifar10", root="s3://b/c")


def test_the_digest_of_rows_sees_order_labels_and_pixels() -> None:
    digests = [bytes([value]) * 32 for value in range(2)]
    found = {
        rows_digest([0, 1], [3, 4], digests),
        rows_digest([0, 1], [4, 3], digests),
        rows_digest([1, 0], [3, 4], digests),
        rows_digest([0, 1], [3, 4], digests[::-1]),
        rows_digest([0], [3], digests[:1]),
    }
    assert len(found) == 5


def test_the_index_is_found_in_the_store(tmp_path: Path, packed: PackedIndex) -> None:
    store = LocalStore(tmp_path)
    index = parse_index(store.get("test/_dataset.json"), "here")
    assert index == packed
    assert same(PackedDataset(store, index), colours())
