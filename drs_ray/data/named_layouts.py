"""Data sets that are read from their unpacked archives, without torchvision: Tiny-ImageNet and STL-10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from drs_ray.config.class_names import read_class_names
from drs_ray.data.arrays import ArrayDataset
from drs_ray.data.folders import FolderDataset, folder_dataset, split_directory
from drs_ray.data.listing import ImageFile, Listing, list_classes, list_images
from drs_ray.errors import DataError, counted

TINY_SITE = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
STL10_SITE = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
STL10_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_ANNOTATIONS = "val_annotations.txt"
_SIDE = 96


def load_tiny_imagenet(
    root: Path, split: str, image_size: int | None, classes: Sequence[str] | None = None
) -> FolderDataset:
    """Tiny-ImageNet as unpacked, or with val sorted into class directories: image ids are the same.

    Classes are those of wnids.txt in text order, which is the order of torchvision's ImageFolder, unless `classes`
    names another order. Arguments and errors: see `drs_ray.data.folders.load_folder`.
    """
    name = "tiny-imagenet"
    directory = split_directory(name, root, split, ("train", "val"))
    try:
        known = sorted(read_class_names(root / "wnids.txt"))
    except ValueError as error:
        raise DataError(f"data set {name}: {error}; dataset.root must hold what {TINY_SITE} has") from error
    if classes is not None and sorted(classes) != known:
        raise DataError(
            f"data set {name}: dataset.classes must name the {counted(len(known), 'class')} of {root / 'wnids.txt'}, "
            "each once"
        )
    order = classes or known
    images = list_images(directory / "images") if split == "val" and (directory / "images").is_dir() else []
    listing = _annotated(directory, images, order) if images else list_classes(name, directory, order)
    return folder_dataset(name, split, directory, image_size, listing)


def _annotated(directory: Path, images: Sequence[ImageFile], order: Sequence[str]) -> Listing:
    """val/images by the classes in val_annotations.txt: lines of file name, class and four numbers, split by tabs."""
    file = directory / _ANNOTATIONS
    try:
        rows = [line.split("\t") for line in read_class_names(file)]
    except ValueError as error:
        raise DataError(f"data set tiny-imagenet: {error}") from error
    class_of = {row[0]: row[1] for row in rows if len(row) > 1}
    found: dict[str, list[ImageFile]] = {name: [] for name in order}
    for image in images:
        if class_of.get(image.path) not in found:
            raise DataError(
                f"data set tiny-imagenet: {file} has no known class for images/{image.path}; restore it "
                f"from {TINY_SITE}"
            )
        found[class_of[image.path]].append(ImageFile(f"images/{image.path}", image.size))
    missing = class_of.keys() - {image.path for image in images}
    if missing:
        raise DataError(
            f"data set tiny-imagenet: {directory / 'images'} lacks {counted(len(missing), 'image')} of {_ANNOTATIONS}, "
            f"first {min(missing)}; restore them from {TINY_SITE}"
        )
    return Listing(found, ())


def load_stl10(root: Path, split: str) -> ArrayDataset:
    """STL-10's labelled images, read from root/stl10_binary: uint8 [N, 3, 96, 96], labels 0..9 in its own order.

    torchvision would first compute checksums of all files; the unlabelled images alone are 2.8 GB.

    Raises:
        DataError: the files are missing, or do not match.
    """
    directory = root / "stl10_binary"
    remedy = f"dataset.root must hold what {STL10_SITE} has"
    try:
        pixels, labels = (np.fromfile(directory / f"{split}_{part}.bin", dtype=np.uint8) for part in ("X", "y"))
    except OSError as error:
        raise DataError(f"data set stl10: {error.filename or directory}: {error.strerror}; {remedy}") from error
    if not labels.size or pixels.size != labels.size * 3 * _SIDE**2:
        raise DataError(
            f"data set stl10: {directory} has {pixels.size / (3 * _SIDE**2):.9g} images and "
            f"{counted(labels.size, 'label')} of the {split} split; {remedy}"
        )
    if labels.min() < 1 or labels.max() > len(STL10_CLASSES):
        raise DataError(
            f"data set stl10: {directory / f'{split}_y.bin'} must hold labels in 1..10, it has {labels.min()} to "
            f"{labels.max()}; {remedy}"
        )
    return ArrayDataset(
        name="stl10",
        split=split,
        num_classes=len(STL10_CLASSES),
        pixels=np.ascontiguousarray(pixels.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 1, 3, 2)),  # stored by columns
        targets=labels.astype(np.int64) - 1,
        classes=STL10_CLASSES,
    )
