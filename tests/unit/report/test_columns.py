"""What a report shows of each run: the run, its comparison with the plain rule, and the gains."""

from __future__ import annotations

import dataclasses

import pytest

from drs_ray.certificates.rule import Rule
from drs_ray.config import CertificateConfig
from drs_ray.counts.run_record import create_or_join
from drs_ray.errors import CountsError
from drs_ray.report.columns import BASELINE, RuleGain, baseline_of, columns_of, read_columns, rule_gains
from drs_ray.results.reduce import certify_counts, compare_rule, reduce_run
from tests.unit.counts.factories import (
    PART_KEY,
    MemoryStore,
    adaptive,
    make_history,
    make_part,
    make_record,
    make_result,
    reduced,
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
