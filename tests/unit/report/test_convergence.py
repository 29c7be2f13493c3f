"""Convergence, against definitions worked out one image at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from drs_ray.report.convergence import convergence
from drs_ray.results.reduce import certify_counts
from tests.unit.counts.factories import (
    adaptive,
    make_history,
    make_record,
    reduced,
)


@pytest.mark.parametrize("sub_images", [1, 2])
def test_convergence_certifies_the_votes_so_far_as_if_that_had_been_the_plan(sub_images: int) -> None:
    record = make_record(40, sub_images, estimation=800)
    history = make_history(record, [100, 200, 400, 800])
    run = reduced(record, history)
    points = convergence(run, history)
    assert [point.samples for point in points] == [100, 200, 400, 800]
    for point in points:
        alone = certify_counts(history.at(point.samples), record, run.certified_by, run.alpha)
        assert all(row["estimation_samples"] == [point.samples] * sub_images for row in alone.to_pylist())
        assert point.radius.tolist() == alone["radius"].to_pylist()
        assert point.correct.tolist() == alone["correct"].to_pylist()
        assert point.abstained == sum(row["prediction"] == -1 for row in alone.to_pylist())
        assert point.acr == pytest.approx(np.mean(np.where(point.correct, point.radius, 0)))
    assert points[-1].radius.tolist() == run.radius.tolist()  # the whole plan: the certificates themselves
    assert points[0].acr < points[-1].acr
    assert [row.certified for row in points[-1].at_radii([0.0, 0.5])] == [
        int((run.correct & (run.radius >= radius)).sum()) for radius in (0.0, 0.5)
    ]


def test_convergence_halves_whatever_the_cuts() -> None:
    record = make_record(5, 1, estimation=3000)
    history = make_history(record, [*range(100, 3000, 100), 3000])
    run = reduced(record, history)
    assert [point.samples for point in convergence(run, history)] == [100, 200, 400, 800, 1500, 3000]


def test_convergence_leaves_out_cuts_that_some_image_lacks() -> None:
    record = make_record(4, 1, estimation=800)
    history = make_history(record, [100, 400, 800])
    run = reduced(record, history)
    rows = history._rows
    later = (rows.image_id == 2) & (rows.first_sample == 100)
    moved = dataclasses.replace(rows, first_sample=np.where(later, 101, rows.first_sample))  # ends at 401, not at 400
    assert later.sum() == 1
    assert [point.samples for point in convergence(run, dataclasses.replace(history, _rows=moved))] == [100, 800]


def test_images_that_stopped_early_keep_their_votes_in_convergence() -> None:
    record, history = adaptive()
    run = reduced(record, history)
    points = convergence(run, history)
    assert [point.samples for point in points] == list(record.schedule.samples)
    stopped = history.drawn <= record.schedule.samples[1]
    assert 0 < stopped.sum() < len(stopped)
    assert points[1].radius[stopped].tolist() == points[-1].radius[stopped].tolist()
    assert points[-1].radius.tolist() != run.radius.tolist()  # stages are not paid for
