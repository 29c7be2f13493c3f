"""The images of root/split and their classes: as torchvision's ImageFolder, with warnings about omitted files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from drs_ray.config.class_names import out_of_number_order, shown
from drs_ray.errors import DataError, counted

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
"""Suffixes of images, in upper or lower case, as in torchvision. Other files are counted; hidden files are ignored."""
LITTER = ("__MACOSX", "__pycache__", "lost+found", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information")
"""Directories that operating systems and tools create; they are not classes."""
_SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
_NAMED = 5


class ImageFile(NamedTuple):
    """Path below the split's directory, with `/`, and size in bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Listing:
    """The images of each class, in order of class number; warnings: about omitted files and suspicious layouts."""

    images: dict[str, list[ImageFile]]
    warnings: tuple[str, ...]


@dataclass
class _Seen:
    """Other findings of a walk: files by unknown suffix, and the first image of each directory below a class's."""

    unknown: Counter[str] = field(default_factory=Counter)
    deeper: list[str] = field(default_factory=list)


def list_classes(data_set: str, directory: Path, order: Sequence[str] | None) -> Listing:
    """The images of directory/class/, also in deeper directories, in the order of torchvision's ImageFolder.

    Args:
        data_set: name of the data set, for messages.
        directory: directory of the split.
        order: names of all classes in order of class number; None: the class directories in text order.

    Raises:
        DataError: a class that `order` lacks, fewer than two classes, no images, a dangling link, a link to a directory
            above it, a name that is not UTF-8, or a directory that cannot be read.
    """
    who = f"data set {data_set}: {directory}"
    seen = _Seen()
    found, loose = _children(directory, seen)
    unlisted = [] if order is None else [name for name in found if name not in set(order)]
    if unlisted:
        raise DataError(
            f"{who} has class directories that are not in dataset.classes: {few(unlisted)}; add them there in their "
            "place, or move the directories elsewhere"
        )
    classes = found if order is None else list(order)
    there = set(found)
    images = {name: _walk(directory, name, seen) if name in there else [] for name in classes}
    if len(classes) < 2:
        raise DataError(f"{who} has {_too_few(directory, classes, loose, seen)}")
    if not any(images.values()):
        raise DataError(f"{who} has no images ({', '.join(SUFFIXES)}) in its class directories")
    if seen.deeper and {name.lower() for name in found} <= _SPLITS:
        raise DataError(
            f"{who} has splits for classes ({few(found)}), whose images lie in directories of their own; set "
            f"dataset.root to {directory} and dataset.split to one of them"
        )
    return Listing(images, tuple(f"{who}: {text}" for text in _warnings(images, order, loose, seen)))


def list_images(directory: Path) -> list[ImageFile]:
    """The images directly in a directory, sorted by name. Errors: see `list_classes`."""
    return _children(directory, _Seen())[1]


def _walk(directory: Path, class_name: str, seen: _Seen) -> list[ImageFile]:
    """The images below directory/class, sorted by directory path, then by name."""
    listed: list[tuple[str, list[ImageFile]]] = []
    todo: list[tuple[str, tuple[tuple[int, int], ...]]] = [(class_name, (_inode(directory / class_name),))]
    while todo:
        path, above = todo.pop()
        names, images = _children(directory / path, seen)
        listed.append((path, [ImageFile(f"{path}/{name}", size) for name, size in images]))
        for name in names:
            inode = _inode(directory / path / name)
            if inode in above:
                raise DataError(f"{shown(directory / path / name)}: links to a directory that it lies in; remove it")
            todo.append((f"{path}/{name}", (*above, inode)))
    listed.sort()
    seen.deeper.extend(images[0].path for path, images in listed if path != class_name and images)
    return [image for _, images in listed for image in images]


