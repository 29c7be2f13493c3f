"""Notes of driver sessions: written at both ends, whatever happens between them."""

from __future__ import annotations

import json

import pytest

from drs_ray.counts.sessions import SESSIONS_PREFIX, SessionSummary, noted_session, read_sessions, total_seconds
from drs_ray.errors import CountsError, StoreError
from tests.unit.counts.factories import MemoryStore

FACTS = SessionSummary(
    units_done=3, samples=900, workers_lost=2, units_retried=1, units_set_aside=1, set_aside={"counts/x": "NaN"}
)


class FailingStore(MemoryStore):
    """Takes nothing."""

    def put(self, key: str, data: bytes) -> None:
        raise StoreError("503")


def test_a_session_is_noted_while_it_lasts_and_when_it_ended() -> None:
    store = MemoryStore()
    with noted_session(store, lambda: FACTS):
        (begun,) = read_sessions(store)
        assert (begun.seconds, begun.summary) == (None, SessionSummary())
        assert total_seconds(store) == (None, False)
    (ended,) = read_sessions(store)
    assert ended.started == begun.started
    assert ended.summary == FACTS
    assert ended.seconds is not None
    assert ended.seconds >= 0.0
    assert total_seconds(store) == (ended.seconds, True)


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyboardInterrupt()], ids=repr)
def test_a_session_that_raises_ended_all_the_same(error: BaseException) -> None:
    store = MemoryStore()
    with pytest.raises(type(error)), noted_session(store, lambda: FACTS):
        raise error
    (ended,) = read_sessions(store)
    assert ended.seconds is not None
    assert ended.summary == FACTS


def test_a_store_that_fails_neither_stops_nor_hides_anything() -> None:
    done = []
    with noted_session(FailingStore(), lambda: FACTS):
        done.append(1)
    assert done
    with pytest.raises(ValueError, match="the cause"), noted_session(FailingStore(), lambda: FACTS):
        raise ValueError("the cause")


def test_seconds_of_all_sessions_that_ended_are_added() -> None:
    store = MemoryStore()
    for number, content in enumerate([{"seconds": 2.5}, {}, {"seconds": 4}]):
        content["started"] = "2026-01-01T00:00:00+00:00"
        store.put(f"{SESSIONS_PREFIX}{number}.json", json.dumps(content).encode())
    assert total_seconds(store) == (6.5, False)  # the second was killed


def test_notes_of_older_versions_are_read() -> None:
    store = MemoryStore()
    store.put(f"{SESSIONS_PREFIX}1.json", b'{"started": "2026-01-01T00:00:00+00:00", "seconds": 7.25}')
    (note,) = read_sessions(store)
    assert (note.seconds, note.summary) == (7.25, SessionSummary())


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"started": "x", "seconds": "long"}'])
def test_what_is_not_a_note_is_named(content: bytes) -> None:
    store = MemoryStore()
    store.put(f"{SESSIONS_PREFIX}1.json", content)
    with pytest.raises(CountsError, match=r"memory/sessions/1\.json: not a session note; remove it"):
        read_sessions(store)
