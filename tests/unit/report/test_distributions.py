"""Histograms, classes and saved samples, against definitions worked out one image at a time."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from drs_ray.certificates.stages import doubling_schedule
from drs_ray.report.distributions import (
    P_LOWER_EDGES,
    RADIUS_BINS,
    p_lower_histograms,
    per_class,
    radius_edges,
    radius_histogram,
    saving,
)
from tests.unit.counts.factories import (
    adaptive,
    make_result,
    reduced,
    with_radii,
)


def test_histogram_of_lower_bounds_is_one_for_each_sub_image() -> None:
    run = make_result(60, 2)
    bounds = np.array(run.certificates["p_lower"].to_pylist())
    for k, histogram in enumerate(p_lower_histograms(run)):
        assert histogram.edges == P_LOWER_EDGES
        expected = [int(((bounds[:, k] >= low) & (bounds[:, k] < high)).sum()) for low, high in pairwise(P_LOWER_EDGES)]
        assert list(histogram.counts) == expected
        assert sum(histogram.counts) == 60
    first, second = p_lower_histograms(run)
    assert first != second


@pytest.mark.parametrize("largest", [0.0, 1e-6, 0.03, 0.5, 0.6, 1.2, 2.0, 2.4, 2.5, 2.9999, 7.0, 12.0, 119.9])
def test_bins_of_radii_are_few_round_and_hold_the_largest(largest: float) -> None:
    run = with_radii(make_result(3), [largest, largest / 3, 0.0])
    edges = radius_edges([run, with_radii(make_result(3), [0.0, 0.0, 0.0])])
    assert len(edges) - 1 <= RADIUS_BINS
    assert edges[0] == 0
    assert edges[-1] > largest
    assert largest == 0 or edges[-2] <= largest
    assert all(len(repr(edge).replace("e-", "")) <= 8 for edge in edges)
    histogram = radius_histogram(run, edges)
    assert sum(histogram.correct.counts) == int((run.radius > 0).sum())


def test_histogram_of_radii_tells_right_wrong_and_abstaining_apart() -> None:
    run = make_result(80, hardest=0.1)
    edges = (0.0, 0.5, 1.0, 2.0)
    found = radius_histogram(run, edges)
    rows = run.certificates.to_pylist()
    for low, high, right, wrong in zip(edges, edges[1:], found.correct.counts, found.wrong.counts, strict=False):
        there = [row for row in rows if row["prediction"] != -1 and low <= row["radius"] < high]
        assert right == sum(row["correct"] for row in there)
        assert wrong == sum(not row["correct"] for row in there)
    assert found.abstained == sum(row["prediction"] == -1 for row in rows) > 0
    assert sum(found.correct.counts) + sum(found.wrong.counts) + found.abstained == 80
    assert sum(found.wrong.counts) > 0


def test_classes_are_summed_up_over_their_own_images() -> None:
    run = make_result(80, hardest=0.1)
    rows = run.certificates.to_pylist()
    classes = per_class(run)
    assert [row.label for row in classes] == sorted({row["label"] for row in rows})
    for found in classes:
        mine = [row for row in rows if row["label"] == found.label]
        assert found.images == len(mine)
        assert found.abstained == sum(row["prediction"] == -1 for row in mine)
        assert found.acr == pytest.approx(sum(row["radius"] * row["correct"] for row in mine) / len(mine))
        zero, half = found.at_radii([0.5])
        assert zero.certified == sum(row["correct"] for row in mine)
        assert half.certified == sum(row["correct"] and row["radius"] >= 0.5 for row in mine)
        assert half.images == len(mine)
        assert half.ci_low <= half.certified / len(mine) <= half.ci_high
    assert sum(row.images for row in classes) == 80


def test_saving_counts_selection_samples_on_both_sides() -> None:
    record, history = adaptive()
    run = reduced(record, history)
    found = saving(run)
    assert found is not None
    assert found.drawn == 60 * 2 * 100 + 2 * int(history.drawn.sum()) == run.samples
    assert found.full == 60 * 2 * (100 + 800)
    assert [stage.samples for stage in found.stages] == list(doubling_schedule(800, 4).samples) == [100, 200, 400, 800]
    assert [stage.ended for stage in found.stages] == [
        int((history.drawn == end).sum()) for end in (100, 200, 400, 800)
    ]
    decided = run.certificates["stage"].to_pylist()
    assert [stage.decided for stage in found.stages] == [decided.count(stage) for stage in range(4)]
    assert found.drawn < found.full
    assert float(found.factor_text) <= found.full / found.drawn < float(found.factor_text) + 0.1


def test_a_fixed_number_of_samples_saves_nothing() -> None:
    assert saving(make_result(5)) is None
