"""Data sets that the library datasets wrote, and Parquet files in the layouts of the hub, compared with it."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, DatasetDict, Features, disable_progress_bars
from datasets import Dataset as Theirs
from datasets import Image as ImageFeature
from PIL import Image

from drs_ray.data.datasets import Dataset, load_dataset
from drs_ray.data.image_files import encode_png
from drs_ray.data.packing import pack_dataset
from drs_ray.errors import ConfigError, DataError
from drs_ray.storage import LocalStore

NAMES = ["emu", "cat", "dog"]
FEATURES = Features({"img": ImageFeature(), "label": ClassLabel(names=NAMES)})
disable_progress_bars()


def colours(count: int, *, channels: int = 3, size: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    """Image files as rows have them."""
    pixels = np.random.default_rng(seed).integers(0, 256, (count, channels, size, size), np.uint8)
    return [{"bytes": encode_png(one), "path": None} for one in pixels]


def rows(count: int, **options: Any) -> Theirs:
    labels = [(index * 2) % 3 for index in range(count)]
    return Theirs.from_dict({"img": colours(count, **options), "label": labels}, features=FEATURES)


def on_hub(root: Path, theirs: Theirs, name: str = "data/test-00000-of-00001.parquet", **options: Any) -> Path:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    theirs.to_parquet(root / name, **options)
    return root


def table(root: Path, columns: dict[str, Any], features: Features | None = None) -> Path:
    """A Parquet file `test.parquet` that is not of the library, but may have its metadata."""
    root.mkdir(exist_ok=True)
    metadata = features and features.arrow_schema.metadata
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), root / "test.parquet")
    return root


def same(dataset: Dataset, theirs: Theirs) -> bool:
    pixels = [np.asarray(image.convert("RGB")).transpose(2, 0, 1) for image in theirs["img"]]
    return (
        len(dataset) == len(theirs)
        and dataset.labels(range(len(dataset))).tolist() == theirs["label"][:]
        and np.array_equal(dataset.images(range(len(dataset))), np.stack(pixels) / np.float32(255))
    )


def test_a_data_set_on_disk_is_read_as_the_library_reads_it(tmp_path: Path) -> None:
    theirs = rows(250)  # three batches of 100 rows, in two files
    theirs.save_to_disk(tmp_path, num_shards=2)
    dataset = load_dataset("huggingface", tmp_path)
    assert same(dataset, Theirs.load_from_disk(tmp_path))
    assert (dataset.name, dataset.split, dataset.num_classes) == ("huggingface", "test", 3)
    assert (dataset.classes, dataset.image_shape, dataset.warnings) == (tuple(NAMES), (3, 8, 8), ())
    for image_id in (249, 3, 125, 124):
        assert dataset.encoded(image_id)[0] == colours(250)[image_id]["bytes"]
    with pytest.raises(DataError, match=r"image 250: huggingface test has the images 0..249"):
        dataset.image(250)


def test_splits_of_a_dict_and_selected_rows(tmp_path: Path) -> None:
    train, test = rows(5), rows(4, seed=1).select([3, 1])
    DatasetDict(train=train, test=test).save_to_disk(tmp_path)
    for split, theirs in (("train", train), ("test", test)):
        assert same(load_dataset("huggingface", tmp_path, split), theirs)
    with pytest.raises(DataError, match=r"has no split 'val'; there: train, test; correct dataset.split$"):
        load_dataset("huggingface", tmp_path, "val")


def test_a_data_set_on_disk_says_which_split_it_is(tmp_path: Path) -> None:
    theirs = Theirs.from_dict(rows(3)[:], features=FEATURES, split="train")
    theirs.save_to_disk(tmp_path)
    assert len(load_dataset("huggingface", tmp_path, "train")) == 3
    with pytest.raises(DataError, match=r"holds the split 'train', not 'test'; correct dataset.split or dataset.root$"):
        load_dataset("huggingface", tmp_path)


def test_a_snapshot_of_the_hub_is_links_to_parquet_files(tmp_path: Path) -> None:
    theirs = rows(7)
    for shard in range(2):
        on_hub(tmp_path / "blobs", theirs.shard(2, shard, contiguous=True), f"{shard}.parquet", batch_size=2)
        link = tmp_path / "snapshot" / "data" / f"test-0000{shard}-of-00002.parquet"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(tmp_path / "blobs" / f"{shard}.parquet")
    on_hub(tmp_path / "snapshot", rows(2), "data/train-00000-of-00001-0a1b2c.parquet")
    on_hub(tmp_path / "snapshot", rows(2), ".cache/test-00000-of-00001.parquet")
    dataset = load_dataset("huggingface", tmp_path / "snapshot")
    assert same(dataset, theirs)
    assert dataset.classes == tuple(NAMES)
    assert len(load_dataset("huggingface", tmp_path / "snapshot", "train")) == 2
    (tmp_path / "snapshot" / "data" / "test-00000-of-00002.parquet").unlink()
    with pytest.raises(
        DataError, match=r"files 0 to 1 of the split 'test' once each, it has 1: test-00001-of-00002.par"
    ):
        load_dataset("huggingface", tmp_path / "snapshot")


def test_numbered_files_are_of_the_split_that_their_directory_names(tmp_path: Path) -> None:
    for config in ("fine", "coarse"):
        on_hub(tmp_path, rows(4), f"{config}/test/0000.parquet")
    on_hub(tmp_path, rows(2), "fine/test/0001.parquet")
    assert len(load_dataset("huggingface", tmp_path / "fine")) == 6
    assert len(load_dataset("huggingface", tmp_path / "coarse" / "test")) == 4
    with pytest.raises(DataError, match=r"split 'test' in 2 directories \(coarse/test, fine/test\); set dataset.root"):
        load_dataset("huggingface", tmp_path)
    with pytest.raises(DataError, match=r"no Parquet files of the split 'val'; there: test; correct dataset.split$"):
        load_dataset("huggingface", tmp_path, "val")


@pytest.mark.parametrize("kind", ["disk", "parquet"])
def test_a_process_holds_few_images(tmp_path: Path, kind: str) -> None:
    theirs = rows(400, size=100)
    if kind == "disk":
        theirs.save_to_disk(tmp_path)
    else:
        pq.write_table(theirs.data.table, tmp_path / "test.parquet", write_batch_size=10)  # one row group, many pages
    del theirs
    before, most = pa.total_allocated_bytes(), 0
    dataset = load_dataset("huggingface", tmp_path)
    for image_id in range(0, 400, 3):
        dataset.check([image_id])
        dataset.image(image_id)
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 7e6  # of 12 MB; 3 MB are 100 images


def test_rows_of_a_large_row_group_are_read_in_any_order(tmp_path: Path) -> None:
    files = colours(430)
    pq.write_table(rows(430).data.table, tmp_path / "test.parquet", row_group_size=215)  # batches: 100, 100 and 15 rows
    dataset = load_dataset("huggingface", tmp_path)
    assert same(dataset, rows(430))
    for image_id in (429, 0, 214, 20, 215, 99, 100, 199, 200, 399):
        assert dataset.encoded(image_id)[0] == files[image_id]["bytes"]


def test_columns_are_named_where_the_features_leave_a_choice(tmp_path: Path) -> None:
    features = FEATURES | {"coarse": ClassLabel(names=["bird", "mammal"]), "mask": ImageFeature()}
    columns = rows(3)[:] | {"coarse": [1, 0, 1], "mask": colours(3, seed=1)}
    root = on_hub(tmp_path, Theirs.from_dict(columns, features=Features(features)))
    with pytest.raises(
        DataError, match=r"2 columns of the kind Image \(img, mask\); name one in dataset.image_column;"
    ):
        load_dataset("huggingface", root)
    with pytest.raises(
        DataError, match=r"kind ClassLabel \(label, coarse\); name one in dataset.label_column; its col"
    ):
        load_dataset("huggingface", root, image_column="img")
    fine = load_dataset("huggingface", root, image_column="img", label_column="label")
    coarse = load_dataset("huggingface", root, image_column="mask", label_column="coarse")
    assert (fine.classes, coarse.classes) == (tuple(NAMES), ("bird", "mammal"))
    assert coarse.labels(range(3)).tolist() == [1, 0, 1]
    assert coarse.encoded(0)[0] == colours(3, seed=1)[0]["bytes"]
    with pytest.raises(
        DataError, match=r"dataset.image_column must be one of its columns, got 'x'; its columns: img, la"
    ):
        load_dataset("huggingface", root, image_column="x", label_column="label")


def test_plain_columns_need_the_names_of_the_classes(tmp_path: Path) -> None:
    files = [one["bytes"] for one in colours(3)]
    root = table(tmp_path, {"file": files, "y": np.array([2, 0, 1], np.uint8)})
    with pytest.raises(
        DataError, match=r"no column of the kind Image by its metadata; name the column in dataset.image_"
    ):
        load_dataset("huggingface", root)
    with pytest.raises(
        DataError, match=r"the column 'y' must have the names of two .* got none; .* in dataset.classes"
    ):
        load_dataset("huggingface", root, image_column="file", label_column="y")
    dataset = load_dataset("huggingface", root, image_column="file", label_column="y", classes=["a", "b", "c", "d"])
    assert (dataset.classes, dataset.labels(range(3)).tolist()) == (("a", "b", "c", "d"), [2, 0, 1])
    assert dataset.encoded(1)[0] == files[1]


def test_classes_give_another_order(tmp_path: Path) -> None:
    root = on_hub(tmp_path, rows(3))
    plain = load_dataset("huggingface", root)
    ordered = load_dataset("huggingface", root, classes=["cat", "dog", "emu"])
    assert [plain.classes[i] for i in plain.labels(range(3))] == ["emu", "dog", "cat"]  # type: ignore[index]
    assert [ordered.classes[i] for i in ordered.labels(range(3))] == ["emu", "dog", "cat"]  # type: ignore[index]
    assert ordered.labels(range(3)).tolist() == [2, 1, 0]
    assert ordered.digest != plain.digest == load_dataset("huggingface", root, classes=NAMES).digest
    with pytest.raises(DataError, match=r"has classes that are not in dataset.classes: cat; add them in their place$"):
        load_dataset("huggingface", root, classes=["emu", "dog"])
    with pytest.raises(ConfigError, match=r"^dataset.classes must name each class once$"):
        load_dataset("huggingface", root, classes=[*NAMES, "cat"])
    (warning,) = load_dataset("huggingface", root, classes=[*NAMES, "gnu"]).warnings
    assert warning.endswith("does not know 1 class of dataset.classes (gnu)")


def test_grey_images_stay_grey(tmp_path: Path) -> None:
    mixed = colours(2, channels=1) + colours(1)
    root = on_hub(tmp_path, Theirs.from_dict({"img": mixed, "label": [0, 1, 2]}, features=FEATURES))
    dataset = load_dataset("huggingface", root)
    assert dataset.image_shape == (1, 8, 8)
    assert np.array_equal(dataset.encoded(1)[1][0], np.asarray(Image.open(io.BytesIO(mixed[1]["bytes"]))))
    dataset.check([0, 1])
    for read in (dataset.image, lambda image_id: dataset.check([image_id])):
        with pytest.raises(DataError, match=r"image 2: .*\.parquet, row 2: has colours, .*; set dataset.channels: 3$"):
            read(2)
    as_colour = load_dataset("huggingface", root, channels=3)
    assert as_colour.images(range(3)).shape == (3, 3, 8, 8)
    assert as_colour.digest != dataset.digest


def test_images_of_several_sizes_are_resized(tmp_path: Path) -> None:
    files = [*colours(1, size=20), *colours(1, size=30)]
    root = on_hub(tmp_path, Theirs.from_dict({"img": files, "label": [0, 1]}, features=FEATURES))
    (tmp_path / "folder" / "test" / "a").mkdir(parents=True)
    (tmp_path / "folder" / "test" / "b").mkdir()
    for name, file in zip("ab", files, strict=True):
        (tmp_path / "folder" / "test" / name / "1.png").write_bytes(file["bytes"])
    dataset = load_dataset("huggingface", root, image_size=14)
    dataset.check([0, 1])
    assert np.array_equal(
        dataset.images([0, 1]), load_dataset("folder", tmp_path / "folder", image_size=14).images([0, 1])
    )
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(dataset.encoded(1)[0]))).transpose(2, 0, 1) / np.float32(255), dataset.image(1)
    )
    plain = load_dataset("huggingface", root)
    for read in (plain.image, lambda image_id: plain.check([image_id])):
        with pytest.raises(
            DataError, match=r"image 1: .*: 30x30 pixels, but the first image of the split has 20x20; set"
        ):
            read(1)


def test_the_digest_is_of_labels_sizes_names_and_columns(tmp_path: Path) -> None:
    def digest(name: str, split: str = "test", **changes: Any) -> str:
        columns = rows(4)[:] | {"label": changes.get("label", [0, 1, 2, 0]), "img": changes.get("img", colours(4))}
        features = FEATURES | {"label": ClassLabel(names=changes.get("names", NAMES))}
        place = on_hub(tmp_path / name, Theirs.from_dict(columns, features=Features(features)), f"{split}.parquet")
        return load_dataset("huggingface", place, split, image_size=changes.get("image_size")).digest

    plain = digest("plain")
    assert plain == digest("the same elsewhere")
    others = [
        digest("a", "train"),
        digest("b", label=[0, 1, 2, 1]),
        digest("c", img=colours(4, size=9)),
        digest("d", names=["a", "b", "c"]),
        digest("e", image_size=8),
    ]
    assert len({plain, *others}) == 6


@pytest.mark.parametrize("layout", ["arrow", "parquet"])
def test_another_order_within_a_class_is_another_data_set(tmp_path: Path, layout: str) -> None:
    """Images of equal size, and equal labels: files of equal size."""
    whole = Theirs.from_dict({"img": colours(20), "label": [0] * 20}, features=FEATURES)
    digests = set()
    for seed in (1, 2):
        shuffled = whole.shuffle(seed=seed).flatten_indices()
        place = tmp_path / str(seed)
        if layout == "arrow":
            shuffled.save_to_disk(place)
        else:
            on_hub(place, shuffled, "test.parquet")
        digests.add(load_dataset("huggingface", place).digest)
    assert len(digests) == 2


def test_it_can_be_packed(tmp_path: Path) -> None:
    rows(5).save_to_disk(tmp_path / "saved")
    dataset = load_dataset("huggingface", tmp_path / "saved")
    pack_dataset(dataset, None, LocalStore(tmp_path / "packed"), lambda done: None)
    packed = load_dataset("parquet", tmp_path / "packed")
    assert same(packed, rows(5))
    assert (packed.classes, packed.encoded(2)[0]) == (dataset.classes, dataset.encoded(2)[0])


FILES = FEATURES["img"].pa_type
BROKEN = {"bytes": colours(1)[0]["bytes"][:60], "path": None}
PARQUET: list[tuple[dict[str, Any], Features | None, str]] = [
    (
        {"img": [1, 2], "label": [0, 1]},
        FEATURES,
        r"'img' must hold image files, as bytes or as bytes and path, it is int64",
    ),
    (
        {"img": colours(2), "label": ["0", "1"]},
        FEATURES,
        r"column 'label' must hold class numbers, it is string; correct",
    ),
    (
        {"img": colours(2), "label": [0, 3]},
        FEATURES,
        r"labels must be in 0..2, image 1 has 3 \(-1: not known\); choose a",
    ),
    ({"img": colours(2), "label": [0, None]}, FEATURES, r"labels must be in 0..2, image 1 has -1"),
    (
        {"img": [{"bytes": b"<html>", "path": None}] * 2, "label": [0, 1]},
        FEATURES,
        r"image 0: .*test.parquet, row 0: cannot be read \(.*\); bring back",
    ),
    (
        {"img": pa.array([{"bytes": None, "path": "1.png"}] * 2, FILES), "label": [0, 1]},
        FEATURES,
        r"image 0: .*test.parquet, row 0: has no image, or only its path; save the data set again with its images ",
    ),
    ({"img": [], "label": []}, FEATURES, r"has no rows in the split 'test'; correct dataset.root or dataset.split"),
    ({"label": [0, 1]}, FEATURES, r"has no column of the kind Image by its metadata; .* its columns: label$"),
    ({"img": colours(2), "label": [0, 1]}, None, r"has no column of the kind Image by its metadata"),
    (
        {"img": colours(2), "label": [0, 1]},
        Features({"img": ImageFeature(), "label": ClassLabel(names=["one"])}),
        r"the column 'label' must have the names of two classes at least, each once, got one; correct dataset.label_co",
    ),
]


@pytest.mark.parametrize(("columns", "features", "message"), PARQUET)
def test_bad_rows_are_one_line(tmp_path: Path, columns: dict[str, Any], features: Features, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("huggingface", table(tmp_path, columns, features))
    assert "\n" not in str(caught.value)


def edit(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


SHARD = "data-00001-of-00002.arrow"
DAMAGE: list[tuple[Callable[[Path], object], str]] = [
    (lambda root: (root / SHARD).unlink(), rf"{SHARD}: cannot be read \(file not found\); bring back the whole file$"),
    (lambda root: edit(root / SHARD, lambda data: data[:-8]), rf"{SHARD}: cannot be read \(it is truncated: the end"),
    (lambda root: edit(root / SHARD, lambda data: data[:-200]), rf"{SHARD}: cannot be read"),
    (lambda root: edit(root / SHARD, lambda data: b"<html>" * 9), rf"{SHARD}: cannot be read"),
    (lambda root: (root / "state.json").write_text("{"), r"state.json: cannot be read \(.*\); save the data set again"),
    (lambda root: (root / "state.json").write_text("{}"), r"state.json: '_data_files' is not a list of names; save"),
    (lambda root: (root / "state.json").unlink(), r"is neither a data set that save_to_disk .* wrote .*, nor has Parq"),
    (lambda root: shutil.rmtree(root), r"root .* is not a directory; correct dataset.root$"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damaged_files_are_one_line(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    rows(6).save_to_disk(tmp_path / "saved", num_shards=2)
    damage(tmp_path / "saved")
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("huggingface", tmp_path / "saved")
    assert "\n" not in str(caught.value)


def test_a_split_of_a_dict_that_is_not_there(tmp_path: Path) -> None:
    DatasetDict(test=rows(2)).save_to_disk(tmp_path)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(DataError, match=r"test/state.json: cannot be read \(No such file or directory\); save"):
        load_dataset("huggingface", tmp_path)
    (tmp_path / "dataset_dict.json").write_text(json.dumps({"splits": "test"}))
    with pytest.raises(DataError, match=r"dataset_dict.json: 'splits' is not a list of names; save"):
        load_dataset("huggingface", tmp_path)


def test_an_image_that_cannot_be_read_is_named_by_id_file_and_row(tmp_path: Path) -> None:
    files = [*colours(4), BROKEN, *colours(1)]
    theirs = Theirs.from_dict({"img": files, "label": [0] * 6}, features=FEATURES)
    theirs.save_to_disk(tmp_path / "saved", num_shards=2)
    dataset = load_dataset("huggingface", tmp_path / "saved")
    message = r"^image 4: .*data-00001-of-00002.arrow, row 1: cannot be read \(.*\); bring back the original, or leave"
    dataset.check([0, 1, 2, 3, 5])
    with pytest.raises(DataError, match=message):
        dataset.image(4)
    on_hub(tmp_path / "hub", theirs, batch_size=2)
    with pytest.raises(DataError, match=r"^image 4: .*test-00000-of-00001.parquet, row 4: cannot be read"):
        load_dataset("huggingface", tmp_path / "hub").image(4)


def test_a_damaged_offset_does_not_read_beyond_the_file(tmp_path: Path) -> None:
    rows(6).save_to_disk(tmp_path)
    sizes = np.cumsum([0, *(len(one["bytes"]) for one in colours(6))]).astype("<i4").tobytes()
    file = tmp_path / "data-00000-of-00001.arrow"
    assert file.read_bytes().count(sizes) == 1
    edit(file, lambda data: data.replace(sizes, sizes[:-4] + np.array([2**31 - 1], "<i4").tobytes()))
    with pytest.raises(DataError, match=r"arrow: cannot be read \(.*[Oo]ffset.*\); bring back the whole file$"):
        load_dataset("huggingface", tmp_path)


def test_files_that_differ_are_refused(tmp_path: Path) -> None:
    on_hub(tmp_path, rows(2), "test-00000-of-00002.parquet")
    other = Features({"img": ImageFeature(), "label": ClassLabel(names=NAMES[::-1])})
    on_hub(tmp_path, rows(2).cast(other), "test-00001-of-00002.parquet")
    with pytest.raises(
        DataError, match=r"test-00001-of-00002.parquet: has other columns or class names than .*/test-00000"
    ):
        load_dataset("huggingface", tmp_path)


def test_keys_of_other_data_sets_are_refused(tmp_path: Path) -> None:
    for key, value in (("image_column", "x"), ("label_column", "x"), ("channels", 1)):
        with pytest.raises(ConfigError, match=rf"^dataset.{key} applies to huggingface, not to folder; remove it$"):
            load_dataset("folder", tmp_path, **{key: value})  # type: ignore[arg-type]
