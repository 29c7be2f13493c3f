"""What of an image folder becomes an image, a class or a warning; compared with torchvision's ImageFolder."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from drs_ray.data.datasets import Dataset, load_dataset
from drs_ray.errors import DataError


def add(root: Path, *names: str) -> None:
    """Small images, each of its own colour."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), tuple(hashlib.sha256(name.encode()).digest()[:3])).save(root / name, "png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    add(tmp_path, "test/cat/1.png", "test/dog/2.png")
    return tmp_path


def files_of(dataset: Dataset) -> list[tuple[str, int]]:
    return [(name, dataset.label(image_id)) for image_id, name in enumerate(dataset.files)]  # type: ignore[attr-defined]


def test_images_in_deeper_directories_have_the_ids_of_image_folder(root: Path) -> None:
    add(root, "test/cat/more/3.png", "test/cat/more-of/2.png", "test/cat/more/a/0.PNG", "test/cat/z.png")
    dataset = load_dataset("folder", root)
    theirs = ImageFolder(str(root / "test"))
    assert files_of(dataset) == [(os.path.relpath(path, root / "test"), label) for path, label in theirs.samples]
    assert dataset.classes == ("cat", "dog") == tuple(theirs.classes)
    for image_id, (picture, _) in enumerate(theirs):
        assert np.array_equal(dataset.encoded(image_id)[1], np.asarray(picture).transpose(2, 0, 1))
    (warning,) = dataset.warnings
    assert "images lie in directories below those of classes (first: cat/more/3.png)" in warning


def test_the_digest_of_an_ordinary_folder_is_what_it_was(root: Path) -> None:
    sizes = [(root / "test" / name).stat().st_size for name in ("cat/1.png", "dog/2.png")]
    text = f"folder/test/None/class cat\n{sizes[0]} cat/1.png\nclass dog\n{sizes[1]} dog/2.png\n"
    dataset = load_dataset("folder", root)
    assert dataset.digest == hashlib.sha256(text.encode()).hexdigest()
    assert load_dataset("folder", root, classes=["cat", "dog"]).digest == dataset.digest
    assert dataset.warnings == ()


@pytest.mark.parametrize("name", ["cat/3.png", "cat/more", "bird"])
def test_a_dangling_link_is_an_error_by_name(root: Path, name: str) -> None:
    (root / "test" / name).symlink_to(root / "gone")
    with pytest.raises(DataError, match=rf"{name}: is a link to .*/gone, which is not there; restore that, or remove"):
        load_dataset("folder", root)


def test_links_that_lead_somewhere_are_followed(root: Path) -> None:
    add(root, "elsewhere/3.png")
    (root / "test" / "cat" / "0.png").symlink_to(root / "elsewhere" / "3.png")
    (root / "test" / "bird").symlink_to(root / "elsewhere")
    expected = [("bird/3.png", 0), ("cat/0.png", 1), ("cat/1.png", 1), ("dog/2.png", 2)]
    assert files_of(load_dataset("folder", root)) == expected


def test_a_link_to_a_directory_above_is_refused(root: Path) -> None:
    (root / "test" / "cat" / "more").mkdir()
    (root / "test" / "cat" / "more" / "back").symlink_to(root / "test" / "cat")
    with pytest.raises(DataError, match=r"cat/more/back: links to a directory that it lies in; remove it"):
        load_dataset("folder", root)


def test_a_link_to_itself_is_one_line(root: Path) -> None:
    (root / "test" / "cat" / "x.png").symlink_to("x.png")
    with pytest.raises(DataError, match=r"cat/x.png: cannot be read \(Too many levels of symbolic links\)"):
        load_dataset("folder", root)


def test_unknown_files_are_counted_in_a_warning(root: Path) -> None:
    for name in ("cat/3.jpe", "cat/4.JFIF", "cat/5.jfif", "dog/notes", "Thumbs.db", "dog/.hidden.png"):
        (root / "test" / name).write_bytes(b"")
    os.mkfifo(root / "test" / "dog" / "pipe.png")
    add(root, "test/loose.png")
    dataset = load_dataset("folder", root)
    assert files_of(dataset) == [("cat/1.png", 0), ("dog/2.png", 1)]
    loose, unknown = dataset.warnings
    assert "1 image lies in no class directory (first: loose.png), left out" in loose
    counts = r"(.jfif: 2, .jpe: 1, no suffix: 1, no regular file: 1, .db: 1)"
    assert "6 files are no images by their names" in unknown
    assert sorted(unknown.partition("(")[2].partition(")")[0].split(", ")) == sorted(counts[1:-1].split(", "))


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (["val/images/val_0.png", "val/val_annotations.txt"], "folder", "set dataset.name to tiny-imagenet"),
        (["val/ILSVRC2012_val_00000001.png"], "imagenet", "no class directories, but images; these are ImageNet's"),
        (["val/images/ILSVRC2012_val_00000001.png"], "imagenet", "one class directory, 'images', .* sort them into"),
        (["val/val/cat/1.png", "val/val/dog/1.png"], "folder", "set dataset.root to .*/val and dataset.split to val$"),
        (
            ["val/train/cat/1.png", "val/test/dog/1.png"],
            "folder",
            r"splits for classes \(test, train\).* dataset.split",
        ),
        (
            ["val/cat/1.png"],
            "folder",
            "one class directory, 'cat', and a classifier needs two; sort images into val/<c",
        ),
        (["val/1.png"], "folder", "no class directories, but images; sort images into val/<class>/<image>"),
    ],
)
def test_fewer_than_two_classes_name_the_layout(tmp_path: Path, files: list[str], name: str, message: str) -> None:
    add(tmp_path, *files)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(name, tmp_path, "val", image_size=4)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrapper", ["val", "train"])
