"""Samples per second of a run, from the times and samples of its parts: for the progress bar and for `status`.

Workers that begin together finish together, so parts arrive in bursts, and a count over a time window is wrong by up to
a burst at each end. So the speed is the slope of a least-squares line through all parts of the window, which bursts
hardly change, and the window is long enough for several bursts.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import linear_regression

WINDOW_SECONDS = 600.0
GAPS_IN_WINDOW = 5
"""The window is at least ten minutes, and at least `GAPS_IN_WINDOW` times the longest pause between two parts."""
_REMEMBERED = 1000


@dataclass(frozen=True)
class Throughput:
    """samples_per_second: None before the first part. longest_gap: longest recent pause between parts in seconds."""

    samples_per_second: float | None
    longest_gap: float


def throughput_of(parts: Sequence[tuple[float, int]], since: float, now: float) -> Throughput:
    """The present speed.

    Args:
        parts: for each part, its time in seconds and its samples; parts before `since` are ignored.
        since: start time of the work.
        now: present time of the same clock.
    """
    counted = sorted(part for part in parts if part[0] >= since)
    if not counted:
        return Throughput(None, 0.0)
    times = [moment for moment, _ in counted]
    gaps = [later - earlier for earlier, later in pairwise([since, *times])]  # before each part
    length = WINDOW_SECONDS
    while True:
        first = bisect_left(times, now - length)
        longest = max(gaps[first:], default=0.0)
        needed = GAPS_IN_WINDOW * max(longest, now - times[-1])
        if first == 0 or needed <= length:
            break
        length = needed
    return Throughput(_speed(counted[first:], since if first == 0 else None), longest)


def _speed(parts: Sequence[tuple[float, int]], since: float | None) -> float | None:
    """Samples per second. since: start time of the work if it is within the window, else None."""
    first, last = parts[0][0], parts[-1][0]
    if since is not None and last - first < first - since:  # only a first burst: the slope within it is not the speed
        return sum(samples for _, samples in parts) / (last - since)
    if last == first:
        return None
    drawn = accumulate(samples for _, samples in parts)
    return linear_regression([moment for moment, _ in parts], list(drawn)).slope


class Meter:
    """Measures the speed in bounded memory: parts within a second are merged."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._parts: deque[tuple[float, int]] = deque()

    def add(self, now: float, samples: int) -> None:
        """Add a part."""
        if self._parts and now - self._parts[-1][0] < 1.0:
            moment, before = self._parts.pop()
            self._parts.append((moment, before + samples))
            return
        self._parts.append((now, samples))
        if len(self._parts) > _REMEMBERED:
            self._since, _ = self._parts.popleft()

    def throughput(self, now: float) -> Throughput:
        """The present speed."""
        return throughput_of(self._parts, self._since, now)
