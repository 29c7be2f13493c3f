"""Read-outs, against definitions worked out one image at a time."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from drs_ray.certificates.rule import Rule
from drs_ray.certificates.stages import doubling_schedule
from drs_ray.config import CertificateConfig
from drs_ray.counts.history import CountsHistory
from drs_ray.counts.run_record import RunRecord, create_or_join
from drs_ray.errors import CountsError
from drs_ray.report.columns import BASELINE, RuleGain, baseline_of, columns_of, read_columns, rule_gains
from drs_ray.report.convergence import convergence
from drs_ray.report.distributions import (
    P_LOWER_EDGES,
    RADIUS_BINS,
    p_lower_histograms,
    per_class,
    radius_edges,
    radius_histogram,
    saving,
)
from drs_ray.report.rule_words import rule_in_words
from drs_ray.results.reduce import RunResult, certify_counts, compare_rule, reduce_history, reduce_run
from drs_ray.results.selected_votes import open_images
from tests.unit.counts.factories import (
    PART_KEY,
    MemoryStore,
    make_history,
    make_part,
    make_record,
    make_result,
    result_of,
    with_radii,
)

RULES = [
    Rule(),
    Rule(rivals=True),
    Rule(confidence="staircase", rivals=True, pooled=True),
    Rule("mean", "staircase"),
    Rule(weights=(1.0, 0.1 + 0.2), rivals=True),
    Rule(weights=(2.0, 2.0), pooled=True),
]
BEST = Rule(confidence="staircase", rivals=True, pooled=True)


def reduced(record: RunRecord, history: CountsHistory, **certificate: object) -> RunResult:
    config = CertificateConfig.model_validate(record.config.certificate.model_dump() | certificate)
    return reduce_history(MemoryStore(record.config.output.uri), history, record, config)


def adaptive(images: int = 60, samples: int = 800, stages: int = 4) -> tuple[RunRecord, CountsHistory]:
    """A run whose images stopped where its own rule says that they may."""
    record = make_record(images, 2, estimation=samples, radii=(0.0, 0.25, 0.5))
    record = record.model_copy(update={"config": record.config.updated("budget", stages=stages)})
    ends = record.schedule.samples
    drawn = np.full(images, ends[0])
    for end in ends[1:]:
        history = make_history(record, ends, drawn.tolist())
        drawn[open_images(history, record)] = end
    return record, make_history(record, ends, drawn.tolist())


def test_a_run_whose_stages_other_rules_decided_is_reduced_as_it_is() -> None:
    record, history = adaptive()
    started = make_history(record, record.schedule.samples, [record.schedule.samples[0]] * len(record.image_ids))
    assert open_images(started, record).any()
    with pytest.raises(CountsError, match="images need a further stage"):
        reduced(record, started)
    old = record.model_copy(update={"rules": 1})
    assert not open_images(started, old).any()
    run = reduced(old, started)
    assert run.radius.max() > 0
    assert not run.as_planned
    assert reduced(record, history).as_planned


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


def test_certificates_by_a_rule_of_another_version_are_not_guessed_at() -> None:
    run = make_result(images=2)
    named = {**run.certificates.schema.metadata, b"drs_ray.rule": b"probit p_A fisher"}
    unknown = dataclasses.replace(run, certificates=run.certificates.replace_schema_metadata(named))
    with pytest.raises(CountsError, match=r"no rule is named .probit p_A fisher.*drs-ray reduce"):
        _ = unknown.certified_by


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_baseline_is_the_plain_rule_for_the_same_vote(rule: Rule) -> None:
    plain = baseline_of(rule)
    assert (plain.vote, plain.weights) == (rule.vote, rule.weights)
    assert plain.name.startswith(f"{rule.vote} p_A bonferroni")
    assert "pooled" not in plain.name


def test_a_comparison_is_the_other_rule_on_the_same_counts_and_nothing_is_stored() -> None:
    record = make_record(40, 2, estimation=800)
    store = MemoryStore()
    create_or_join(store, record)
    store.put(PART_KEY, make_part(record, [400, 800]))
    plain = reduce_run(store, record, CertificateConfig(rivals=False, confidence="bonferroni", pooled=False))
    run = reduce_run(store, record, CertificateConfig(alpha=0.01, radii=(0.0, 0.3)))
    assert run.rule == BEST.name
    before = dict(store.objects)
    history = make_history(record, [400, 800])
    other = compare_rule(history, run, baseline_of(BEST), "plain")
    assert store.objects == before
    assert (other.variant, other.rule, other.alpha, other.uri) == ("plain", "probit p_A bonferroni", 0.01, run.uri)
    assert other.curve["radius"].to_pylist() == [0.0, 0.3]
    at_same_alpha = compare_rule(history, plain, baseline_of(BEST), "plain")
    assert at_same_alpha.certificates.equals(plain.certificates)
    assert at_same_alpha.curve.equals(plain.curve)
    assert other.average_certified_radius < run.average_certified_radius


def test_a_comparison_of_an_adaptive_run_pays_for_the_same_stages() -> None:
    record, history = adaptive()
    run = reduced(record, history)
    other = compare_rule(history, run, baseline_of(BEST), BASELINE)
    assert other.certificates["samples"].to_pylist() == run.certificates["samples"].to_pylist()
    fixed = certify_counts(history.at(800), record, baseline_of(BEST), run.alpha)
    assert (other.radius <= fixed["radius"].to_numpy()).all()
    assert (other.radius < fixed["radius"].to_numpy()).any()


def test_columns_hold_the_comparison_before_the_run_and_drop_the_counts() -> None:
    record = make_record(20, 2, estimation=800)
    history = make_history(record, [400, 800])
    run = reduced(record, history)
    columns = columns_of(run, history, compare_rules=True)
    assert [result.variant for result in columns.results] == [BASELINE, ""]
    assert columns.results[1] is run
    assert [result for result, _ in columns.convergence] == [run]
    assert columns_of(run, history, compare_rules=False).results == (run,)
    plain = reduced(record, history, rivals=False, confidence="bonferroni", pooled=False)
    assert columns_of(plain, history, compare_rules=True).results == (plain,)  # it is the baseline
    both = columns + columns_of(plain, history, compare_rules=True)
    assert len(both.results) == 3
    assert len(both.convergence) == 2


def test_runs_without_counts_are_shown_without_what_needs_them() -> None:
    record = make_record(10, 1, estimation=800)
    full, bare = MemoryStore("runs/full"), MemoryStore("runs/bare")
    full.put(PART_KEY, make_part(record, [400, 800]))
    run = reduce_run(full, record, record.config.certificate)
    columns = read_columns([(run, full), (dataclasses.replace(run, uri="runs/bare"), bare)], compare_rules=False)
    assert len(columns.results) == 2
    assert [result.uri for result, _ in columns.convergence] == ["runs/full"]
    with pytest.raises(CountsError, match="runs/bare: no counts"):
        read_columns([(run, bare)], compare_rules=True)
    full.put(PART_KEY, full.get(PART_KEY)[:-50])
    with pytest.raises(CountsError, match="truncated"):
        read_columns([(run, full)], compare_rules=False)


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


def test_gains_are_of_runs_with_their_own_comparison() -> None:
    run, other = make_result(10, 2, uri="runs/a"), make_result(10, 2, uri="runs/b", seed=1)
    plain = with_radii(run, [0.5] * 10)
    plain = dataclasses.replace(plain, variant=BASELINE)
    (gain,) = rule_gains([plain, run, other])
    assert (gain.name, gain.acr, gain.baseline_acr) == ("a", run.average_certified_radius, 0.5)
    assert not gain.adaptive
    elsewhere = dataclasses.replace(plain, uri="runs/c")
    assert rule_gains([elsewhere, run]) == ()
    at_other_alpha = result_of(run.record, make_result(10, 2, uri="runs/a", alpha=0.1).certificates, 0.1)
    assert [found.acr for found in rule_gains([plain, run, at_other_alpha])] == [run.average_certified_radius]


@pytest.mark.parametrize(
    ("acr", "baseline", "text"),
    [
        (1.2346, 1.0, "a measured gain of 0.234, 23.4 %"),
        (0.9, 1.0, "a measured gain of -0.100, -10.0 %"),
        (0.5, 0.0, "a measured gain of 0.500"),
    ],
)
def test_gains_are_stated_as_measured(acr: float, baseline: float, text: str) -> None:
    gain = RuleGain("drs", "best", "plain", acr, baseline, adaptive=False)
    assert gain.text.endswith(text)
    assert gain.text.startswith("drs: ACR ")
    assert "own rule" in dataclasses.replace(gain, adaptive=True).text


def test_rules_are_told_in_words() -> None:
    best, plain = " ".join(rule_in_words(BEST, 2)), " ".join(rule_in_words(Rule(), 2))
    assert "probit vote" in best
    assert "probit vote" in plain
    for word in ("Pairs", "Staircase", "24 ways", "Pooled", "half of alpha"):
        assert word in best
        assert word not in plain
    assert "Bonferroni" in plain
    assert "Bonferroni" not in best
    assert "sub-image" not in " ".join(rule_in_words(Rule(rivals=True), 1))
    assert "3,276 ways of sharing it between the 4 sub-images" in " ".join(rule_in_words(BEST, 4))
    assert "mean vote" in " ".join(rule_in_words(Rule("mean"), 2))
