"""The chaos program works: a short run of it, with storage faults and few kills. `make chaos` is the long one."""

from __future__ import annotations

import sys

import pytest

from tests.chaos import run_chaos

pytestmark = [
    pytest.mark.ray,
    pytest.mark.s3,
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="nodes have loopback addresses of their own"),
]


def test_a_few_seconds_of_chaos():
    events = run_chaos(minutes=0.1, seed=1)
    assert events["runs finished"] == 1
    assert events["rows checked"] > 0
    assert events["rows lost"] == events["rows duplicated or wrong"] == 0
