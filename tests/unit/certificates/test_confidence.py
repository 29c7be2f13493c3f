"""Levels of the boxes in which bounds must hold together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drs_ray.certificates.confidence import CONFIDENCE_RULES, level_region


@settings(derandomize=True, deadline=None, database=None, max_examples=100)
@given(alpha=st.floats(1e-12, 0.999), sub_images=st.integers(1, 16))
def test_bonferroni_spends_alpha_once(alpha: float, sub_images: int) -> None:
    boxes = level_region("bonferroni", alpha, sub_images).boxes(sub_images)
    assert boxes.shape == (1, sub_images)
    assert np.all(boxes == boxes[0, 0])
    assert np.all(boxes > 0)
    assert sub_images * boxes[0, 0] <= alpha * (1 + 1e-15)  # one rounding of the division


def test_one_sub_image_has_all_of_alpha() -> None:
    assert level_region("bonferroni", 0.001, 1).boxes(1).tolist() == [[0.001]]


@pytest.mark.parametrize("confidence", sorted(CONFIDENCE_RULES))
@pytest.mark.parametrize("sub_images", [1, 2])
def test_the_boxes_of_every_rule_miss_at_most_alpha(confidence: str, sub_images: int) -> None:
    """Independent uniforms fall outside of all boxes {U_k >= level_jk} with probability at most alpha: by area."""
    alpha = 0.01
    boxes = level_region(confidence, alpha, sub_images).boxes(sub_images)
    if sub_images == 1:
        covered = 1 - boxes.min()
    else:  # the union of upper-right quadrants, as strips between the sorted levels of the first sub-image
        edges = np.unique(np.append(boxes[:, 0], 1.0))
        floors = [boxes[boxes[:, 0] <= edge, 1].min() for edge in edges[:-1]]
        covered = float((np.diff(edges) * (1 - np.array(floors))).sum())
    assert 1 - covered <= alpha * (1 + 1e-12)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\), got"):
        level_region("bonferroni", alpha, 2)


def test_an_unknown_rule_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"confidence must be one of bonferroni.*got 'sidak'"):
        level_region("sidak", 0.001, 2)
