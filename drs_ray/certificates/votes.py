"""The votes that certificates need: of the selected class and of each rival, per image and sub-image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Rivals:
    """Votes of the classes other than the selected one, one entry per image and rival that may have the least radius.

    A rival with no more votes than another one in every sub-image has no smaller radius and may be left out.

    image: int64 [P], positions in 0..N-1, increasing, every image at least once. classes: int64 [P], -1: a rival
    without votes. votes: int64 [P, K]. count: C - 1, the number of all rivals.
    """

    image: Integers
    classes: Integers
    votes: Integers
    count: int

    def of(self, images: NDArray[np.bool_]) -> Rivals:
        """The rivals of the images that are True in `images`, bool [N]; these images get new positions."""
        here = images[self.image]
        position = np.cumsum(images) - 1
        return Rivals(position[self.image[here]], self.classes[here], self.votes[here], self.count)


def most_voted(votes: csr_array, excluding: Integers | None = None) -> Integers:
    """Per row the class with the most votes, the smallest such class on a tie; -1 in a row without votes.

    `excluding`: one class per row that cannot win.
    """
    coordinates = votes.tocoo()
    row, column = coordinates.coords
    counted = coordinates.data > 0
    if excluding is not None:
        counted &= column != excluding[row]
    row, column, count = row[counted], column[counted], coordinates.data[counted]
    order = np.lexsort((column, -count, row))
    row, column = row[order], column[order]
    first = np.r_[True, row[1:] != row[:-1]][: len(row)]
    winner = np.full(votes.shape[0], -1, np.int64)
    winner[row[first]] = column[first]
    return winner


def total(votes: Sequence[csr_array]) -> csr_array:
    """Votes of all sub-images together: sparse [N, C]."""
    result = votes[0].copy()
    for more in votes[1:]:
        result = result + more
    return result


def votes_of(votes: Sequence[csr_array], rows: Integers, classes: Integers) -> Integers:
    """Votes for `classes[i]` in row `rows[i]`, per sub-image: int64 [len(rows), K]; 0 where the class is -1."""
    picked = [np.asarray(part[rows, np.maximum(classes, 0)]).ravel() for part in votes]
    return np.where((classes >= 0)[:, None], np.stack(picked, axis=1), 0).astype(np.int64)


def rivals_of(votes: Sequence[csr_array], selected: Integers) -> Rivals:
    """The rivals of the selected classes [N], without those that have nowhere more votes than the strongest rival.

    The strongest rival of an image has the most votes in total. An image whose other classes have no votes gets one
    entry for all of them. Votes stay sparse: the cost depends on the classes that have votes, not on C.
    """
    images, num_classes = votes[0].shape
    row, column = (np.asarray(part, np.int64) for part in total(votes).tocoo().coords)
    rival = column != selected[row]
    row, column = row[rival], column[rival]
    unseen = np.flatnonzero(np.bincount(row, minlength=images) == 0)
    image = np.r_[row, unseen]
    classes = np.r_[column, np.full(len(unseen), -1)]
    order = np.lexsort((classes, image))
    image, classes = image[order], classes[order]
    counts = votes_of(votes, image, classes)
    most = first_of_most(counts.sum(axis=1), image, images)
    kept = np.asarray((counts > counts[most[image]]).any(axis=1), np.bool_)
    kept[most] = True
    return Rivals(image[kept], classes[kept], counts[kept], num_classes - 1)


def first_of_most(values: NDArray[Any], image: Integers, images: int) -> Integers:
    """Per image the position of its largest value, the first on a tie: int64 [N].

    values: [P], one per entry. image: [P], the image of each entry, increasing; every image has an entry.
    """
    starts = np.searchsorted(image, np.arange(images))
    largest = np.flatnonzero(values == np.maximum.reduceat(values, starts)[image])
    return largest[np.searchsorted(image[largest], np.arange(images))]
