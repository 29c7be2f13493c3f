"""Rules in words."""

from __future__ import annotations

from drs_ray.certificates.rule import Rule
from drs_ray.report.rule_words import rule_in_words

BEST = Rule(confidence="staircase", rivals=True, pooled=True)


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
