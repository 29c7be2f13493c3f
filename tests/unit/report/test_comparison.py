"""Paired differences and the envelope, against counting one image at a time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binomtest, ttest_rel

from drs_ray.certificates.curve import failed_certificates
from drs_ray.certificates.paired import holm
from drs_ray.report.comparison import ALL_PAIRS, envelope, paired_differences
from drs_ray.results.reduce import RunResult
from tests.unit.counts.factories import RADII, make_result, with_radii


def runs(count: int, images: int = 60) -> list[RunResult]:
    return [make_result(images, 1, uri=f"runs/{index}", seed=index) for index in range(count)]


def shuffled(result: RunResult) -> RunResult:
    order = np.random.default_rng(0).permutation(result.images)
    return dataclasses.replace(result, certificates=result.certificates.take(order))


def certified_ids(result: RunResult, radius: float) -> set[int]:
    rows = result.certificates.to_pylist()
    return {row["image_id"] for row in rows if row["correct"] and row["radius"] >= radius}


def test_pairs_count_each_image_once_whatever_its_order() -> None:
    first, second = runs(2)
    (pair,) = paired_differences([first, shuffled(second)], RADII)
    assert (pair.first_name, pair.second_name, pair.same_counts) == ("0", "1", False)
    for radius, row in zip(RADII, pair.at_radii, strict=True):
        one, other = certified_ids(first, radius), certified_ids(second, radius)
        assert (row.both, row.only_first, row.only_second) == (len(one & other), len(one - other), len(other - one))
        assert row.both + row.only_first + row.only_second + row.neither == 60
        disagree = row.only_first + row.only_second
        expected = binomtest(row.only_first, disagree).pvalue if disagree else 1.0
        assert row.p_value == pytest.approx(expected)
        assert row.low <= (row.only_second - row.only_first) / 60 <= row.high


def test_mean_radii_are_compared_image_by_image_also_on_the_grid() -> None:
    first, second = runs(2, images=200)
    (pair,) = paired_differences([first, shuffled(second)], RADII)
    exact, on_grid = pair.in_mean
    assert (exact.name, on_grid.name) == ("ACR", "ACR on the grid")
    rows = [sorted(run.certificates.to_pylist(), key=lambda row: row["image_id"]) for run in (first, second)]
    one, other = ([row["radius"] if row["correct"] else 0.0 for row in run] for run in rows)
    expected = ttest_rel(other, one)
    assert exact.difference == pytest.approx(np.mean(other) - np.mean(one))
    assert exact.difference == pytest.approx(second.average_certified_radius - first.average_certified_radius)
    assert (exact.low, exact.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert exact.p_value == pytest.approx(expected.pvalue)
    floors = [[max(r for r in (0.0, *RADII) if r <= radius) for radius in run] for run in (one, other)]
    expected = ttest_rel(floors[1], floors[0])
    assert on_grid.difference == pytest.approx(np.mean(floors[1]) - np.mean(floors[0]))
    assert on_grid.p_value == pytest.approx(expected.pvalue)


def with_grid(result: RunResult, radii: list[float]) -> RunResult:
    return dataclasses.replace(result, curve=pa.table({"radius": pa.array(radii, pa.float64())}))


def test_the_grid_of_the_mean_is_what_both_runs_have() -> None:
    """A run with stages never tried to reach the radii that the other alone has."""
    base = make_result(60, 1, uri="runs/a")
    first = with_grid(with_radii(base, [0.55] * 30 + [0.05] * 30), [0.0, 0.5])
    second = with_grid(with_radii(base, [0.35] * 30 + [0.55] * 30), [0.0, 0.1, 0.3, 0.5])
    (pair,) = paired_differences([first, dataclasses.replace(second, uri="runs/b")], [0.0, 0.1, 0.3, 0.5])
    assert pair.in_mean[0].difference == pytest.approx(0.15)
    assert pair.in_mean[1].difference == 0.0


@pytest.mark.parametrize(("different", "rows"), [(19, 0), (20, 1)])
def test_a_mean_of_few_differences_has_no_interval(different: int, rows: int) -> None:
    base = with_radii(make_result(60, 1, uri="runs/a"), [0.3] * 60)
    other = dataclasses.replace(with_radii(base, [0.4] * different + [0.3] * (60 - different)), uri="runs/b")
    (pair,) = paired_differences([base, other], RADII)
    assert len(pair.in_mean) == rows  # on the grid they do not differ


def test_a_run_that_was_asked_for_one_radius_has_no_mean() -> None:
    first, second = runs(2, images=200)
    (pair,) = paired_differences([first, second], RADII)
    assert pair.in_mean != ()
    rule = dataclasses.replace(second.certified_by, radius=0.25).name
    notes = {**second.certificates.schema.metadata, b"drs_ray.rule": rule.encode()}
    asked = dataclasses.replace(second, certificates=second.certificates.replace_schema_metadata(notes))
    assert asked.certified_by.radius == 0.25
    (pair,) = paired_differences([first, asked], RADII)
    assert pair.in_mean == ()


def test_holm_is_over_all_pairs_and_radii() -> None:
    pairs = paired_differences(runs(3), RADII)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (0, 2), (1, 2)]
    rows = [row for pair in pairs for row in pair.at_radii]
    assert [row.p_holm for row in rows] == pytest.approx(list(holm([row.p_value for row in rows])))


def test_of_many_runs_each_is_compared_with_the_first() -> None:
    pairs = paired_differences(runs(ALL_PAIRS + 1, images=10), RADII)
    assert [(pair.first, pair.second) for pair in pairs] == [(0, other) for other in range(1, ALL_PAIRS + 1)]
    assert paired_differences(runs(1), RADII) == ()


def test_verdict_names_who_is_ahead_where_it_stands() -> None:
    base = make_result(60, 1, uri="runs/a")
    ahead = dataclasses.replace(with_radii(base, [0.6] * 60), uri="runs/b")
    behind = with_radii(base, [0.3] * 30 + [0.0] * 30)
    (pair,) = paired_differences([behind, ahead], RADII)
    assert pair.verdict == "b ahead at radius 0, 0.25, 0.5"
    (pair,) = paired_differences([ahead, behind], RADII)
    assert pair.verdict == "b ahead at radius 0, 0.25, 0.5"
    assert [row.p_text for row in pair.at_radii] == ["< 0.0001"] * 3 + ["1.0000"] * 2
    (pair,) = paired_differences([ahead, dataclasses.replace(ahead, uri="runs/c")], RADII)
    assert pair.verdict == "no difference at any radius that stands at 5 %"


def test_one_runs_comparison_is_from_the_same_counts_and_in_no_envelope() -> None:
    run = make_result(20)
    other = dataclasses.replace(run, variant="p_A Bonferroni")
    (pair,) = paired_differences([other, run], RADII)
    assert pair.same_counts
    assert envelope([other, run], RADII) == ()


def test_envelope_is_the_best_run_and_allows_for_the_choice() -> None:
    several = runs(3)
    several[1] = make_result(60, 1, uri="runs/1", seed=1, alpha=0.05)
    for radius, row in zip(RADII, envelope(several, RADII), strict=True):
        counts = [len(certified_ids(run, radius)) for run in several]
        assert row.certified == max(counts)
        assert [position for position, _ in row.best] == [i for i, n in enumerate(counts) if n == max(counts)]
        exact = binomtest(max(counts), 60).proportion_ci(1 - 0.05 / 3, method="exact")
        assert (row.ci_low, row.ci_high) == pytest.approx((exact.low, exact.high), abs=1e-12)
        left = [n - failed_certificates(60, run.alpha, 0.01 / 3) for n, run in zip(counts, several, strict=True)]
        assert row.guaranteed == max(*left, 0)
