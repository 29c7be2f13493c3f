"""Data sets that torchvision reads from their original files: mnist, cifar10, cifar100, svhn."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from drs_ray.data.arrays import DIGITS, ArrayDataset
from drs_ray.errors import DataError, counted


class _Files(NamedTuple):
    """Number of classes, the files that torchvision expects below root, and the address of the files."""

    num_classes: int
    layout: str
    address: str


_CIFAR = "https://www.cs.toronto.edu/~kriz"
TORCHVISION_SETS = {
    "mnist": _Files(
        10, "MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte", "https://ossci-datasets.s3.amazonaws.com/mnist"
    ),
    "cifar10": _Files(10, "cifar-10-batches-py/", f"{_CIFAR}/cifar-10-python.tar.gz"),
    "cifar100": _Files(100, "cifar-100-python/", f"{_CIFAR}/cifar-100-python.tar.gz"),
    "svhn": _Files(10, "{train,test}_32x32.mat", "http://ufldl.stanford.edu/housenumbers"),
}
"""Name -> number of classes and files."""


def load_torchvision(name: str, root: Path, split: str, download: bool) -> ArrayDataset:
    """Read one of `TORCHVISION_SETS` from root, in torchvision's order; it is downloaded only with `download`.

    cifar100 has its 100 fine labels; svhn has the label 0 for the digit 0, and no `extra` split.

    Raises:
        DataError: the files are missing or damaged, do not match, or cannot be downloaded.
    """
    files = TORCHVISION_SETS[name]
    remedy = (
        f"set dataset.download: true, or unpack what {files.address} has so that dataset.root contains {files.layout}"
    )
    if not download and not root.is_dir():
        raise DataError(f"data set {name}: root {root} is not a directory; correct dataset.root, {remedy}")
    try:
        with warnings.catch_warnings():
            # CIFAR's pickles have arrays of an old numpy, of which numpy >= 2.4 warns.
            warnings.simplefilter("ignore")
            pixels, targets, classes = _read(name, root, split, download)
    except (
        *(RuntimeError, OSError, ValueError, EOFError),
        *(KeyError, AssertionError, pickle.UnpicklingError),  # an invalid header or table
    ) as error:
        what = "cannot be downloaded" if download else "is not there, or damaged"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        advice = "see the reason given" if download else f"correct dataset.root, {remedy}"
        raise DataError(f"data set {name}: {what} in {root} ({reason}); {advice}") from error
    if len(pixels) != len(targets):
        raise DataError(
            f"data set {name}: {root} has {counted(len(pixels), 'image')} and {counted(len(targets), 'label')} of the "
            f"{split} split; they must be as many, from one source: {remedy}"
        )
    wrong = np.flatnonzero((targets < 0) | (targets >= files.num_classes))
    if wrong.size:
        raise DataError(
            f"data set {name}: labels must be in 0..{files.num_classes - 1}, image {wrong[0]} of the {split} split in "
            f"{root} has {targets[wrong[0]]}; {remedy}"
        )
    return ArrayDataset(name, split, files.num_classes, pixels, targets, classes)


def _read(
    name: str, root: Path, split: str, download: bool
) -> tuple[NDArray[np.uint8], NDArray[np.int64], tuple[str, ...]]:
    """uint8 [N, C, H, W], int64 [N] and the names of all classes."""
    from torchvision import datasets

    if name == "svhn":
        digits = datasets.SVHN(root=str(root), split=split, download=download)
        return (
            np.ascontiguousarray(digits.data, dtype=np.uint8),
            np.atleast_1d(np.asarray(digits.labels, np.int64)),
            DIGITS,
        )
    source = {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    loaded = source(root=str(root), train=split == "train", download=download)
    data = np.asarray(loaded.data, dtype=np.uint8)  # mnist [N, H, W]; cifar [N, H, W, C]
    pixels = data[:, None] if data.ndim == 3 else data.transpose(0, 3, 1, 2)
    classes = DIGITS if name == "mnist" else tuple(loaded.classes)  # CIFAR: the names in its meta file
    return np.ascontiguousarray(pixels), np.asarray(loaded.targets, dtype=np.int64), classes