def _children(directory: Path, seen: _Seen) -> tuple[list[str], list[ImageFile]]:
    """Names of the directories in a directory, and its images with their names as paths, both sorted by name."""
    directories: list[str] = []
    images: list[ImageFile] = []
    entry = None
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_dir():
                    if name not in LITTER:
                        directories.append(_readable(directory, name))
                elif entry.is_file():
                    if name.lower().endswith(SUFFIXES):
                        images.append(ImageFile(_readable(directory, name), entry.stat().st_size))
                    else:
                        seen.unknown[Path(name).suffix.lower()] += 1
                elif entry.is_symlink():
                    raise DataError(
                        f"{shown(entry.path)}: is a link to {shown(Path(entry.path).readlink())}, which is not there; "
                        "restore that, or remove the link (image ids then move)"
                    )
                else:
                    seen.unknown["no regular file"] += 1
    except OSError as error:
        where = directory if entry is None else entry.path
        raise DataError(f"{shown(where)}: cannot be read ({error.strerror}); let it be read, or remove it") from error
    return sorted(directories), sorted(images)


def _readable(directory: Path, name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{shown(directory / name)}: its name is not UTF-8; rename it") from error
    return name


def _inode(directory: Path) -> tuple[int, int]:
    found = directory.stat()
    return found.st_dev, found.st_ino


def _too_few(directory: Path, classes: Sequence[str], loose: Sequence[ImageFile], seen: _Seen) -> str:
    """Describe a listing with no class or one class, and the layout that it resembles."""
    if classes:
        text = f"one class directory, {classes[0]!r}, and a classifier needs two"
        loose = list_images(directory / classes[0]) if (directory / classes[0]).is_dir() else []
    else:
        text = "no class directories" + (", but images" if loose else "")
    if (directory / "val_annotations.txt").is_file():
        return f"{text}; this is the layout of Tiny-ImageNet: set dataset.name to tiny-imagenet"
    if classes and len({Path(path).parent for path in seen.deeper}) > 1:
        return (
            f"{text}; its images lie one directory deeper: if those are the classes, set dataset.root to {directory} "
            f"and dataset.split to {classes[0]}"
        )
    layout = f"{directory.name}/<class>/<image>"
    if any(image.path.startswith("ILSVRC2012_") for image in loose):
        return f"{text}; these are ImageNet's images before they are sorted by their labels: sort them into {layout}"
    return f"{text}; sort images into {layout}"


def _warnings(
    images: dict[str, list[ImageFile]], order: Sequence[str] | None, loose: Sequence[ImageFile], seen: _Seen
) -> list[str]:
    texts = []
    if loose:
        texts.append(
            f"{counted(len(loose), 'image lies', 'images lie')} in no class directory (first: {loose[0].path}), left "
            "out"
        )
    if seen.unknown:
        kinds = ", ".join(
            f"{shown(kind) or 'no suffix'}: {count:,}" for kind, count in seen.unknown.most_common(_NAMED)
        )
        texts.append(
            f"{counted(seen.unknown.total(), 'file is no image by its name', 'files are no images by their names')} "
            f"({kinds}), left out; images end in {', '.join(SUFFIXES)}"
        )
    if seen.deeper:
        texts.append(
            f"images lie in directories below those of classes (first: {seen.deeper[0]}); they belong to the class "
            "whose directory is above them"
        )
    empty = [name for name, found in images.items() if not found]
    if empty:
        texts.append(
            f"{len(empty):,} of {counted(len(images), 'class')} {'has' if len(empty) == 1 else 'have'} no images "
            f"({few(empty)}), and {'keeps its number' if len(empty) == 1 else 'keep their numbers'}"
        )
    if order is None and out_of_number_order(list(images)):
        texts.append(
            f"classes are numbered in text order ({few(list(images))}), not in the order of the numbers that they are "
            "named by; for a classifier trained in that order, name them in dataset.classes"
        )
    return texts


def few(names: Sequence[str]) -> str:
    """The first names, for messages: `a, b, c, d, e, ... 200 in all`."""
    return ", ".join(names[:_NAMED]) + (f", ... {len(names):,} in all" if len(names) > _NAMED else "")
