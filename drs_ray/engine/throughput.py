"""How fast parts come in, from when they came and how many samples each has: for the driver's bar and for `status`.

Workers that begin together finish together: parts come in bursts, and a count over a stretch of time is off by up to
a burst at each end. So the speed is the slope of the line through all of them (least squares), which bursts do not
tilt, and the stretch is long enough for several.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from statistics import linear_regression

WINDOW_SECONDS = 600.0
"""The speed is that of the last ten minutes,"""
GAPS_IN_WINDOW = 5
"""or over a longer time: at least so many times the longest pause between two parts."""
_REMEMBERED = 1000


@dataclass(frozen=True)
class Throughput:
    """samples_per_second: None before the first part. longest_gap: longest recent pause between two parts, seconds."""

    samples_per_second: float | None
    longest_gap: float


def throughput_of(parts: Sequence[tuple[float, int]], since: float, now: float) -> Throughput:
    """The present speed.

    Args:
        parts: when each part was stored, in seconds, and its samples; those before `since` do not count.
        since: when the work began.
        now: by the same clock.
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
    """Samples per second; `since` is when the work began, where that is within the window."""
    first, last = parts[0][0], parts[-1][0]
    if since is not None and last - first < first - since:  # a first burst: its parts say nothing of the next one
        return sum(samples for _, samples in parts) / (last - since)
    if last == first:
        return None
    drawn = accumulate(samples for _, samples in parts)
    return linear_regression([moment for moment, _ in parts], list(drawn)).slope


class Meter:
    """How fast parts come, in bounded memory: parts of one second are kept as one."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._parts: deque[tuple[float, int]] = deque()

    def add(self, now: float, samples: int) -> None:
        """A part came."""
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
