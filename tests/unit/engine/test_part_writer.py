"""Patience with a store that fails: bounded, with jitter, and only where waiting may help."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from drs_ray.engine import part_writer
from drs_ray.engine.part_writer import PartWriter
from drs_ray.errors import InterruptedRunError, StoreError
from tests.unit.counts.factories import MemoryStore

DOWN = StoreError("s3://b/k: the server is overloaded; try again later", transient=True)
DENIED = StoreError("s3://b/k: access denied; use other credentials")


class Clock:
    """Time passes by sleeping, and by what attempts take."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", lambda: clock.now)
    monkeypatch.setattr(time, "sleep", clock.sleep)
    return clock


class Scripted(MemoryStore):
    """`failing(now)` is what a put raises, if anything; each attempt takes `seconds`."""

    def __init__(self, clock: Clock, failing: Callable[[float], BaseException | None], seconds: float = 0.0) -> None:
        super().__init__()
        self._clock, self._failing, self._seconds = clock, failing, seconds
        self.puts = 0

    def put(self, key: str, data: bytes) -> None:
        self.puts += 1
        self._clock.now += self._seconds
        error = self._failing(self._clock.now)
        if error is not None:
            raise error
        super().put(key, data)


def test_a_store_that_works_is_asked_once(clock: Clock) -> None:
    store = Scripted(clock, lambda now: None)
    assert PartWriter(600).put(store, "k", b"part") == 0
    assert (store.puts, clock.pauses, store.get("k")) == (1, [], b"part")


def test_an_outage_costs_time_but_no_part(clock: Clock) -> None:
    store = Scripted(clock, lambda now: DOWN if now < 300 else None)
    retries = PartWriter(600).put(store, "k", b"part")
    assert retries == store.puts - 1 == len(clock.pauses) > 5
    assert 300 <= clock.now <= 300 + part_writer.LONGEST_PAUSE_SECONDS
    assert store.get("k") == b"part"


def test_pauses_are_drawn_up_to_a_bound_that_doubles(clock: Clock) -> None:
    with pytest.raises(StoreError):
        PartWriter(100_000).put(Scripted(clock, lambda now: DOWN), "k", b"part")
    bounds = [min(2.0 ** min(number, 10), part_writer.LONGEST_PAUSE_SECONDS) for number in range(len(clock.pauses))]
    assert all(0 <= pause <= bound for pause, bound in zip(clock.pauses, bounds, strict=True))
    assert len(set(clock.pauses)) == len(clock.pauses) > 1000
    assert max(clock.pauses) > 0.9 * part_writer.LONGEST_PAUSE_SECONDS  # the chance of less: 0.9 ** 1000
    assert min(clock.pauses[5:]) < 0.1 * part_writer.LONGEST_PAUSE_SECONDS


def test_a_store_that_stays_away_is_given_up_in_time(clock: Clock) -> None:
    store = Scripted(clock, lambda now: DOWN, seconds=2.0)
    with pytest.raises(StoreError) as caught:
        PartWriter(60).put(store, "k", b"part")
    assert clock.now <= 60 + 2
    assert caught.value.transient
    assert str(caught.value) == f"{DOWN} (failing for {clock.now:.0f} s; tries of this part: {store.puts})"


def test_what_waiting_cannot_mend_is_raised_at_once(clock: Clock) -> None:
    store = Scripted(clock, lambda now: DENIED)
    with pytest.raises(StoreError) as caught:
        PartWriter(600).put(store, "k", b"part")
    assert caught.value is DENIED
    assert (store.puts, clock.pauses) == (1, [])


def test_an_outage_that_turns_into_a_refusal_ends(clock: Clock) -> None:
    store = Scripted(clock, lambda now: DOWN if now < 10 else DENIED)
    with pytest.raises(StoreError) as caught:
        PartWriter(600).put(store, "k", b"part")
    assert caught.value is DENIED


def test_patience_is_with_the_store_not_with_each_part(clock: Clock) -> None:
    writer = PartWriter(60)
    store = Scripted(clock, lambda now: DOWN if now < 1000 else None)
    with pytest.raises(StoreError):
        writer.put(store, "a", b"part")
    clock.now = 500.0
    puts = store.puts
    with pytest.raises(StoreError, match=r"\(failing for 500 s; tries of this part: 1\)"):
        writer.put(store, "b", b"part")
    assert store.puts == puts + 1
    clock.now = 1000.0
    assert writer.put(store, "c", b"part") == 0
    again = Scripted(clock, lambda now: DOWN if now < 1030 else None)  # the next outage is met with all the patience
    assert writer.put(again, "d", b"part") > 0


def test_no_patience_is_one_try(clock: Clock) -> None:
    store = Scripted(clock, lambda now: DOWN)
    with pytest.raises(StoreError):
        PartWriter(0).put(store, "k", b"part")
    assert (store.puts, clock.pauses) == (1, [])


def test_an_interrupt_is_not_waited_out(clock: Clock) -> None:
    interrupt = InterruptedRunError("interrupted by SIGTERM", 15)
    store = Scripted(clock, lambda now: interrupt)
    with pytest.raises(InterruptedRunError):
        PartWriter(600).put(store, "k", b"part")
    assert store.puts == 1
