"""What holds for every rule: monotone in the votes, blind to the order of classes and halves; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array

from drs_ray.certificates.bounds import lower_quantile
from drs_ray.certificates.radii import certified_radii, rule_names
from drs_ray.certificates.rule import Rule
from drs_ray.certificates.votes import Rivals, rivals_of

steady = settings(derandomize=True, deadline=None, database=None, max_examples=60)
Dense = NDArray[np.int64]
RULES = [
    Rule(vote, confidence, rivals=rivals, pooled=pooled)
    for vote in ("probit", "mean")
    for confidence in ("bonferroni", "staircase")
    for rivals in (False, True)
    for pooled in (False, True)
]
SIGMAS = (0.5, 0.5)


def radii(
    votes: Dense, rule: Rule, alpha: float = 0.01, sigmas: tuple[float, ...] = SIGMAS, selected: int = 0
) -> NDArray[np.float64]:
    """Votes [N, K, C] -> radii, all images unanimous."""
    chosen = np.full(len(votes), selected)
    rivals = rivals_of([csr_array(votes[:, k]) for k in range(votes.shape[1])], chosen) if rule.rivals else None
    return certified_radii(
        votes[:, :, selected], votes.sum(axis=2), sigmas, rule, alpha,
        rivals=rivals, unanimous=np.ones(len(votes), np.bool_),
    ).radius  # fmt: skip


@st.composite
def some_votes(draw: st.DrawFn) -> Dense:
    """[1, 2, C] votes that sum to n on both halves, most of them for class 0."""
    classes, n = draw(st.integers(2, 5)), draw(st.sampled_from([20, 300, 10_000]))
    rows = []
    for _ in range(2):
        left, others = n, []
        for _ in range(classes - 1):
            others.append(int(draw(st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.6])) * left))
            left -= others[-1]
        rows.append([left, *others])
    return np.array([rows], np.int64)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_vote_that_goes_to_a_instead_never_shrinks_a_radius(rule: Rule) -> None:
    """All counts of 15 votes over 3 classes on either half, each beside the one with a vote moved from B to A."""
    n = 15
    half = np.array([[n - b - c, b, c] for b in range(n + 1) for c in range(n + 1 - b)])
    first, second = (axis.ravel() for axis in np.indices((len(half), len(half))))
    votes = np.stack([half[first], half[second]], axis=1)
    here = radii(votes, rule, 0.05)
    assert here.max() > 0
    for k in range(2):
        some = votes[:, k, 1] > 0
        moved = votes[some].copy()
        moved[:, k, 1] -= 1
        moved[:, k, 0] += 1
        assert np.all(radii(moved, rule, 0.05) >= here[some])


@steady
@given(some_votes(), st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_the_order_of_the_classes_does_not_matter(votes: Dense, rule: Rule, random: object) -> None:
    order = list(range(votes.shape[2]))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert radii(votes[:, :, order], rule, selected=order.index(0)).tolist() == radii(votes, rule).tolist()


@steady
@given(some_votes(), st.sampled_from(RULES), st.sampled_from([(0.5, 0.5), (0.25, 1.0)]))
def test_the_order_of_the_halves_does_not_matter(votes: Dense, rule: Rule, sigmas: tuple[float, float]) -> None:
    """To the last bit but for the staircase, whose levels are symmetric up to rounding."""
    if rule.pooled:
        sigmas = SIGMAS
    here, swapped = radii(votes, rule, sigmas=sigmas), radii(votes[:, ::-1], rule, sigmas=sigmas[::-1])
    if rule.confidence == "bonferroni":
        assert swapped.tolist() == here.tolist()
    else:
        assert swapped == pytest.approx(here, rel=1e-9, abs=1e-9)


@steady
@given(some_votes(), st.sampled_from([rule for rule in RULES if rule.rivals]))
def test_rivals_without_votes_once_are_as_good_as_all_of_them(votes: Dense, rule: Rule) -> None:
    classes = votes.shape[2] - 1
    dense = Rivals(np.zeros(classes, np.int64), np.arange(1, classes + 1), votes[0, :, 1:].T, classes)
    found = certified_radii(
        votes[:, :, 0], votes.sum(axis=2), SIGMAS, rule, 0.01, rivals=dense, unanimous=np.zeros(1, np.bool_)
    )
    sparse = rivals_of([csr_array(votes[:, k]) for k in range(2)], np.zeros(1, np.int64))
    same = certified_radii(
        votes[:, :, 0], votes.sum(axis=2), SIGMAS, rule, 0.01, rivals=sparse, unanimous=np.zeros(1, np.bool_)
    )
    assert same.radius.tolist() == found.radius.tolist()
    assert same.a_lower.tolist() == found.a_lower.tolist()


def test_of_two_classes_the_rival_needs_no_level() -> None:
    votes = np.array([[[990, 10], [950, 50]]])
    for confidence in ("bonferroni", "staircase"):
        assert radii(votes, Rule("probit", confidence, rivals=True)) == radii(votes, Rule("probit", confidence))


@pytest.mark.parametrize(
    ("sub_images", "n", "failures", "quantile"),
    [(2, 100_000, 0, 3.979445), (4, 100_000, 0, 4.141272), (2, 1000, 0, 2.701833), (4, 1000, 3, 2.720268)],
)
def test_check_values_of_the_pooled_rule(sub_images: int, n: int, failures: int, quantile: float) -> None:
    votes = np.full((1, sub_images), n)
    votes[0, 0] -= failures
    found = certified_radii(
        votes, np.full_like(votes, n), [1.0] * sub_images, Rule(pooled=True), 0.002, unanimous=np.array([True])
    )  # of which the pooled bound has half
    assert found.pooled.tolist() == [True]
    assert found.level.tolist() == [[0.001] * sub_images]
    assert found.radius[0] / np.sqrt(sub_images) == pytest.approx(quantile, abs=1e-6)
    assert found.radius[0] / np.sqrt(sub_images) <= quantile + 5e-7  # as printed


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_radii_are_nested_in_alpha(rule: Rule) -> None:
    """docs/theory.md 5.8: from the same votes, a smaller alpha never gives a larger radius, wherever alpha lies."""
    votes = np.array([[[1000, 0, 0], [1000, 0, 0]], [[990, 10, 0], [960, 0, 40]], [[700, 200, 100], [980, 10, 10]]])
    alphas = [1e-30, 1e-6, 1e-3, 0.1, 0.2, 0.25, 0.2501, 0.3, 0.499, 0.5, 0.501, 0.6, 0.9, 0.99]
    found = np.array([radii(votes, rule, alpha) for alpha in alphas])
    assert np.all(np.diff(found, axis=0) >= 0)
    assert np.all(found[3] > found[2])


@pytest.mark.parametrize("votes", [[1000, 1000], [1000, 900]], ids=str)
def test_pooled_and_boxes_share_alpha_and_the_larger_is_certified(votes: list[int]) -> None:
    counts, alpha = np.array([votes]), 0.001
    rule, drawn = Rule("probit", "staircase", pooled=True), np.full((1, 2), 1000)
    found = certified_radii(counts, drawn, SIGMAS, rule, alpha, unanimous=YES)
    boxes = certified_radii(counts, drawn, SIGMAS, Rule("probit", "staircase"), alpha / 2)
    pooled = 0.5 * np.sqrt(2) * lower_quantile(sum(votes), 2000, alpha / 2)
    assert found.radius[0] == pytest.approx(max(pooled, boxes.radius[0]), rel=1e-14)
    assert found.pooled[0] == (pooled > boxes.radius[0]) == (votes[1] == 1000)
    assert rule_names(rule, np.array([True, False])).tolist() == [
        "probit p_A staircase with pooled",
        "probit p_A staircase",
    ]


def test_it_is_said_where_alpha_was_halved_whichever_bound_decides() -> None:
    votes = np.array([[1000, 1000], [1000, 600], [1000, 600], [1000, 1000]])
    drawn = np.array([[1000, 1000], [1000, 1000], [1000, 1000], [1000, 2000]])  # the last cannot be pooled
    unanimous = np.array([True, True, False, True])
    found = certified_radii(votes, drawn, SIGMAS, Rule("probit", "staircase", pooled=True), 0.001, unanimous=unanimous)
    assert found.pooled.tolist() == [True, False, False, False]
    assert found.halved.tolist() == [True, True, False, False]
    plain = certified_radii(votes, drawn, SIGMAS, Rule("probit", "staircase"), 0.001, unanimous=unanimous)
    assert not plain.halved.any()
    at_one = certified_radii(votes, drawn, SIGMAS, Rule(radius=0.1), 0.001)
    assert not at_one.halved.any()


def test_rivals_do_not_share_a_level() -> None:
    """Theorem 6a: only the class's bound and one rival's need to hold, however many rivals there are."""
    votes = np.array([[[850, 60, 50, 40, *[0] * 96], [700, 150, 100, 50, *[0] * 96]]])
    few, many = (
        radii(votes[:, :, :4], Rule("probit", "bonferroni", rivals=True), 0.001),
        radii(votes, Rule("probit", "bonferroni", rivals=True), 0.001),
    )
    assert few.tolist() == many.tolist()
    assert few[0] / 0.5 == pytest.approx(1.220597564, abs=3e-8)  # docs/theory.md 5.5


def test_which_images_are_pooled() -> None:
    """Not those with a selection vote against the class, nor those whose halves have unequal numbers of samples."""
    votes, samples = np.array([[1000, 1000]] * 3), np.array([[1000, 1000], [1000, 1000], [1000, 1001]])
    rule, boxes = Rule(confidence="staircase", pooled=True), Rule(confidence="staircase")
    found = certified_radii(votes, samples, SIGMAS, rule, 0.01, unanimous=np.array([True, False, True])).radius
    plain = certified_radii(votes, samples, SIGMAS, boxes, 0.01).radius
    assert found[0] > plain[0]
    assert found[1:].tolist() == plain[1:].tolist()


ONE = np.array([[90, 90]])
OF = np.array([[100, 100]])
YES = np.array([True])
THREE = np.array([[9, 9, 9]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: certified_radii(ONE, OF, SIGMAS, Rule(), 0.01, share=0.0), r"share must be in \(0, 1\], got 0"),
        (lambda: certified_radii(ONE, OF, SIGMAS, Rule(), 0.01, share=1.5), r"share must be in \(0, 1\], got 1.5"),
        (lambda: certified_radii(ONE, OF, SIGMAS, Rule(), 0.01, share=float("nan")), "share must be in"),
        (lambda: certified_radii(ONE, OF, SIGMAS, Rule(), 0.0), "alpha must be in"),
        (lambda: certified_radii(ONE, OF, SIGMAS, Rule(pooled=True), 0.01), "needs to know where the selection votes"),
        (lambda: certified_radii(ONE, OF, SIGMAS, Rule(rivals=True), 0.01), "needs the rivals' votes"),
        (
            lambda: certified_radii(ONE, OF, (0.5, 0.25), Rule(pooled=True), 0.01, unanimous=YES),
            "the pooled rule needs two or more sub-images with equal sigmas",
        ),
        (
            lambda: certified_radii(ONE[:, :1], OF[:, :1], (0.5,), Rule(pooled=True), 0.01, unanimous=YES),
            "the pooled rule needs two or more sub-images",
        ),
        (lambda: Rule(pooled=True, weights=(1.0, 2.0)), "the pooled rule needs equal weights"),
        (
            lambda: certified_radii(THREE, THREE + 1, [0.5] * 3, Rule("mean"), 0.01),
            "use the probit vote",
        ),
        (lambda: certified_radii(ONE + 20, OF, SIGMAS, Rule(), 0.01), r"successes must be in \[0, samples\]"),
        (lambda: certified_radii(ONE - 91, OF, SIGMAS, Rule(), 0.01), r"successes must be in \[0, samples\]"),
        (
            lambda: certified_radii(
                ONE, OF, SIGMAS, Rule(rivals=True), 0.01,
                rivals=Rivals(np.array([0]), np.array([1]), np.array([[101, 0]]), 2),
            ),
            r"successes must be in \[0, samples\]",
        ),
    ],
)  # fmt: skip
def test_one_clear_refusal_each(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        make()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "rule",
    [
        *RULES,
        Rule(weights=(1.0, 0.1)),
        Rule("probit", "staircase", (2.0, 2.0), True, True),
        Rule(radius=0.1),
        Rule("mean", radius=1.0),
        Rule(weights=(1.0, 0.1), radius=0.25),
    ],
)
def test_a_rule_is_known_by_its_name(rule: Rule) -> None:
    assert Rule.named(rule.name) == rule


@pytest.mark.parametrize(
    "name",
    [
        "",
        "probit",
        "probit rivals bonferroni",
        "probit pairs staircase or pooled",
        "plurality p_A bonferroni",
        "probit p_A bonferroni w=1",
        "probit pairs e-value r=1.0",
    ],
)
def test_what_is_no_rule_has_no_name(name: str) -> None:
    with pytest.raises(ValueError, match=r"vote must be one of|no rule is named|a rule for a fixed radius"):
        Rule.named(name)


@pytest.mark.parametrize("other", [{"rivals": True}, {"pooled": True}, {"confidence": "staircase"}], ids=str)
def test_a_rule_for_a_fixed_radius_takes_nothing_that_bounds_need(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a rule for a fixed radius has no bounds"):
        Rule(radius=0.5, **other)
