"""PREDICT: exact binomial tests, and its exact failure probability over all counts."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.stats import binomtest, multinomial

from drs_ray.certificates.prediction import least_samples, predicted_classes


@pytest.mark.parametrize("alpha", [0.4, 0.05, 0.001])
def test_it_is_the_two_sided_binomial_test(alpha: float) -> None:
    votes = np.array([[a, b, min(a, b, 3)] for a in range(40) for b in range(40) if a + b > 0])
    found = predicted_classes(csr_array(votes), alpha)
    for (a, b, _), answer in zip(votes, found, strict=True):
        sure = a != b and binomtest(max(a, b), a + b, 0.5).pvalue <= alpha
        assert answer == (int(b > a) if sure else -1)


@pytest.mark.parametrize("n", [1, 5, 12, 20])
@pytest.mark.parametrize("alpha", [0.3, 0.05])
def test_wrong_with_probability_at_most_alpha(n: int, alpha: float) -> None:
    """The multinomial probabilities of all counts summed; no tolerance but that of the sum."""
    counts = np.array([(i, j, n - i - j) for i in range(n + 1) for j in range(n + 1 - i)])
    answers = predicted_classes(csr_array(counts), alpha)
    for p in ([0.5, 0.5, 0.0], [0.45, 0.55, 0], [1 / 3, 1 / 3, 1 / 3], [0.4, 0.41, 0.19], [0.0, 0.49, 0.51]):
        best = int(np.argmax(p)) if p != [0.5, 0.5, 0.0] and len(set(p)) > 1 else None
        wrong = (answers >= 0) & (answers != best)
        assert multinomial.pmf(counts[wrong], n, p).sum() <= alpha + 1e-12


def test_edges() -> None:
    votes = csr_array(np.array([[0, 0, 10_000_000], [1, 0, 0], [5, 5, 0], [0, 60, 40]]))
    assert predicted_classes(votes, 0.001).tolist() == [2, -1, -1, -1]
    n = 11  # unanimous: p-value 2 / 2**n
    assert comb(n, n) * 2 / 2**n < 0.001
    assert predicted_classes(csr_array(np.array([[n, 0], [n - 1, 0]])), 0.001).tolist() == [0, -1]


@pytest.mark.parametrize(("alpha", "least"), [(0.001, 11), (0.05, 6), (2.0**-10, 12), (0.999, 2)])
def test_the_fewest_votes_that_have_an_answer(alpha: float, least: int) -> None:
    assert least_samples(alpha) == least
    answers = [predicted_classes(csr_array([[n, 0]]), alpha)[0] for n in (least - 1, least)]
    assert answers == [-1, 0]