def test_the_remedy_for_one_directory_too_many_helps(tmp_path: Path, wrapper: str) -> None:
    add(tmp_path, f"val/{wrapper}/cat/1.png", f"val/{wrapper}/dog/1.png")
    dataset = load_dataset("folder", tmp_path / "val", wrapper)
    assert dataset.classes == ("cat", "dog")


def test_litter_is_no_class_and_empty_classes_stay_with_a_warning(root: Path) -> None:
    for name in ("__MACOSX/cat", "lost+found", "@eaDir", "$RECYCLE.BIN", ".cache", "bird", "emu", "cat/@eaDir"):
        (root / "test" / name).mkdir(parents=True)
    add(root, "test/__MACOSX/cat/9.png", "test/cat/@eaDir/8.png")
    dataset = load_dataset("folder", root)
    assert dataset.classes == ("bird", "cat", "dog", "emu")
    assert files_of(dataset) == [("cat/1.png", 1), ("dog/2.png", 2)]
    (warning,) = dataset.warnings
    assert "2 of 4 classes have no images (bird, emu), and keep their numbers" in warning


@pytest.mark.parametrize(
    ("names", "warned"),
    [
        (["0", "1", "2", "10", "11"], True),
        (["class1", "class2", "class10"], True),
        (["00", "01", "02", "10", "11"], False),
        (["0", "1", "2"], False),
        (["n01440764", "n01443537"], False),
        (["a2", "b10"], False),
    ],
)
def test_text_order_of_numbers_is_a_warning(tmp_path: Path, names: list[str], warned: bool) -> None:
    add(tmp_path, *(f"test/{name}/1.png" for name in names))
    dataset = load_dataset("folder", tmp_path)
    assert dataset.classes == tuple(sorted(names))
    told = [warning for warning in dataset.warnings if "numbered in text order" in warning]
    assert len(told) == warned
    ordered = load_dataset("folder", tmp_path, classes=names)
    assert ordered.classes == tuple(names)
    assert ordered.warnings == ()
    assert (ordered.digest == dataset.digest) is not warned
    assert [(file.split("/")[0], label) for file, label in files_of(ordered)] == [
        (name, number) for number, name in enumerate(names)
    ]


def test_directories_that_are_not_named_are_an_error(root: Path) -> None:
    add(root, "test/bird/1.png")
    with pytest.raises(DataError, match=r"class directories that are not in dataset.classes: bird; add them there"):
        load_dataset("folder", root, classes=["dog", "cat"])


def test_a_subset_of_a_networks_classes_is_named_by_all_of_them(root: Path) -> None:
    """As ImageNet-A has 200 of the 1000 classes."""
    names = [f"n{number:04}" for number in range(1000)]
    names[7], names[400] = "dog", "cat"
    dataset = load_dataset("folder", root, classes=names)
    assert dataset.num_classes == 1000
    assert files_of(dataset) == [("dog/2.png", 7), ("cat/1.png", 400)]
    (warning,) = dataset.warnings
    assert "998 of 1,000 classes have no images (n0000, n0001, n0002, n0003, n0004, ... 998 in all)" in warning


@pytest.mark.parametrize("name", [b"\xff.png", b"more\xff/3.png"])
def test_names_that_are_not_utf8_are_one_escaped_line(root: Path, name: bytes) -> None:
    for path in (os.fsencode(root / "test" / "cat") + b"/" + name, os.fsencode(root / "test") + b"/bird\xff/" + name):
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - bytes are no Path
        os.link(root / "test" / "dog" / "2.png", path)
        with pytest.raises(DataError, match=r"\\udcff.*: its name is not UTF-8; rename it$") as caught:
            load_dataset("folder", root)
        str(caught.value).encode()
        os.unlink(path)  # noqa: PTH108
        os.rmdir(os.path.dirname(path)) if b"more" in name else None  # noqa: PTH106, PTH120


def test_other_names_that_are_not_utf8_can_be_printed(root: Path) -> None:
    place = os.fsencode(root)
    (root / "test" / "cat" / os.fsdecode(b"a.\xfe")).write_bytes(b"")
    (root / "test" / "cat" / os.fsdecode(b".\xfe")).mkdir()
    os.mkdir(place + b"/other\xff")  # noqa: PTH102
    (warning,) = load_dataset("folder", root).warnings
    assert r".\udcfe: 1" in warning
    with pytest.raises(DataError, match=r"there: other\\udcff, test$"):
        load_dataset("folder", root, "val")
    (root / "test" / "dog" / "x.png").symlink_to(os.fsdecode(b"\xff.png"))
    with pytest.raises(DataError, match=r"is a link to \\udcff.png, which is not there"):
        load_dataset("folder", root)


def test_headers_of_the_runs_images_alone_are_read_beforehand(root: Path) -> None:
    add(root, "test/cat/3.png")
    Image.new("RGB", (5, 4)).save(root / "test" / "dog" / "2.png")
    (root / "test" / "dog" / "4.png").write_bytes(b"no image")
    dataset = load_dataset("folder", root)
    dataset.check([0, 1])
    with pytest.raises(DataError, match=r"2.png: 5x4 pixels, but the first image .* has 4x4; set dataset.image_size"):
        dataset.check([0, 1, 2])
    with pytest.raises(DataError, match=r"4.png: cannot be read \(no image, or of a format that is not known\)"):
        dataset.check([3])
    load_dataset("folder", root, image_size=4).check([0, 1, 2])  # what the first message says
    (root / "test" / "cat" / "3.png").unlink()
    with pytest.raises(DataError, match=r"3.png: cannot be read \(file not found\)"):
        dataset.check([1])
