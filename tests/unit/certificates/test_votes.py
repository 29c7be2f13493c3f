"""Votes of the selected class and its rivals, against loops over dense arrays."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.sparse import csr_array

from drs_ray.certificates.votes import Rivals, most_voted, rivals_of, total, votes_of

Dense = NDArray[np.int64]
steady = settings(derandomize=True, deadline=None, database=None, max_examples=100)


def sparse(dense: Dense) -> tuple[csr_array, ...]:
    """[N, K, C] -> K sparse [N, C]."""
    return tuple(csr_array(dense[:, k]) for k in range(dense.shape[1]))


def listed(rivals: Rivals) -> set[tuple[int, int, tuple[int, ...]]]:
    rows = list(zip(rivals.image.tolist(), rivals.classes.tolist(), map(tuple, rivals.votes.tolist()), strict=True))
    assert len(set(rows)) == len(rows)
    return set(rows)


def slow_rivals(dense: Dense, selected: Dense) -> set[tuple[int, int, tuple[int, ...]]]:
    """All rivals, but those that have no more votes anywhere than the one with the most (the first of these)."""
    images, sub_images, classes = dense.shape
    kept = set()
    for image in range(images):
        rows = [(c, tuple(dense[image, :, c].tolist())) for c in range(classes) if c != selected[image]]
        rows = [row for row in rows if any(row[1])] or [(-1, (0,) * sub_images)]
        most = max(rows, key=lambda row: (sum(row[1]), -row[0]))
        for c, votes in rows:
            if c == most[0] or any(one > other for one, other in zip(votes, most[1], strict=True)):
                kept.add((image, c, votes))
    return kept


def slow_most_voted(row: Dense, excluded: int | None = None) -> int:
    best = -1
    for c, count in enumerate(row.tolist()):
        if c != excluded and count > 0 and (best < 0 or count > row[best]):
            best = c
    return best


@st.composite
def votes_and_classes(draw: st.DrawFn) -> tuple[Dense, Dense]:
    images, sub_images, classes = draw(st.integers(1, 5)), draw(st.integers(1, 3)), draw(st.integers(2, 6))
    few = st.sampled_from([0, 0, 0, 1, 2, 7, 10**9])
    dense = draw(arrays(np.int64, (images, sub_images, classes), elements=few))
    return dense, draw(arrays(np.int64, images, elements=st.integers(0, classes - 1)))


@steady
@given(votes_and_classes())
def test_against_dense_loops(case: tuple[Dense, Dense]) -> None:
    dense, selected = case
    votes = sparse(dense)
    assert np.array_equal(total(votes).toarray(), dense.sum(axis=1))
    rivals = rivals_of(votes, selected)
    assert listed(rivals) == slow_rivals(dense, selected)
    assert rivals.count == dense.shape[2] - 1
    assert rivals.image.tolist() == sorted(rivals.image.tolist())
    assert set(rivals.image.tolist()) == set(range(len(dense)))
    assert rivals.votes.dtype == rivals.image.dtype == np.int64
    summed = dense.sum(axis=1)
    assert most_voted(total(votes)).tolist() == [slow_most_voted(row) for row in summed]
    excluding = most_voted(total(votes), excluding=selected).tolist()
    assert excluding == [slow_most_voted(row, c) for row, c in zip(summed, selected.tolist(), strict=True)]
    rows = np.arange(len(dense))[::-1]
    assert np.array_equal(votes_of(votes, rows, selected[::-1]), dense[rows, :, selected[::-1]])
    assert not votes_of(votes, rows, np.full(len(rows), -1)).any()


def test_two_classes_have_one_rival() -> None:
    dense = np.array([[[7, 3], [10, 0]], [[10, 0], [10, 0]]])
    rivals = rivals_of(sparse(dense), np.array([0, 0]))
    assert rivals.count == 1
    assert listed(rivals) == {(0, 1, (3, 0)), (1, -1, (0, 0))}


def test_an_image_without_a_rival_seen_has_one_that_stands_for_all() -> None:
    dense = np.zeros((3, 2, 5), np.int64)
    dense[:, :, 2] = 10
    dense[1, 0] = [1, 2, 3, 4, 0]
    rivals = rivals_of(sparse(dense), np.array([2, 2, 2]))
    assert rivals.image.tolist() == [0, 1, 2]
    assert rivals.classes.tolist() == [-1, 3, -1]


def test_rivals_of_some_images() -> None:
    dense = np.array([[[9, 3, 1], [9, 0, 2]], [[9, 0, 0], [9, 0, 0]], [[9, 1, 2], [9, 2, 1]]])
    rivals = rivals_of(sparse(dense), np.zeros(3, np.int64))
    assert rivals.image.tolist() == [0, 0, 1, 2, 2]
    some = rivals.of(np.array([True, False, True]))
    assert listed(some) == {(0, 1, (3, 0)), (0, 2, (1, 2)), (1, 1, (1, 2)), (1, 2, (2, 1))}
    assert some.count == 2
    assert rivals.of(np.zeros(3, np.bool_)).image.tolist() == []


def test_a_tie_goes_to_the_smallest_class() -> None:
    assert most_voted(csr_array(np.array([[0, 5, 5], [0, 0, 0], [5, 0, 5]]))).tolist() == [1, -1, 0]


def test_stored_zeros_and_no_rows() -> None:
    stored = csr_array((np.array([0, 4]), np.array([0, 2]), np.array([0, 2, 2])), shape=(2, 3))
    assert most_voted(stored).tolist() == [2, -1]
    assert rivals_of((stored,), np.array([2, 0])).votes.sum() == 0
    assert most_voted(csr_array((0, 4), dtype=np.int64)).shape == (0,)


@pytest.mark.parametrize("seen", [1, 5])
def test_a_thousand_classes_cost_what_is_seen(seen: int) -> None:
    rng = np.random.default_rng(seen)
    images, classes = 2000, 1000
    dense = np.zeros((images, 2, classes), np.int64)
    columns = rng.integers(0, classes, (images, 2, seen))
    np.put_along_axis(dense, columns, rng.integers(1, 50, columns.shape), axis=2)
    selected = most_voted(csr_array(dense.sum(axis=1)))
    assert selected.tolist() == dense.sum(axis=1).argmax(axis=1).tolist()
    rivals = rivals_of(sparse(dense), selected)
    assert len(rivals.image) <= images * (2 * seen + 1)
    some = rivals.image < 50
    found = Rivals(rivals.image[some], rivals.classes[some], rivals.votes[some], rivals.count)
    assert listed(found) == slow_rivals(dense[:50], selected[:50])
